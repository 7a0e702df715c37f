"""The local store: sealed models by name.

    ROOT/models/NAME.flex
    ROOT/models/NAME.part                     a model that is not whole yet (sealing.py)
    ROOT/models/NAME.ledger, MODEL_ID.licence   of a vendor's model (licences.py)
    ROOT/images, ROOT/kv                        what is derived of models (derived.py)

A model exists exactly as long as its .flex file has its name: adding publishes that one file,
removing unlinks it. Everything else is left over and swept when a store is opened: temporary
files of writers that were killed, and images and sealed KV whose model is gone. Several processes may use one
store at once.
"""

from __future__ import annotations

import builtins
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from flexserve.attestation.licence import Licence
from flexserve.errors import CallerError, NormalWorldError, StoredDataError, UnknownModelError
from flexserve.private_files import refuse_shared
from flexserve.trusted.store.container import Progress, SealedModel, read_manifest
from flexserve.trusted.store.derived import DerivedFiles
from flexserve.trusted.store.files import (
    disk_errors,
    make_folder,
    on_disk,
    open_locked,
    sweep,
    sync_folder,
    unlink,
)
from flexserve.trusted.store.keys import Device
from flexserve.trusted.store.licences import LICENCE, licence_path, terms
from flexserve.trusted.store.manifest import Manifest, check_name, is_name, name_from
from flexserve.trusted.store.sealing import Base, Part, name_taken, seal
from flexserve.trusted.store.source import FileSource, Source
from flexserve.trusted.store.split import JoinedSource, part_names, whole_name

_MODEL, _PART = ".flex", ".part"
_NAMES_IN_HINT = 10
_MANIFESTS = 256  # that are remembered
_Stamp = tuple[int, int, int, int, int]


class Usage(msgspec.Struct, frozen=True):
    """Bytes on the disk that are of one model."""

    sealed: int = 0
    images: int = 0
    kv: int = 0
    unfinished: int = 0


