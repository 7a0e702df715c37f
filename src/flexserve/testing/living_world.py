"""A secure world that serves while files are added whose headers were changed.

What `flexserve add` does is done with each file: a world that serves nobody else tries it, and leaves a
record of what the model can do. Only what that record allows is asked of the world that serves; its
answers for a sound model beside must stay what they were.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter
from pathlib import Path
from types import TracebackType

from flexserve.errors import FlexServeError, PeerError
from flexserve.harness.worlds import DrivenWorld
from flexserve.protocol.launch import SecureOptions
from flexserve.protocol.statuses import Abilities
from flexserve.trusted.store import DeviceKey, Store
from flexserve.units import GIB, MIB

LARGEST = 64 * MIB  # bytes of a file that is added here
# More than the trial asks for: past a small window, and with characters that no small vocabulary has.
PROMPT = "Once there was a house, bade fo ge. Ça va, мир? 12 + 34. " * 3
TOKENS = 4
_BUDGET = GIB  # bytes that a world is granted at any time
_SOUND, _CHANGED = "sound", "changed"


@dataclasses.dataclass(slots=True)
class Served:
    """What became of the files that were added. Deaths are counted by last words."""

    tried: int = 0
    admitted: int = 0
    answered: int = 0  # of those, by the world that serves; the others it refused with an error
    too_large: int = 0
    deaths_of_trials: Counter[str] = dataclasses.field(default_factory=Counter)
    deaths_of_servers: Counter[str] = dataclasses.field(default_factory=Counter)
    wrong: int = 0  # answers for the sound model that were not the first one

    def __str__(self) -> str:
        return (
            f"{self.tried} tried ({self.too_large} were too large to be), {self.admitted} admitted, "
            f"{self.answered} answered by the world that serves; "
            f"{sum(self.deaths_of_trials.values())} deaths of worlds that try, "
            f"{sum(self.deaths_of_servers.values())} of worlds that serve, "
            f"{self.wrong} wrong answers for the sound model"
        )


class LivingWorld:
    """A store with the sound model in it, and both worlds over it. A context manager.

    `counts` is what became of the files so far.
    """

    def __init__(self, sound: Path) -> None:
        self.counts = Served()
        self._folder = tempfile.TemporaryDirectory(prefix="living-world-")
        root = Path(self._folder.name)
        self._file, self._key = root / "changed.gguf", root / "device.key"
        self._store = Store(root / "store", DeviceKey.load_or_create(self._key))
        self._store.add(sound, _SOUND, _unseen)
        self._trying, self._serving = self._world(), self._world()
        self._answer = self._sound_answer()

    def offer(self, head: bytes, size: int) -> bool:
        """Add a file, of zeros as weights behind its header; serve what is admitted.

        False: the world that serves died of it, or the sound model's answer changed.
        """
        if size > LARGEST:
            self.counts.too_large += 1
            return True
        self._file.write_bytes(head[:size])
        with self._file.open("r+b") as file:
            file.truncate(size)
        self._store.add(self._file, _CHANGED, _unseen)
        try:
            abilities = self._tried()
            return abilities is None or self._served(abilities)
        finally:
            self._store.remove(_CHANGED)

    def _tried(self) -> Abilities | None:
        """Return what the model can do by its trial; None: it is not admitted."""
        self.counts.tried += 1
        try:
            self._trying.try_model(_CHANGED)
        except PeerError as death:
            self.counts.deaths_of_trials[death.message[-200:]] += 1
            self._trying.close()
            self._trying = self._world()
        except FlexServeError:
            return None
        with self._store.open(_CHANGED) as sealed:
            record = self._store.derived.record(sealed.manifest)
        able = record is not None and (record.abilities.text or record.abilities.vectors)
        self.counts.admitted += able
        return record.abilities if record is not None and able else None

    def _served(self, abilities: Abilities) -> bool:
        try:
            try:
                if abilities.text:
                    self._serving.generate(_CHANGED, PROMPT, TOKENS)
                if abilities.vectors:
                    self._serving.vectors(self._serving.start_embedding(_CHANGED, [PROMPT]))
                self.counts.answered += 1
            except PeerError:
                raise
            except FlexServeError:
                pass  # an answer, too, as long as the others get theirs
            same = self._sound_answer() == self._answer
            self.counts.wrong += not same
        except PeerError as death:
            self.counts.deaths_of_servers[death.message[-200:]] += 1
            self._serving.close()
            self._serving = self._world()
            return False
        return same

    def _sound_answer(self) -> str:
        return self._serving.generate(_SOUND, PROMPT, TOKENS).text

    def _world(self) -> DrivenWorld:
        root = Path(self._folder.name)
        options = SecureOptions(root / "store", self._key, "plain", threads=1, context=256, chunk=65536)
        return DrivenWorld(options, budget=_BUDGET)

    def close(self) -> None:
        """End both worlds and remove the store."""
        self._trying.close()
        self._serving.close()
        self._folder.cleanup()

    def __enter__(self) -> LivingWorld:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _unseen(_done: int, _total: int) -> None:
    pass
