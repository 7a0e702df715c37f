"""A real secure world that is started before its options are known."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from flexserve.errors import NormalWorldError
from flexserve.normal.process import start_early
from flexserve.normal.world import running_world
from flexserve.protocol.launch import SecureOptions

pytestmark = [pytest.mark.anyio, pytest.mark.engine]


async def test_it_serves_with_the_options_that_it_is_told(tmp_path: Path) -> None:
    options = SecureOptions(store=tmp_path / "store", device_key=tmp_path / "device.key", memory="plain")
    early = start_early()
    early.tell(options.words())
    async with running_world(options, drain=0, early=early) as world:
        assert await world.models() == []
        assert world.protection.name == "plain"
        assert (await world.report()).pid != early.process.pid  # which is its companion
    assert early.process.poll() is not None


def test_one_that_nobody_wants_ends_at_once() -> None:
    early = start_early()
    early.discard()
    assert early.process.poll() is not None


def test_one_that_died_cannot_be_told_anything() -> None:
    early = start_early()
    early.discard()
    early.options, theirs = socket.socketpair()
    theirs.close()
    with pytest.raises(NormalWorldError, match="cannot be started"):
        early.tell(["--store", "/models"])
