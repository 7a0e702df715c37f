"""The device key in a process of its own: it opens and signs what the secure process needs, no more."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from flexserve.errors import CallerError, InternalError, StoredDataError
from flexserve.protocol.statuses import Abilities
from flexserve.trusted.sidecar import start_key_holder
from flexserve.trusted.store import DeviceKey
from flexserve.trusted.store.held_key import HeldKey
from flexserve.trusted.store.record import Record

MODEL = b"m" * 16
ABILITIES = Abilities(
    text=True,
    vectors=True,
    encoder=False,
    causal=True,
    window=0,
    recurrent=False,
    template=True,
    tools="none",
)
RECORD = msgspec.json.encode(Record("00", "engine", 1, ABILITIES))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "device.key"


@pytest.fixture
def held(path: Path) -> Iterator[HeldKey]:
    key = HeldKey(start_key_holder(), path)
    key.wait_until_ready()
    yield key
    key.close()


def test_it_is_the_key_in_the_file_which_is_made_if_there_is_none(held: HeldKey, path: Path):
    key = DeviceKey.load(path)
    assert held.identity == key.identity
    assert held.unwrap(MODEL, key.wrap(MODEL, b"k" * 32)) == b"k" * 32
    key.verify(RECORD, held.sign(RECORD))
    held.verify(b"data", key.sign(b"data"))


def test_what_another_device_wrapped_or_signed_is_refused_and_asking_goes_on(held: HeldKey, tmp_path: Path):
    other = DeviceKey.load_or_create(tmp_path / "other" / "device.key")
    with pytest.raises(StoredDataError, match="another device"):
        held.unwrap(MODEL, other.wrap(MODEL, b"k" * 32))
    with pytest.raises(StoredDataError, match="not this device's"):
        held.verify(RECORD, other.sign(RECORD))
    assert held.sign(RECORD)


@pytest.mark.parametrize("data", [b"FLEXSEAL" + bytes(100), b"{}", RECORD[:-1], b"[" * 4000])
def test_nothing_but_a_record_is_signed(held: HeldKey, data: bytes):
    with pytest.raises(CallerError) as refused:
        held.sign(data)
    assert refused.value.code == "not_a_record"


def test_no_key_is_wrapped(held: HeldKey):
    with pytest.raises(CallerError, match="seals no models"):
        held.wrap(MODEL, b"k" * 32)


def test_a_key_that_others_may_read_is_refused_as_ever(path: Path):
    DeviceKey.load_or_create(path)
    path.chmod(0o644)
    held = HeldKey(start_key_holder(), path)
    with pytest.raises(CallerError, match="others may access it") as refused:
        held.wait_until_ready()
    assert refused.value.code == "device_key_unsafe"
    held.close()


def test_several_threads_get_their_own_answers(held: HeldKey, path: Path):
    key, wrong = DeviceKey.load(path), []

    def ask(number: int) -> None:
        mine = bytes([number]) * 32
        wrong.extend(1 for _ in range(20) if held.unwrap(MODEL, key.wrap(MODEL, mine)) != mine)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_its_end_is_told(path: Path):
    ended = threading.Event()
    held = HeldKey(start_key_holder(), path, ended.set)
    held.wait_until_ready()
    os.kill(held.pid, signal.SIGKILL)
    with pytest.raises(InternalError):
        held.sign(RECORD)
    assert ended.is_set()
    held.close()
