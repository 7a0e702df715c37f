"""The configuration, read again while the server runs: what can change does, the rest is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from flexserve.errors import FlexServeError
from flexserve.normal import journal, service_manager
from flexserve.normal.api.admission import Admission
from flexserve.normal.world import World

if TYPE_CHECKING:
    from flexserve.normal.main import ServeOptions

_RELOADED = {"api_keys", "allowed_hosts", "allowed_origins", "insecure", "audit_file"} | {
    "max_memory",
    "log_level",
}
_OF_THE_START = {"core", "early", "reread", "limits", "log_json"}  # which no configuration says

_log = structlog.get_logger(__name__)


class Reloading:
    """Reloads a server that was started with `options`, serves `world` and lets in whom `admission` says.

    `admission_of` returns whom other options let in, or raises why these cannot be used.
    """

    def __init__(
        self,
        options: ServeOptions,
        world: World,
        admission: Admission,
        admission_of: Callable[[ServeOptions], Admission],
    ) -> None:
        self._options, self._world, self._admission = options, world, admission
        self._admission_of = admission_of

    def reload(self) -> None:
        """Read the configuration again. One that cannot be used is logged and changes nothing."""
        service_manager.tell_reloading()
        try:
            if self._options.reread is not None:
                self._apply(self._options.reread())
        except FlexServeError as error:
            _log.error("not_reloaded", reason=str(error))
        finally:
            service_manager.tell("READY=1")

    def _apply(self, new: ServeOptions) -> None:
        admission = self._admission_of(new)  # first, because it may refuse
        changed = set(differing(self._options, new)) - _OF_THE_START
        if "max_memory" in changed:
            self._world.set_cap(new.max_memory)  # which may refuse, too
        self._admission.become(admission)
        if "log_level" in changed:
            journal.configure(level=new.log_level, json=self._options.log_json)
        same = {name: getattr(self._options, name) for name in _OF_THE_START}
        lasting = {name: getattr(new, name) for name in _RELOADED}
        self._options = dataclasses.replace(self._options, **same, **lasting)
        needs_restart = sorted(changed - _RELOADED)
        log = _log.warning if needs_restart else _log.info
        log("reloaded", changed=sorted(changed & _RELOADED), needs_restart=needs_restart)


def differing(old: ServeOptions, new: ServeOptions) -> Iterator[str]:
    """Yield the names of the options that differ; those of the secure world by their own."""
    before, after = _flat(old), _flat(new)
    yield from (name for name in before if before[name] != after[name])


def _flat(options: ServeOptions) -> dict[str, Any]:
    flat = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return {**msgspec.structs.asdict(flat.pop("secure")), **flat}
