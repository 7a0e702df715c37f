"""The guest's disk over a line: what it says, and when the client ends with it."""

from __future__ import annotations

import socket
import threading

import pytest

from flexserve.errors import NormalWorldError
from flexserve.tee_client.guest_disk import GuestDisk


def asked(answer: bytes) -> tuple[GuestDisk, list[bytes], list[str]]:
    """Return a disk that answers once and hangs up; what it will be asked, and why the client was ended."""
    ours, theirs = socket.socketpair()
    questions, ends = list[bytes](), list[str]()

    def serve() -> None:
        with theirs:
            questions.append(theirs.recv(100))
            theirs.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return GuestDisk(ours, memoryview(bytearray(4096)), ends.append), questions, ends


def test_a_command_is_a_line_of_words() -> None:
    disk, questions, ends = asked(b'{"1000": 512}\n')
    assert disk.disk("grant", "512", "512") == {"1000": 512}
    assert (questions, ends) == ([b"grant 512 512\n"], [])


def test_what_the_driver_refuses_is_an_error_and_the_client_goes_on() -> None:
    disk, _, ends = asked(b'{"error": "Input/output error"}\n')
    with pytest.raises(NormalWorldError) as refused:
        disk.disk("write", "1", "1")
    assert (refused.value.code, ends) == ("guest_refused", [])


@pytest.mark.parametrize(
    "answer",
    [b'{"error": "Connection timed out"}\n', b"", b"nonsense\n", b"[" * 100_000 + b"\n"],
    ids=["silent", "gone", "nonsense", "deep"],
)
def test_a_client_whose_disk_does_not_answer_any_more_ends_and_says_why(answer: bytes) -> None:
    disk, _, ends = asked(answer)
    with pytest.raises(NormalWorldError):
        disk.disk("flush")
    [why] = ends
    assert why.startswith("the disk of the machine does not answer: ")
