"""Sealed models: the .flex container, derived images, the local store, device keys."""

from flexserve.secure.models.container import SealedModel, seal
from flexserve.secure.models.gguf import GgufHeader, TensorInfo, parse_gguf
from flexserve.secure.models.image import BufferSpec, Image, ImageWriter, StaleImageError
from flexserve.secure.models.keys import DeviceKey
from flexserve.secure.models.manifest import Manifest
from flexserve.secure.models.store import Store

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
    "seal",
]
