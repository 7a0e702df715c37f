"""The end of the world channel at which requests are answered: blocking reads, serialised writes, grants."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import msgspec

from flexserve.errors import PeerError
from flexserve.protocol import framing
from flexserve.protocol.memory import Grant, NeedMemory, Returned, Spare, WantSpare
from flexserve.protocol.messages import PROTOCOL_VERSION, Hello, ToSecure

_SEND_TIMEOUT = 30.0  # seconds; a normal world that does not read for so long is gone or hostile
_GRANT_TIMEOUT = 5.0  # seconds; no answer is a refusal
_HANDSHAKE_TIMEOUT = 30.0
_RECEIVE = 1 << 16  # bytes


class Link:
    """One Unix socket to the normal world. `send`, `request`, `spare` and `returned` are thread-safe.

    It is the `Granter` of Flex-Mem: a request for memory goes out as NeedMemory and blocks
    until the reader thread (whoever iterates `messages`) sees the answer.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sending = threading.Lock()
        self._decoder: framing.FrameDecoder[ToSecure] = framing.FrameDecoder(ToSecure)
        self._granted = threading.Condition()
        self._answers: dict[int, int | None] = {}
        self._serial = 0
        self._closed = False
        connection.settimeout(None)
        # Only sends time out: waiting for the next request may take for ever.
        seconds = int(_SEND_TIMEOUT).to_bytes(8, "little") + bytes(8)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)

    def expect_hello(self) -> None:
        """Take the first message. Raises PeerError unless it is a Hello of our version."""
        self._socket.settimeout(_HANDSHAKE_TIMEOUT)
        messages: list[ToSecure] = []
        while not messages:
            messages = self._receive()
        self._socket.settimeout(None)
        first = messages[0]
        if len(messages) != 1 or not isinstance(first, Hello):
            raise PeerError("The normal world did not begin with a handshake.", hint="Restart flexserve.")
        if first.version != PROTOCOL_VERSION:
            raise PeerError(
                f"The normal world speaks version {first.version} of the protocol, not {PROTOCOL_VERSION}.",
                hint="Install both from one release.",
            )

    def messages(self) -> Iterator[ToSecure]:
        """Yield messages until the normal world closes. Grants and Spares are taken in here and not yielded.

        Raises PeerError on a broken stream or a second Hello.
        """
        try:
            while True:
                for message in self._receive():
                    if isinstance(message, Grant):
                        self._take_grant(message)
                    elif isinstance(message, Spare):
                        self._settle(message.serial, message.size)
                    elif isinstance(message, Hello):
                        raise PeerError("A second handshake.", hint="Restart flexserve.")
                    else:
                        yield message
        except EOFError:
            return
        finally:
            with self._granted:
                self._closed = True
                self._granted.notify_all()

    def send(self, message: msgspec.Struct) -> None:
        """Send one message. Raises PeerError when the normal world is gone or does not read."""
        frame = framing.encode(message)
        try:
            with self._sending:
                self._socket.sendall(frame)
        except OSError as error:
            raise PeerError(
                f"The normal world is gone ({error.strerror}).", hint="Restart flexserve."
            ) from None

    # ---- Granter -------------------------------------------------------------------------------

    def request(self, size: int, minimum: int) -> int:
        """Ask for `size` bytes of memory; return what was granted (0: refused, or no answer in time).

        What is granted beyond `size` goes straight back.
        """
        granted = self._ask(lambda serial: NeedMemory(serial, size, minimum))
        excess = max(0, granted - size)
        if excess:
            self.returned(excess)
        return granted - excess

    def spare(self, size: int, reason: str) -> int:
        """Return how many of `size` bytes nobody needs now (0: none, or no answer in time).

        Nothing is granted by it. `reason`: what they would be for.
        """
        return min(size, self._ask(lambda serial: WantSpare(serial, size, reason)))

    def _ask(self, question: Callable[[int], msgspec.Struct]) -> int:
        """Send the question with a serial number of its own; return the size in its answer, 0 without one."""
        with self._granted:
            self._serial += 1
            serial = self._serial
            self._answers[serial] = None
        self.send(question(serial))
        with self._granted:
            self._granted.wait_for(lambda: self._closed or self._answers[serial] is not None, _GRANT_TIMEOUT)
            return self._answers.pop(serial) or 0

    def returned(self, size: int, reason: str = "") -> None:
        """Say that `size` bytes went back unasked, and why. The normal world counts."""
        if size:
            self.send(Returned(size, reason))

    def _take_grant(self, grant: Grant) -> None:
        if not self._settle(grant.serial, grant.size) and grant.size:
            # Too late, never asked for or answered already: it is not used, so it goes straight back.
            self.returned(grant.size)

    def _settle(self, serial: int, size: int) -> bool:
        """Record the answer to a question; return whether somebody waits for it."""
        with self._granted:
            waited_for = self._answers.get(serial, 0) is None
            if waited_for:
                self._answers[serial] = size
                self._granted.notify_all()
        return waited_for

    def _receive(self) -> list[ToSecure]:
        try:
            data = self._socket.recv(_RECEIVE)
        except TimeoutError:
            raise PeerError("The normal world is silent.", hint="Restart flexserve.") from None
        except OSError:
            data = b""
        if not data:
            raise EOFError
        return self._decoder.feed(data)
