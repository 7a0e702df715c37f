"""Options of a secure world that come after its start."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from flexserve.protocol.launch import SecureOptions
from flexserve.secure_world import main

OPTIONS = SecureOptions(store=Path("/models here"), device_key=Path("/ké\udcffy"), threads=2)


def test_options_that_come_later_are_those_of_a_command_line():
    ours, theirs = socket.socketpair()
    words = ["--channel-fd", "7", "--options-fd", str(theirs.detach())]
    with ours:
        ours.sendall("\0".join(OPTIONS.words()).encode(errors="surrogateescape"))
    options = SecureOptions.parse(main._complete(words))
    assert (options.store, options.device_key, options.threads) == (OPTIONS.store, OPTIONS.device_key, 2)
    assert options.channel_fd == 7


def test_a_world_whose_options_never_come_ends():
    ours, theirs = socket.socketpair()
    ours.close()
    with pytest.raises(EOFError):
        main._complete(["--options-fd", str(theirs.detach())])


def test_a_command_line_that_has_them_all_stays_as_it_is():
    assert main._complete(OPTIONS.words()) == OPTIONS.words()
