"""Where the chunks of a sealed model lie in its file, and a look at all of it."""

from __future__ import annotations

from pathlib import Path

from sample_models import quiet

from flexserve.trusted.store import DeviceKey, SealedModel
from flexserve.trusted.store.manifest import BLOCK_SIZE, CHUNK

STRIDE = CHUNK + 16


def use(path: Path, device: DeviceKey) -> None:
    """Read all of a sealed model in every way there is."""
    with SealedModel.open(path, device) as model:
        model.verify(quiet)
        model.header()


def chunk(data: bytes | bytearray, index: int) -> slice:
    """Return where chunk `index` lies in the file's bytes."""
    start = BLOCK_SIZE + index * STRIDE
    return slice(start, min(start + STRIDE, len(data)))
