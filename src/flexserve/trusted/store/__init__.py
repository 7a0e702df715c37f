"""Sealed models: the .flex container, derived images, the local store, device keys.

Each part is imported when it is first asked for: the process that holds the device key needs few of them.

Trusted with: keys, weights; the process that holds it, with the device key.
Sees: keys of models, weights while sealing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flexserve.trusted.store.container import SealedModel
    from flexserve.trusted.store.gguf import GgufHeader, TensorInfo, parse_gguf
    from flexserve.trusted.store.image import BufferSpec, Image, ImageWriter, StaleImageError
    from flexserve.trusted.store.keys import DeviceKey
    from flexserve.trusted.store.manifest import Manifest
    from flexserve.trusted.store.sealing import seal_file
    from flexserve.trusted.store.store import Store

_PARTS = {
    "container": ("SealedModel",),
    "gguf": ("GgufHeader", "TensorInfo", "parse_gguf"),
    "image": ("BufferSpec", "Image", "ImageWriter", "StaleImageError"),
    "keys": ("DeviceKey",),
    "manifest": ("Manifest",),
    "sealing": ("seal_file",),
    "store": ("Store",),
}

__all__ = [
    "BufferSpec",
    "DeviceKey",
    "GgufHeader",
    "Image",
    "ImageWriter",
    "Manifest",
    "SealedModel",
    "StaleImageError",
    "Store",
    "TensorInfo",
    "parse_gguf",
    "seal_file",
]


def __getattr__(name: str) -> Any:
    for module, names in _PARTS.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
