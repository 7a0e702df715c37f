"""What a GGUF file is, if it is no model: a part of one, or a change to one."""

from __future__ import annotations

from collections.abc import Mapping

from flexserve.errors import CallerError

ADAPTER = "adapter"
_VISION = frozenset({"clip"})  # the architecture of encoders of images and sounds


def kind_of(metadata: Mapping[str, object]) -> str:
    """Return what the file says that it is: "model", "adapter", "mmproj" …"""
    kind = metadata.get("general.type", "model")
    if metadata.get("general.architecture") in _VISION:
        return "mmproj"
    if metadata.get("general.architecture") == "controlvector":
        return "controlvector"
    return kind if isinstance(kind, str) else "model"


def check_kind(metadata: Mapping[str, object], *, adapts: bool) -> None:
    """Raise CallerError for a file that is no model; `adapts`: for one that is no adapter."""
    kind = kind_of(metadata)
    if adapts:
        if kind != ADAPTER:
            raise CallerError(
                "This is no LoRA adapter.",
                hint="Leave --adapter-of out if it is a model.",
                code="bad_gguf",
            )
        return
    if kind in _REFUSED:
        what, hint = _REFUSED[kind]
        raise CallerError(what, hint=hint, code="bad_gguf")


_REFUSED = {
    "mmproj": (
        "This is the part of a model that reads images or sounds (mmproj), which is not supported.",
        "Add the model's own GGUF file: it reads and writes text.",
    ),
    ADAPTER: (
        "This is a LoRA adapter: it changes a model, and is none.",
        "Add the model, then the adapter with `--adapter-of MODEL`.",
    ),
    "controlvector": (
        "This is a control vector, which is not supported.",
        "Add a model, or a LoRA adapter.",
    ),
    "imatrix": (
        "This is an importance matrix: it says how to quantize a model, and is none.",
        "Add the model's own GGUF file.",
    ),
}
