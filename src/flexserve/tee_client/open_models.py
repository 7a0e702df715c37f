"""The models that the application has open, by name, beside those that the store has."""

from __future__ import annotations

import itertools
import secrets
import threading
from collections.abc import Sequence

from flexserve.protocol.statuses import Abilities
from flexserve.protocol.trusted_app import Stored
from flexserve.tee_client.open_model import OpenModel
from flexserve.tee_client.services import Services
from flexserve.trusted.limits import described


class OpenModels:
    """The table of open models. Any thread may look; one thread opens and closes."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lock = threading.Lock()
        self._open: dict[str, OpenModel] = {}
        self._numbers = itertools.count()
        self._tried: dict[str, tuple[Abilities, int]] = {}  # by the model's id: what it can do, and a number

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
        entry = OpenModel(self._services, next(self._numbers), name)
        with self._lock:
            self._open[name] = entry

    def close(self, name: str, seal_until: float) -> None:
        """Close an open model; its idle KV is sealed until then (monotonic seconds)."""
        with self._lock:
            entry = self._open.pop(name)
        entry.close(seal_until)

    def is_current(self, name: str) -> bool:
        """Return whether a model is open, from the file that has its name now, and as it is to be served."""
        model_id, entry = self._services.files.manifest(name).model_id, self.get(name)
        return (
            entry is not None
            and not entry.weights.damaged
            and entry.manifest.model_id == model_id
            and entry.limits == self._services.limits.of(name)
        )

    def opens_at_once(self, name: str) -> bool:
        """Return whether a model is open, or has an image that it can be opened from."""
        return self.is_current(name) or self._services.images.has(self._services.files.manifest(name))

    def stored(self) -> Sequence[Stored]:
        """Return what the store has, open or not."""
        found = []
        for manifest in self._services.files.manifests():
            abilities, trial = self._tried.get(manifest.model_id, (None, 0))
            entry = self.get(manifest.name)
            busy = entry is not None and entry.running and entry.manifest.model_id == manifest.model_id
            limits = entry.limits if entry is not None and busy else self._services.limits.of(manifest.name)
            about = described(manifest, limits, "")
            found.append(Stored(manifest.name, manifest.size, abilities, trial, about))
        return found

    def abilities(self, name: str) -> Abilities | None:
        """Return what a model can do; None: it is not open, and nobody tried."""
        entry = self.get(name)
        known = self._tried.get(self._services.files.manifest(name).model_id)
        return known[0] if known is not None else entry.abilities if entry is not None else None

    def keep_abilities(self, entry: OpenModel, abilities: Abilities) -> None:
        """Record what a model was found to be able to do, while this process lives."""
        self._tried[entry.manifest.model_id] = abilities, secrets.randbelow(1 << 53)
