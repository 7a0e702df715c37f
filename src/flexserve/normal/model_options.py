"""How single models are to be served, as a person set it: a small file beside the pins.

It is the normal world's: it says how much of something models get, as the server's other settings do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from flexserve.errors import CallerError
from flexserve.normal import small_file
from flexserve.protocol.bounds import MAX_CONFIGURED
from flexserve.protocol.messages import Configure
from flexserve.protocol.model_options import MAX_CONTEXT, ModelOptions

_MAX_FILE = 1 << 20  # bytes
_TOKENS = re.compile(r"([0-9]{1,7})(k?)", re.ASCII | re.IGNORECASE)


class ModelChoices:
    """The options of models by name, kept in `path` (None: in memory only). The file need not exist.

    Raises CallerError when the file does not hold options of models.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._options = {} if path is None else _read(path)

    @property
    def all(self) -> Mapping[str, ModelOptions]:
        """The options of the models that have some."""
        return self._options

    def of(self, model: str) -> ModelOptions:
        """Return the options of a model."""
        return self._options.get(model, ModelOptions())

    def replace(self, model: str, options: ModelOptions, *, trained: int) -> None:
        """Set the options of a model that was trained for `trained` tokens of context (0: it does not say).

        Raises CallerError for a longer context and for a model that is its own draft, NormalWorldError;
        nothing is changed then.
        """
        if options.draft == model:
            raise CallerError(
                f"{model} cannot be its own draft.",
                hint="Name a smaller model with the same vocabulary.",
                code="bad_option",
            )
        if isinstance(options.context, int) and 0 < trained < options.context:
            raise CallerError(
                f"{model} was trained for {trained} tokens of context, not for {options.context}.",
                hint="`flexserve set MODEL context model` gives it all that it was trained for.",
                code="context_too_long",
            )
        wanted = {**self._options, model: options}
        if options == ModelOptions():
            del wanted[model]
        if len(wanted) > MAX_CONFIGURED:
            raise CallerError(
                f"More than {MAX_CONFIGURED} models cannot have options of their own.",
                hint="Set some of them back: flexserve set MODEL context default.",
            )
        if self._path is not None:
            ordered = dict(sorted(wanted.items()))
            small_file.write(self._path, msgspec.json.format(msgspec.json.encode(ordered)) + b"\n")
        self._options = wanted


def parse_context(text: str) -> int | Literal["model"]:
    """Return the tokens that "32k", "32768" or "model" stand for. Raises ValueError."""
    if text == "model":
        return "model"
    match = _TOKENS.fullmatch(text.strip())
    tokens = int(match[1]) * (1024 if match[2] else 1) if match is not None else 0
    if not 1 <= tokens <= MAX_CONTEXT:
        raise ValueError("write it like 32k, 32768 or model: at most 1024k")
    return tokens


def _read(path: Path) -> dict[str, ModelOptions]:
    content = small_file.read(path, _MAX_FILE)
    if content is None:
        return {}
    try:
        options = msgspec.json.decode(content)
        return msgspec.convert({"type": "Configure", "models": options}, Configure).models
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise CallerError(f"{path} does not hold options of models.", hint="Correct or remove it.") from None
