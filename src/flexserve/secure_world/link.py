"""The secure world's end of the world channel: blocking reads, serialised writes, grants."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import msgspec

from flexserve.errors import PeerError
from flexserve.protocol import framing
from flexserve.protocol.messages import PROTOCOL_VERSION, Grant, Hello, NeedMemory, Returned, ToSecure

_SEND_TIMEOUT = 30.0  # seconds; a normal world that does not read for so long is gone or hostile
_GRANT_TIMEOUT = 5.0  # seconds; no answer is a refusal
_HANDSHAKE_TIMEOUT = 30.0
_RECEIVE = 1 << 16  # bytes


class Link:
    """One Unix socket to the normal world. `send`, `request` and `returned` are thread-safe.

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
        """Yield messages until the normal world closes. Grants are taken in here and not yielded.

        Raises PeerError on a broken stream or a second Hello.
        """
        try:
            while True:
                for message in self._receive():
                    if isinstance(message, Grant):
                        self._answer(message)
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
        with self._granted:
            self._serial += 1
            serial = self._serial
            self._answers[serial] = None
        self.send(NeedMemory(serial, size, minimum))
        with self._granted:
            self._granted.wait_for(lambda: self._closed or self._answers[serial] is not None, _GRANT_TIMEOUT)
            granted = self._answers.pop(serial)
        excess = max(0, (granted or 0) - size)
        if excess:
            self.returned(excess)
        return (granted or 0) - excess

    def returned(self, size: int) -> None:
        """Say that `size` bytes went back unasked. The normal world counts."""
        if size:
            self.send(Returned(size))

    def _answer(self, grant: Grant) -> None:
        with self._granted:
            waited_for = self._answers.get(grant.serial, 0) is None
            if waited_for:
                self._answers[grant.serial] = grant.size
                self._granted.notify_all()
        if not waited_for and grant.size:
            # Too late, never asked for or answered already: it is not used, so it goes straight back.
            self.returned(grant.size)

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
