"""What crosses the port between policy and a trusted application, kept as text: no contents may be in it."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any


class Recorder:
    """Passes calls on to an application, and keeps all that goes in and comes out, as text."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.crossed: list[str] = []
        self.methods: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._app, name)
        if not callable(value):
            self.keep(name, value)
            return value

        def passed_on(*arguments: Any, **named: Any) -> Any:
            self.methods.add(name)
            watched = [self._callback(it) if callable(it) else it for it in arguments]
            self.keep(name, arguments, named)
            try:
                result = value(*watched, **named)
            except BaseException as error:
                self.keep(name, error)
                raise
            self.keep(name, result)
            return result

        return passed_on

    def _callback(self, callback: Any) -> Any:
        def called(*arguments: Any) -> None:
            self.keep("callback", arguments)
            callback(*arguments)

        return called

    def keep(self, *values: Any) -> None:
        """Keep values."""
        self.crossed.append(repr([_plain(value) for value in values]))


def _plain(value: Any) -> Any:
    """Return a value as data: whatever a policy could find by looking into it."""
    if isinstance(value, BaseException):
        return [type(value).__name__, value.args, _plain(vars(value)), _plain(value.__cause__)]
    if isinstance(value, enum.Enum) or callable(value):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
