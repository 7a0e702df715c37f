"""The models that are open, by name, beside those that the store has."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence

from flexserve.protocol.statuses import Abilities
from flexserve.protocol.trusted_app import Stored
from flexserve.trusted.limits import described
from flexserve.trusted.open_model import OpenModel, Services, require_heap, require_room
from flexserve.trusted.store.manifest import Manifest
from flexserve.trusted.store.record import Record


class OpenModels:
    """The table of open models. Any thread may look; one thread opens and closes.

    What the store says of a model, and what was found that it can do, is of the file that has its name now.
    An open model may be another one, whose file was replaced.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lock = threading.Lock()
        self._open: dict[str, OpenModel] = {}

    def __getitem__(self, name: str) -> OpenModel:
        """Return an open model. Raises KeyError where it is not open."""
        return self._open[name]

    def get(self, name: str) -> OpenModel | None:
        """Return an open model, or None."""
        with self._lock:
            return self._open.get(name)

    def all(self) -> list[OpenModel]:
        """Return all open models, those that were opened first at first."""
        with self._lock:
            return list(self._open.values())

    def open(self, name: str) -> None:
        """Open a model; raises as the port's `open`."""
        manifest = self._manifest(name)
        for file in self._services.store.files_of(manifest):
            require_room(file)
            require_heap(self._services, file)
        record = self._record(manifest)
        entry = OpenModel(self._services, name, record.abilities if record is not None else None)
        with self._lock:
            self._open[name] = entry

    def close(self, name: str, seal_until: float) -> None:
        """Close an open model; its idle KV is sealed until then (monotonic seconds)."""
        with self._lock:
            entry = self._open.pop(name)
        entry.close(seal_until)

    def is_current(self, name: str) -> bool:
        """Return whether a model is open, from the file that has its name now, and as it is to be served."""
        model_id, entry = self._manifest(name).model_id, self._open.get(name)
        limits = self._services.limits.of(name)
        return entry is not None and entry.manifest.model_id == model_id and entry.limits == limits

    def opens_at_once(self, name: str) -> bool:
        """Return whether a model is open, or has an image that it can be opened from."""
        store, fingerprint = self._services.store, self._services.engine.fingerprint
        files = store.files_of(self._manifest(name))
        return self.is_current(name) or all(
            store.derived.image_path(file, fingerprint).exists() for file in files
        )

    def stored(self) -> Sequence[Stored]:
        """Return what the store has, open or not."""
        found = []
        manifests = self._services.store.list()
        sizes = {(manifest.name, manifest.digest): manifest.size for manifest in manifests}
        for manifest in manifests:
            record = self._record(manifest)
            abilities, trial = (record.abilities, record.trial) if record is not None else (None, 0)
            entry = self._open.get(manifest.name)
            busy = entry is not None and entry.running and entry.manifest.model_id == manifest.model_id
            limits = entry.limits if entry is not None and busy else self._services.limits.of(manifest.name)
            about = described(manifest, limits, self._services.limits.draft_of(manifest.name))
            changed = manifest.adapts
            size = manifest.size + (sizes.get((changed.name, changed.digest), 0) if changed else 0)
            found.append(Stored(manifest.name, size, abilities, trial, about))
        return found

    def digests(self, name: str) -> tuple[str, str]:
        """Return the SHA-256, as hex, of an open model's GGUF and of that which it adapts ("": none)."""
        manifest = self._open[name].manifest
        return manifest.digest, manifest.adapts.digest if manifest.adapts is not None else ""

    def abilities(self, name: str) -> Abilities | None:
        """Return what a model can do; None: nobody tried.

        One that runs answers for itself, whatever has its name now.
        """
        manifest, entry = self._manifest(name), self._open.get(name)
        known: OpenModel | Record | None = entry
        if entry is None or not (entry.running or entry.manifest.model_id == manifest.model_id):
            known = self._record(manifest)
        return known.abilities if known is not None else None

    def keep_abilities(self, entry: OpenModel, abilities: Abilities) -> None:
        """Record what a model can do. Raises NormalWorldError when the disk refuses."""
        entry.abilities = abilities
        trial = 1 + secrets.randbelow(1 << 52)
        identity = self._services.engine.identity
        self._services.store.derived.keep_record(
            entry.manifest, Record(entry.manifest.model_id, identity, trial, abilities)
        )

    def _manifest(self, name: str) -> Manifest:
        return self._services.store.manifest(name)

    def _record(self, manifest: Manifest) -> Record | None:
        """Return what this engine found out about a model; None: it has not tried."""
        record = self._services.store.derived.record(manifest)
        return record if record is not None and record.engine == self._services.engine.identity else None


def latest(entries: Sequence[OpenModel]) -> OpenModel | None:
    """Return that of `entries` which the engine's work area counts as scratch of; None: there is none.

    It serves whichever model computes. It is that of the model that runs or, when none does, ran last,
    so that no idle model's scratch takes it from a running one.
    """
    return max(entries, key=lambda entry: (entry.running, entry.last_used), default=None)
