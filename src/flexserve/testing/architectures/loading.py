"""llama.cpp's loader, as the one who says what a model lacks."""

from __future__ import annotations

import functools
from pathlib import Path

from llama_cpp import llama_cpp as lib

_ERROR = "error loading model: "
_said: list[str] = []


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _hear(_level: int, text: bytes, _data: object) -> None:
    _said.append(text.decode("utf-8", "replace"))


@functools.cache
def _start() -> None:
    lib.llama_log_set(_hear, None)
    lib.llama_backend_init()


class Loader:
    """Loads models in this process, which some of them end."""

    def __init__(self) -> None:
        _start()
        self._parameters = lib.llama_model_default_params()
        self._parameters.n_gpu_layers = 0
        self._parameters.use_extra_bufts = False  # nothing is computed: nothing need be repacked

    def problem(self, path: Path) -> str:
        """Return what llama.cpp has against the model at `path`; "" if it loads."""
        _said.clear()
        model = lib.llama_model_load_from_file(str(path).encode(), self._parameters)
        if model:
            lib.llama_model_free(model)
            return ""
        errors = [line for line in "".join(_said).splitlines() if _ERROR in line]
        return errors[0].split(_ERROR)[-1] if errors else "it does not load"
