"""What is derived of models: images, records of what a model can do, sealed KV. All can be made again.

ROOT/images/MODEL_ID-FINGERPRINT.img
ROOT/images/MODEL_ID-record.able
ROOT/kv/MODEL_ID-RANDOM.kv

A secure world inside a machine has others: MODEL_ID-inside.block (for_application), which goes with its
model; and a disk with its images and KV, ROOT/images/inside.disk (flexserve.emulator.store_disk). Without a
disk it has MODEL_ID-inside.img and MODEL_ID-inside-RANDOM.kv (flexserve.tee_client.files), which go with
their model and are neither used nor stale here.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
from pathlib import Path

from flexserve.errors import StoredDataError
from flexserve.platforms.trustzone.disk_image import DiskImage, FileBlocks
from flexserve.trusted.store.files import disk_errors, unlink
from flexserve.trusted.store.keys import Device
from flexserve.trusted.store.manifest import Manifest
from flexserve.trusted.store.record import Record, read_record, write_record

_IMAGE, _KV, _RECORD, _BLOCK = ".img", ".kv", ".able", ".block"
_INSIDE = "-inside"
INSIDE_DISK = "inside.disk"  # in ROOT/images


class DerivedFiles:
    """The derived files of one store. Thread-safe: all state is files in its two folders."""

    def __init__(self, images: Path, kv: Path, device: Device) -> None:
        self._images, self._kv, self._device = images, kv, device

    def image_path(self, manifest: Manifest, fingerprint: str) -> Path:
        """Return where the image of a model for one CPU and llama.cpp belongs."""
        digest = hashlib.sha256(fingerprint.encode()).hexdigest()[:16]
        return self._images / f"{manifest.model_id}-{digest}{_IMAGE}"

    def images(self, manifest: Manifest) -> list[Path]:
        """Return the images of a model that exist."""
        return sorted(self._images.glob(f"{manifest.model_id}-*{_IMAGE}"))

    def drop_image(self, manifest: Manifest, fingerprint: str) -> int:
        """Remove a model's image for one fingerprint; return the bytes of disk freed."""
        with disk_errors("Removing a damaged image"):
            return unlink(self.image_path(manifest, fingerprint))

    def drop_stale_images(self, manifest: Manifest, fingerprint: str) -> int:
        """Remove a model's images for other fingerprints; return the bytes of disk freed."""
        keep = self.image_path(manifest, fingerprint)
        with disk_errors("Removing stale images"):
            stale = (path for path in self.images(manifest) if path != keep and not _is_inside(path))
            return sum(map(unlink, stale))

    def record(self, manifest: Manifest) -> Record | None:
        """Return what a model was found to be able to do; None: nobody tried, or it cannot be read."""
        return read_record(self._record_path(manifest), self._device, manifest)

    def keep_record(self, manifest: Manifest, record: Record) -> None:
        """Write down what a model was found to be able to do. Raises NormalWorldError."""
        write_record(self._record_path(manifest), self._device, record)

    def _record_path(self, manifest: Manifest) -> Path:
        return self._images / f"{manifest.model_id}-record{_RECORD}"

    def kv_path(self, manifest: Manifest, name: str) -> Path:
        """Return where sealed KV of a model belongs; `name` without "-"."""
        return self._kv / f"{manifest.model_id}-{name}{_KV}"

    def kv_paths(self, manifest: Manifest) -> list[Path]:
        """Return all sealed KV of a model."""
        return sorted(self._kv.glob(f"{manifest.model_id}-*{_KV}"))

    def usable_kv_paths(self, manifest: Manifest) -> list[Path]:
        """Return the sealed KV of a model that no secure world inside a machine sealed."""
        return [path for path in self.kv_paths(manifest) if not _is_inside(path)]

    def on_inside_disk(self) -> collections.Counter[tuple[str, str]]:
        """Return the bytes that the disk of a machine has: of "weights" and "kv", by the model's id."""
        found = collections.Counter[tuple[str, str]]()
        with (
            contextlib.suppress(OSError, StoredDataError),
            FileBlocks(self._images / INSIDE_DISK) as blocks,
        ):
            for name, each in DiskImage(blocks).objects().items():
                kind, _, rest = name.partition("/")
                found[kind, rest.partition("/")[0]] += each.index_bytes + sum(one.size for one in each.pieces)
        return found

    def all(self) -> list[Path]:
        """Return the derived files of all models, and of models that are gone."""
        kinds = ((self._images, _IMAGE), (self._images, _RECORD), (self._images, _BLOCK), (self._kv, _KV))
        return [path for folder, kind in kinds for path in folder.glob(f"*{kind}")]

    def drop_all(self, *, images: bool, kv: bool) -> int:
        """Remove all images, all sealed KV, or both; return the bytes of disk freed.

        A machine's disk goes with the images, its KV with it. A machine that runs has it until it ends.
        """
        kinds = [(self._images, _IMAGE), (self._images, _BLOCK), (self._images, INSIDE_DISK)] * images
        kinds += [(self._kv, _KV)] * kv
        return sum(unlink(path) for folder, kind in kinds for path in folder.glob(f"*{kind}"))


def block_name(model_id: str) -> str:
    """Return the name, in ROOT/images, of a model's first block as the application at S-EL0 wants it."""
    return f"{model_id}{_INSIDE}{_BLOCK}"


def _is_inside(path: Path) -> bool:
    return _INSIDE in path.name
