"""A download that breaks off goes on later, is never taken for a model, and costs nobody a key twice."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from sample_models import gguf_bytes, quiet

from flexserve.errors import CallerError, NormalWorldError, StoredDataError, UnknownModelError
from flexserve.trusted.store import DeviceKey, Store, files, sealing
from flexserve.trusted.store.manifest import BLOCK_SIZE, CHUNK

DATA = gguf_bytes(weights=1 << 19)  # two chunks and a bit
CHUNKS = 3


class Broken(Exception):
    """The connection ended."""


class Flow:
    """A source that ends after `lasts` chunks; what was read of it is in `read`."""

    def __init__(self, lasts: int = CHUNKS, data: bytes = DATA, identity: str = "aa" * 32) -> None:
        self.size, self.identity = len(data), identity
        self._data, self._lasts = data, lasts
        self.read: list[int] = []
        self.seen = hashlib.sha256()
        self.wanted = ""

    def read_into(self, offset: int, target: memoryview) -> None:
        if offset >= self._lasts * CHUNK:
            raise Broken
        self.read.append(offset)
        target[:] = self._data[offset : offset + len(target)]

    def saw(self, text: memoryview) -> None:
        self.seen.update(text)

    def check(self, digest: str, /) -> None:
        assert digest == self.seen.hexdigest()
        if self.wanted and digest != self.wanted:
            raise CallerError("wrong")


def chunks_read(flow: Flow) -> list[int]:
    """Which chunks were read, after the header."""
    return [offset // CHUNK for offset in flow.read[1:]]


def break_off(store: Store, after: int) -> Path:
    with pytest.raises(Broken):
        store.receive(Flow(after), "m", quiet)
    return store.root / "models" / "m.part"


@pytest.mark.parametrize("after", [1, 2])
def test_what_broke_off_goes_on_where_it_was(store: Store, after: int) -> None:
    break_off(store, after)
    rest = Flow()
    assert store.receive(rest, "m", quiet).digest == hashlib.sha256(DATA).hexdigest()
    assert chunks_read(rest) == list(range(after, CHUNKS))
    store.verify("m", quiet)
    assert os.listdir(store.root / "models") == ["m.flex"]


def test_it_may_break_off_again_and_again(store: Store) -> None:
    break_off(store, 1)
    break_off(store, 1)
    break_off(store, 2)
    rest = Flow()
    store.receive(rest, "m", quiet)
    assert chunks_read(rest) == [2]


def test_its_next_try_encrypts_under_another_key(store: Store) -> None:
    first = break_off(store, 2).read_bytes()
    second = break_off(store, 2).read_bytes()
    starts = range(BLOCK_SIZE, len(first) - 64, 4096)
    assert all(first[at : at + 64] != second[at : at + 64] for at in starts)


@pytest.mark.parametrize("change", [{"identity": "bb" * 32}, {"data": gguf_bytes(weights=1 << 18)}])
def test_another_source_starts_anew(store: Store, change: dict[str, str | bytes]) -> None:
    break_off(store, 2)
    other = Flow(**change)  # type: ignore[arg-type]
    store.receive(other, "m", quiet)
    assert chunks_read(other)[0] == 0
    store.verify("m", quiet)


def damage_the_block(part: Path) -> None:
    part.write_bytes(b"\0" + part.read_bytes()[1:])


def cut_the_last_chunk(part: Path) -> None:
    os.truncate(part, part.stat().st_size - 1000)


def change_the_last_chunk(part: Path) -> None:
    data = bytearray(part.read_bytes())
    data[-1000] ^= 1
    part.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "wanted"),
    [(damage_the_block, [0, 1, 2]), (cut_the_last_chunk, [1, 2]), (change_the_last_chunk, [1, 2])],
)
def test_what_is_torn_is_fetched_again(store: Store, harm: Callable[[Path], None], wanted: list[int]) -> None:
    harm(break_off(store, 2))
    rest = Flow()
    store.receive(rest, "m", quiet)
    assert chunks_read(rest) == wanted
    store.verify("m", quiet)


def test_an_unfinished_model_is_no_model(store: Store, device: DeviceKey) -> None:
    part = break_off(store, 2)
    assert store.unfinished() == {"m": part.stat().st_size}
    assert store.list() == []
    with pytest.raises(UnknownModelError):
        store.open("m")
    assert Store(store.root, device).unfinished() == {"m": part.stat().st_size}  # a sweep leaves it


def test_a_thief_cannot_pass_an_unfinished_file_off_as_whole(store: Store) -> None:
    last = Flow()
    last.wanted = "00" * 32
    part = break_off(store, 2)
    os.link(part, part.with_name("copy"))
    with pytest.raises(CallerError, match="wrong"):  # all of it came, and it is not what was wanted
        store.receive(last, "m", quiet)
    os.rename(part.with_name("copy"), part.with_suffix(".flex"))
    with pytest.raises(StoredDataError, match="does not start as one"):
        store.open("m")


def test_what_came_whole_and_wrong_is_not_kept(store: Store) -> None:
    flow = Flow()
    flow.wanted = "00" * 32
    with pytest.raises(CallerError, match="wrong"):
        store.receive(flow, "m", quiet)
    assert os.listdir(store.root / "models") == []


def test_nobody_else_receives_it_meanwhile(store: Store) -> None:
    def again(done: int, _total: int) -> None:
        if done == CHUNK:
            with pytest.raises(CallerError, match="already") as refused:
                store.receive(Flow(), "m", quiet)
            assert refused.value.code == "pull_running"

    store.receive(Flow(), "m", again)


def test_another_process_that_begins_at_the_same_time_is_refused(store: Store) -> None:
    part = store.root / "models" / "m.part"
    ready, go_on = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with files.open_locked(part):
            os.write(ready[1], b"1")
            os.read(go_on[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    with pytest.raises(CallerError, match="already"):
        store.receive(Flow(), "m", quiet)
    assert part.exists()
    os.write(go_on[1], b"1")
    assert os.waitpid(child, 0)[1] == 0
    assert not part.exists()
    store.receive(Flow(), "m", quiet)


def test_a_try_that_ended_before_its_publication_leaves_nothing_behind(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_arguments: object) -> None:
        raise Broken

    with monkeypatch.context() as patch:
        patch.setattr(sealing, "_publish", killed)
        with pytest.raises(Broken):
            store.receive(Flow(), "m", quiet)
    rest = Flow()
    store.receive(rest, "m", quiet)
    assert chunks_read(rest) == []
    assert os.listdir(store.root / "models") == ["m.flex"]
    store.verify("m", quiet)


def test_what_finds_no_room_leaves_nothing_behind(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise NormalWorldError("full")

    monkeypatch.setattr(sealing, "require_room", full)
    with pytest.raises(NormalWorldError, match="full"):
        store.receive(Flow(), "m", quiet)
    assert store.unfinished() == {}


def test_it_is_removed_by_its_name(store: Store) -> None:
    break_off(store, 1)
    assert store.remove("m") > 0
    assert store.unfinished() == {}
    with pytest.raises(UnknownModelError):
        store.remove("m")


def test_one_that_ends_while_they_are_listed_is_none_of_them(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_off(store, 1)
    list_files = Path.glob

    def ended(folder: Path, pattern: str) -> list[Path]:
        listed = list(list_files(folder, pattern))
        store.receive(Flow(), "m", quiet)
        return listed

    monkeypatch.setattr(Path, "glob", ended)
    assert store.unfinished() == {}
    assert [model.name for model in store.list()] == ["m"]


def test_a_full_disk_keeps_what_came(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = files.write_all

    def full(fd: int, parts: list[memoryview], offset: int) -> None:
        if offset > BLOCK_SIZE + CHUNK:
            raise OSError(28, "No space left on device")
        whole(fd, parts, offset)

    with monkeypatch.context() as patch:
        patch.setattr(sealing, "write_all", full)
        with pytest.raises(NormalWorldError, match="disk is full"):
            store.receive(Flow(), "m", quiet)
    rest = Flow()
    store.receive(rest, "m", quiet)
    assert chunks_read(rest) == [1, 2]
