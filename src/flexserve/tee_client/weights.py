"""The weights of one model: which of their chunks are in secure memory, and how they come and go."""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
import time
from collections.abc import Callable, Sequence

from flexserve.errors import FlexServeError, GrantRefusedError, StoredDataError
from flexserve.protocol.trusted_app import Kind
from flexserve.tee_client.application import REFUSED_HINT
from flexserve.tee_client.files import SealedFile
from flexserve.tee_client.images import Image
from flexserve.tee_client.messages import Ask, Reply, Status, broken, unpacked
from flexserve.tee_client.ordered_chunks import OrderedChunks
from flexserve.tee_client.services import Services
from flexserve.trusted.store.manifest import Manifest
from flexserve.units import format_size

_ABSENT, _RESIDENT = 0, 2  # places in CHUNK_STATES
_MOST_CHUNKS = 1 << 16
_MOST_DOUBLED = 5


class Weights:
    """Chunks of weights. Any thread, but for `open_image`.

    Sizes are bytes, in whole chunks. What is there is counted here; the application is asked only when it
    says otherwise.
    """

    def __init__(self, services: Services, manifest: Manifest, number: int, count: int) -> None:
        """`number`: of the open model, which has `count` chunks and none of them in memory."""
        if count > _MOST_CHUNKS:
            raise broken("a model has more chunks than any")
        self._app, self._memory, self._images = services.app, services.memory, services.images
        self._streaming = services.streaming
        self._manifest, self._number = manifest, number
        self.count, self.size = count, count * services.memory.chunk
        self._lock = threading.Lock()
        self._chunks = OrderedChunks(count)
        self._changes = 0  # evictions so far: what is looked at meanwhile may be gone
        self._image: Image | None = None
        self.damaged = False  # its image is not what was sealed: the model has to be opened again
        self.loaded, self.seconds = 0, 0.0  # bytes that were loaded so far, and the time of threads that took
        self.waited = 0.0  # seconds for which computing stood waiting for them

    # ---- where they come from ----------------------------------------------------------------------

    def open_image(self, file: SealedFile, beside: int) -> None:
        """Have an image of them; make it from the model's file where there is none.

        They are in memory then, and `beside` bytes more are granted, which computing takes. Raises
        GrantRefusedError, StoredDataError and NormalWorldError.
        """
        image = self._images.open(file.manifest)
        if image is None or image.count != self.count:
            self._write(file, beside)
            self._images.make(file.manifest, self._number, self.count)
            image = self._images.open(file.manifest)
        if image is None or image.count != self.count:
            raise StoredDataError("The image of a model's weights cannot be read.", hint="Check the disk.")
        self._image = image
        self._app.do(Ask.IMAGE, self._number, payload=image.salt)

    def _write(self, file: SealedFile, beside: int) -> None:
        granted, needed = self._memory.grant(self.size + beside), self.size + beside
        if granted < needed:  # writing takes minutes, and computing would end in the same error
            raise GrantRefusedError(
                f"{self._manifest.name} takes {format_size(needed)} of memory at its first use: "
                f"{format_size(self.size)} for its weights, {format_size(beside)} to compute. The OS of the "
                f"machine grants {format_size(granted)}.",
                hint=REFUSED_HINT,
                missing=needed - granted,
            )
        for number in file.data:
            write = functools.partial(
                self._app.ask, Ask.WRITE, self._number, number, payload=file.chunk(number)
            )
            self._granted(Ask.WRITE, write)
        self.look()
        if not self.whole:
            raise broken("weights that were written are not there")

    def close(self) -> None:
        """Let go of the image. Always safe."""
        if self._image is not None:
            self._image.close()

    # ---- what is there -----------------------------------------------------------------------------

    @property
    def resident(self) -> int:
        """Bytes that are in memory."""
        return self._chunks.resident * self._memory.chunk

    @property
    def whole(self) -> bool:
        """Whether all of them are in memory."""
        return self._chunks.resident == self.count

    def states(self) -> Sequence[tuple[int, int]]:
        """Return the states of the chunks, in their order, as pairs of a state and a count."""
        return [(_RESIDENT if there else _ABSENT, count) for there, count in self._chunks.states()]

    def look(self) -> None:
        """Ask what is there. Raises PeerError."""
        with self._lock:
            before = self._changes
        there = self._app.do(Ask.RESIDENT, self._number).payload
        if len(there) != self.count:
            raise broken("what it says of a model's chunks is none")
        with self._lock:
            if before == self._changes:
                self._chunks.found([each == 1 for each in there])

    # ---- loading and eviction ----------------------------------------------------------------------

    def load(self) -> None:
        """Bring in what is not there, asking the OS for memory.

        Raises GrantRefusedError, what came before stays; StoredDataError for an image that is damaged, and
        which is removed: the model has to be opened again.
        """
        began = time.monotonic()
        try:
            self._streaming.load(self)
        finally:
            self.waited += time.monotonic() - began

    def claim(self, count: int | None = None) -> int | None:
        """Return the chunk that is read first of those that are missing and not on their way; None: none is.

        Who asks has to load it. `count`: look at no more than so many.
        """
        with self._lock:
            return self._chunks.claim(count)

    def _learn_order(self) -> None:
        """Ask in which order graphs read them: its first one tells, also while it waits for them."""
        if self._chunks.known:
            return
        read = unpacked(self._app.do(Ask.ORDER, self._number).payload)
        with self._lock:
            try:
                if read:
                    self._chunks.learn(read)
            except ValueError:
                raise broken("it reads chunks that are none") from None

    def load_claimed(self, chunk: int, *, ask: bool = True) -> None:
        """Load a chunk that was claimed; `ask`: the OS for memory, too. Raises as `load`."""
        try:
            self._learn_order()
            self._load(chunk, ask=ask)
        except BaseException:
            with self._lock:
                self._chunks.failed(chunk)
            raise
        finally:
            self._streaming.notice()

    def load_next(self, count: int) -> bool:
        """Bring in the next of the first `count` chunks; False: they are there, or on their way.

        Raises as `load`, and asks the OS for nothing.
        """
        chunk = self.claim(count)
        if chunk is not None:
            self.load_claimed(chunk, ask=False)
        return chunk is not None

    def _load(self, chunk: int, *, ask: bool) -> None:
        assert self._image is not None, "it has no image"
        image, began = self._image, time.monotonic()
        try:
            self._granted(Ask.LOAD, lambda: image.load(self._number, chunk, ask=ask), ask=ask)
        except StoredDataError:
            self.damaged = True
            with contextlib.suppress(FlexServeError):  # a disk that cannot be read may not be written, either
                self._images.drop(self._manifest)
            raise
        with self._lock:
            if not self._chunks.came(chunk):
                self._changes += 1
                self._memory.evict(self._number, Kind.WEIGHTS, [range(chunk, chunk + 1)], keep=False)
            self.loaded += self._memory.chunk
            self.seconds += time.monotonic() - began

    def _granted(self, kind: Ask, work: Callable[[], Reply], *, ask: bool = True) -> None:
        """Do what takes memory; what is not granted is asked of the OS. Raises GrantRefusedError."""
        for tries in itertools.count():
            reply = work()
            if reply.status is Status.DONE or (kind is Ask.LOAD and reply.status is Status.BAD):
                return  # another thread has loaded it
            error = self._app.error(kind, reply)
            if not (ask and isinstance(error, GrantRefusedError)):
                raise error
            unused = self._memory.unused()  # each time more is asked for: it says what it lacks at least
            more = error.missing << min(tries, _MOST_DOUBLED)
            if self._memory.grant(unused + more, unused + error.missing) <= unused:
                raise error

    def evict(self, size: int, *, keep: bool) -> int:
        """Give about `size` bytes up, what graphs read last first; return the bytes. `keep`: stay granted."""
        self._learn_order()
        with self._lock:
            self._changes += 1
            parts = self._chunks.give_up(self._memory.chunks(min(size, self.size)))
            went = self._memory.evict(self._number, Kind.WEIGHTS, parts, keep=keep)
        if not went:
            self.look()  # none of them were there, or it did not do it
        self._streaming.notice()
        return went