class Store:
    """The models of this device. Thread-safe: all state is files in `FOLDERS` of its root.

    What is remembered of them is only ever what they say now.
    """

    FOLDERS = ("models", "images", "kv")

    def __init__(self, root: Path, device: Device) -> None:
        """Open the store in `root`, creating it (mode 0700) and sweeping leftovers.

        Raises NormalWorldError when the disk refuses, CallerError (code "store_unsafe") when others could
        put files into it.
        """
        self.root = root
        self._device = device
        self._manifests: dict[str, tuple[_Stamp, Manifest]] = {}  # that were verified, and of which file
        self._terms: dict[str, tuple[tuple[_Stamp, _Stamp | None], Licence | None]] = {}
        self._models, images, kv = self.make_folders(root)
        self.derived = DerivedFiles(images, kv, device)
        for folder in (self._models, images, kv):
            sweep(folder)
        self._sweep_orphans()

    @classmethod
    def make_folders(cls, root: Path) -> builtins.list[Path]:
        """Make what is missing of the store's folders, mode 0700; return them.

        Raises NormalWorldError, and CallerError (code "store_unsafe") when others could write into them.
        """
        folders = [root / name for name in cls.FOLDERS]
        for folder in folders:
            make_folder(folder)
        for folder in (root, *folders):
            refuse_shared(folder, f"The store {root}", code="store_unsafe")
        return folders

    def add(
        self,
        file: Path,
        name: str | None,
        progress: Progress,
        *,
        sha256: str = "",
        adapter_of: str | None = None,
        scale: float = 1.0,
    ) -> Manifest:
        """Seal the GGUF `file` as `name` (None: after its file name); return its manifest.

        The parts of a split model are joined; `file` is any of them. `sha256`: what the digest of a whole
        file has to be ("": whatever it is). `adapter_of`: it is a LoRA adapter, which changes that model by
        `scale` times what it was trained to. `progress(done, total)` is called in bytes. Raises CallerError
        for a name that is not allowed or taken and for a file that is not a usable GGUF, NormalWorldError
        when the disk refuses (code "disk_full" when it is full); the store is unchanged then. Of the model
        `adapter_of`, raises as `open`.
        """
        name = check_name(name) if name is not None else _name_after(file)
        path = self._free(name)
        with contextlib.ExitStack() as stack:
            parts = [
                stack.enter_context(FileSource(file.with_name(part), sha256))
                for part in part_names(file.name)
            ]
            source = JoinedSource(parts) if len(parts) > 1 else parts[0]
            base = self._base(adapter_of, scale) if adapter_of is not None else None
            return seal(source, path, name, self._device, progress, base=base)

    def receive(self, source: Source, name: str, progress: Progress) -> Manifest:
        """Seal what `source` brings as `name`, as `add`; the next call goes on where this one failed.

        Raises CallerError (code "pull_running") while another process receives a model of that name.
        """
        path = self._free(check_name(name))
        part = Part(path.with_suffix(_PART), self._device)
        return seal(source, path, name, self._device, progress, part=part)

    def unfinished(self) -> dict[str, int]:
        """Return the bytes on disk of each model that `receive` began and did not end, by name."""
        found: dict[str, int] = {}
        with disk_errors(f"Listing {self._models}"):
            for path in sorted(self._models.glob(f"*{_PART}")):
                with contextlib.suppress(FileNotFoundError):  # published or removed since it was listed
                    found[path.stem] = path.stat().st_size
        return found

    def _free(self, name: str) -> Path:
        """Return where the model `name` will be. Raises CallerError when there is one."""
        path = self._path(name)
        if os.path.lexists(path):
            raise name_taken(name)
        return path

    def _base(self, name: str, scale: float) -> Base:
        with self.open(name) as sealed:
            if sealed.manifest.adapts is not None:
                raise CallerError(
                    f"{name} is an adapter itself.",
                    hint=f"Name the model that it changes: {sealed.manifest.adapts.name}.",
                )
            return Base(sealed.manifest, sealed.header(), scale)

    def files_of(self, manifest: Manifest) -> builtins.list[Manifest]:
        """Return the manifests of the files that a model is opened from: an adapter's model comes last.

        Raises UnknownModelError (code "base_missing") when the store has that one no more, else as `open`.
        """
        if manifest.adapts is None:
            return [manifest]
        name = manifest.adapts.name
        if os.path.lexists(self._path(name)):
            with self.open(name) as sealed:
                if sealed.manifest.digest == manifest.adapts.digest:
                    return [manifest, sealed.manifest]
        raise UnknownModelError(
            f"{manifest.name} is an adapter of a model that is not here any more as {name!r}.",
            hint=f"Add that model again, as {name}, from the same file; or remove the adapter.",
            code="base_missing",
        )

    def list(self) -> builtins.list[Manifest]:
        """Return the manifests of all sound models, by name; `damaged` has the others."""
        return [entry for _, entry in self._scan() if isinstance(entry, Manifest)]

    def damaged(self) -> dict[str, StoredDataError]:
        """Return what is wrong with each model that `open` would refuse, by name."""
        return {name: entry for name, entry in self._scan() if isinstance(entry, StoredDataError)}

    def open(
        self, name: str, *, scratch: memoryview | None = None, read: Callable[[], None] = lambda: None
    ) -> SealedModel:
        """Open the model `name`; see SealedModel.open for `scratch` and `read`.

        Raises UnknownModelError when there is none, else as SealedModel.open.
        """
        model = SealedModel.open(self._existing(name), self._device, scratch=scratch, read=read)
        if model.manifest.name != name:
            model.close()
            raise _renamed(name)
        return model

    def manifest(self, name: str) -> Manifest:
        """Return the manifest of the model `name`. Raises as `open`, which is done when its file changed.

        A vendor's model is not opened for it.
        """
        stamp = _stamp(self._existing(name))
        known = self._manifests.get(name)
        if known is None or known[0] != stamp:
            known = stamp, self._checked(name)
            if len(self._manifests) >= _MANIFESTS:
                self._manifests.clear()
            self._manifests[name] = known
        return known[1]

    def _checked(self, name: str) -> Manifest:
        manifest = read_manifest(self._existing(name), self._device)
        if manifest.vendor is None or manifest.name != name:
            with self.open(name) as model:
                return model.manifest
        return manifest

    def licence(self, name: str) -> Licence | None:
        """Return the licence of the model `name`, as its vendor signed it; None: this device sealed it.

        Raises as `manifest` and licences.terms.
        """
        return terms(self._existing(name), self.manifest(name))

    def terms(self, name: str) -> Licence | None:
        """Return what `licence` does, but judged: the model is opened for it whenever a file changed.

        Raises as `open`. In a secure world only.
        """
        path, manifest = self._existing(name), self.manifest(name)
        if manifest.vendor is None:
            return None
        file = licence_path(path, manifest)
        stamp = _stamp(path), _stamp(file) if os.path.lexists(file) else None
        known = self._terms.get(name)
        if known is None or known[0] != stamp:
            with self.open(name) as model:
                known = self._terms[name] = stamp, model.licence
        return known[1]

    def verify(self, name: str, progress: Progress) -> None:
        """Check every byte of the model `name`. Raises StoredDataError, or as `open`."""
        with self.open(name) as model:
            model.verify(progress)

    def require(self, name: str) -> None:
        """Raise UnknownModelError when there is no model `name`, sound or not or not whole."""
        if name not in self.unfinished():
            self._existing(name)

    def remove(self, name: str) -> int:
        """Remove the model `name`, sound or not or not whole, and its images; return the bytes of disk freed.

        Raises UnknownModelError when there is none, NormalWorldError when the disk refuses.
        """
        with disk_errors(f"Removing {name}"):
            unfinished = self._path(name).with_suffix(_PART) if name in self.unfinished() else None
            freed = unlink(unfinished) if unfinished is not None else 0
            if unfinished is None or os.path.lexists(self._path(name)):
                freed += unlink(self._existing(name))
            sync_folder(self._models)
        return freed + self._sweep_orphans()

    def usage(self) -> dict[str, Usage]:
        """Return what each model takes, by name; images and KV of damaged models are counted nowhere."""
        inside = self.derived.on_inside_disk()
        found = {}
        for name, entry in self._scan():
            images = kv = 0
            if isinstance(entry, Manifest):
                images = sum(map(on_disk, self.derived.images(entry))) + inside["weights", entry.model_id]
                kv = sum(map(on_disk, self.derived.kv_paths(entry))) + inside["kv", entry.model_id]
            found[name] = Usage(sealed=on_disk(self._path(name)), images=images, kv=kv)
        for name in self.unfinished():
            if part := on_disk(self._path(name).with_suffix(_PART)):
                found[name] = msgspec.structs.replace(found.get(name, Usage()), unfinished=part)
        return dict(sorted(found.items()))

    def collect(self, *, images: bool, kv: bool, unfinished: bool) -> int:
        """Remove what belongs to no model, and the named kinds of what can be made again.

        Returns the bytes of disk freed. An unfinished model that somebody pulls now stays.
        """
        freed = self._sweep_orphans()
        with disk_errors(f"Cleaning up {self.root}"):
            freed += self.derived.drop_all(images=images, kv=kv)
        for name in self.unfinished() if unfinished else ():
            part = self._path(name).with_suffix(_PART)
            with contextlib.suppress(CallerError), open_locked(part), disk_errors(f"Removing {name}"):
                freed += unlink(part)
        return freed

    def _path(self, name: str) -> Path:
        return self._models / f"{name}{_MODEL}"

    def _names(self) -> builtins.list[str]:
        with disk_errors(f"Listing {self._models}"):
            files = sorted(os.listdir(self._models))
        return [file.removesuffix(_MODEL) for file in files if _is_model(file)]

    def _existing(self, name: str) -> Path:
        if is_name(name) and os.path.lexists(self._path(name)):
            return self._path(name)
        known = self._names()
        shown = ", ".join(known[:_NAMES_IN_HINT]) + (" …" if len(known) > _NAMES_IN_HINT else "")
        hint = (
            f"The store has: {shown}."
            if known
            else "Get one: `flexserve pull`, or `flexserve add FILE.gguf`."
        )
        raise UnknownModelError(f"There is no model named {name[:64]!r}.", hint=hint)

    def _scan(self) -> Iterator[tuple[str, Manifest | StoredDataError]]:
        for name in self._names():
            path = self._path(name)
            try:
                manifest = read_manifest(path, self._device)
                yield name, manifest if manifest.name == name else _renamed(name)
            except StoredDataError as error:
                yield name, error
            except NormalWorldError:
                if os.path.lexists(path):  # not merely removed since it was listed
                    raise

    def _sweep_orphans(self) -> int:
        """Remove images, sealed KV and licences without a model; return the bytes of disk freed.

        While a model cannot be read what is its cannot be told from orphans: all is kept then.
        """
        # These first: the model of an image that exists now was added before, so it is listed.
        with disk_errors(f"Cleaning up {self.root}"):
            owned = [*self.derived.all(), *self._models.glob(f"*{LICENCE}")]
        entries = [entry for _, entry in self._scan()] if owned else []
        owners = {entry.model_id for entry in entries if isinstance(entry, Manifest)}
        if len(owners) < len(entries):
            return 0
        orphans = [path for path in owned if path.stem.split("-")[0] not in owners]
        with disk_errors(f"Cleaning up {self.root}"):
            return sum(unlink(path) for path in orphans)


def _stamp(path: Path) -> _Stamp:
    """Return what is another one when the file at `path` is, or was written to."""
    with disk_errors(f"Looking at {path.name}"):
        it = os.stat(path, follow_symlinks=False)
    return it.st_dev, it.st_ino, it.st_size, it.st_mtime_ns, it.st_ctime_ns


def _is_model(file: str) -> bool:
    return file.endswith(_MODEL) and is_name(file.removesuffix(_MODEL))


def _name_after(source: Path) -> str:
    try:
        return name_from(Path(whole_name(source.name)).stem)
    except CallerError:
        FileSource(source).close()  # that there is no such file (an unexpanded "*") matters more
        raise


def _renamed(name: str) -> StoredDataError:
    return StoredDataError(
        f"The file of {name} holds a model of another name.",
        hint="Give the file its old name back, or remove the model and add it again.",
    )
