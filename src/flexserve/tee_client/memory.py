"""Secure memory as the trusted application has it: granted, in use, its heap."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence

from flexserve.protocol.trusted_app import Kind, Pool
from flexserve.tee_client.application import Application
from flexserve.tee_client.messages import Ask, Status

_ALL = 1 << 40  # chunks


class Memory:
    """Asks the OS for memory through the application, and gives it back. Any thread.

    Sizes are bytes, in whole chunks.
    """

    def __init__(self, app: Application) -> None:
        self._app = app
        self.chunk = app.chunk
        self._lock = threading.Lock()  # one at a time changes how much there is
        self._held = 0  # chunks that the OS has granted and not got back
        self._free = threading.Event()  # nothing is kept for the request that runs
        self._free.set()

    def chunks(self, size: int) -> int:
        """Return how many chunks `size` bytes are."""
        return -(-size // self.chunk)

    def unused(self) -> int:
        """Return the bytes that are granted and unused."""
        return self._unused() * self.chunk

    def pool(self) -> Pool:
        """Return how memory is shared out; `resident` is what the OS granted and has not got back."""
        with self._lock:
            unused = min(self._unused(), self._held)
            held = self._held
        return Pool(unused * self.chunk, (held - unused) * self.chunk, 0, held * self.chunk)

    def grant(self, size: int, minimum: int = 0) -> int:
        """Ask the OS until `size` bytes are unused, less than `minimum` of which are of no use.

        Returns how many are.
        """
        with self._lock:
            unused = self._unused()
            more = self.chunks(size) - unused
            if more > 0:
                least = max(0, min(more, self.chunks(minimum) - unused))
                now = self._app.do(Ask.GRANT, more, least).values[0]
                self._held += max(0, now - unused)
                unused = now
        return unused * self.chunk

    def give_back(self, size: int | None = None) -> int:
        """Give unused memory back to the OS (None: all); return the bytes."""
        with self._lock:
            return self._give_back(_ALL if size is None else self.chunks(size)) * self.chunk

    def adopted(self) -> None:
        """Record that the application has taken a chunk of pages in, which the OS handed over by itself."""
        with self._lock:
            self._held += 1

    def evict(self, model: int, kind: Kind, parts: Sequence[range] = (range(0),), *, keep: bool) -> int:
        """Have a model's chunks go; return the bytes. With `keep` they stay granted.

        `parts`: of weights, those that go; of another kind all do. 0 where it uses what was to go.
        """
        went = 0
        with self._lock:
            for part in parts:
                reply = self._app.ask(Ask.EVICT, model, kind, part.start, part.stop)
                if reply.status is Status.BAD:
                    break
                if reply.status is not Status.DONE:
                    raise self._app.error(Ask.EVICT, reply)
                went += min(reply.values[0], _ALL)
            return (went if keep else self._give_back(went)) * self.chunk

    def give_heap(self, size: int) -> int:
        """Have unused memory be heap; return the bytes."""
        return self._app.do(Ask.HEAP, self.chunks(size), 1).values[0] * self.chunk

    def take_heap(self, size: int) -> int:
        """Have free heap be unused memory; return the bytes."""
        return self._app.do(Ask.HEAP, self.chunks(size), 0).values[0] * self.chunk

    # ---- what is kept for a request ----------------------------------------------------------------

    def reserve(self) -> None:
        """Keep what is granted from what is brought in ahead of need, until `unreserve`."""
        self._free.clear()

    def unreserve(self) -> None:
        """Let others have what was granted and is not in use. Always safe."""
        self._free.set()

    def wait_until_free(self, seconds: float) -> bool:
        """Wait until nothing is kept for a request; return whether that came within `seconds`."""
        return self._free.wait(seconds)

    @contextlib.contextmanager
    def engaged(self) -> Iterator[None]:
        """Compute inside the block; what is left of its grants is others' after it."""
        try:
            yield
        finally:
            self.unreserve()

    # ---- under the lock ----------------------------------------------------------------------------

    def _unused(self) -> int:
        return self._app.do(Ask.POOL).values[0]

    def _give_back(self, chunks: int) -> int:
        gone = self._app.do(Ask.GIVE_BACK, chunks).values[0] if chunks else 0
        self._held = max(0, self._held - gone)
        return gone
