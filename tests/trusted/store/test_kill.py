"""SIGKILL at every system call that changes the disk: the old state or the new, never another.

A child process counts its own calls, each before and after it takes effect (a write also after
half of it), and kills itself at the n-th of these moments, for every n until it survives.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sample_models import CANARY, METADATA_CANARY, gguf_bytes, quiet

from flexserve.errors import FlexServeError
from flexserve.trusted.store import BufferSpec, DeviceKey, Image, ImageWriter, Store
from flexserve.trusted.store.manifest import CHUNK

CALLS = (
    "open", "close", "mkdir", "lockf", "pwritev", "ftruncate", "fsync", "fdatasync",
    "link", "replace", "unlink",
)  # fmt: skip
ENOUGH = 1000  # moments; more means that the child never finishes


class _Clock:
    """Counts moments and kills this process at the chosen one."""

    def __init__(self, last: int) -> None:
        self._left = last

    def tick(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        for name in CALLS:
            setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.tick()
            if name == "pwritev":
                fd, parts, offset = arguments
                half = bytes(parts[0])[: len(parts[0]) // 2]
                os.pwrite(fd, half, offset)
                self.tick()
            result = real(*arguments, **named)
            self.tick()
            return result

        return call


def survives(action: Callable[[], object], moment: int) -> bool:
    """Run `action` in a child that dies at `moment`; tell whether it came to its end."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _Clock(moment).install()
            action()
            status = 0
        finally:
            os._exit(status)
    _, raw = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(raw)
    assert code in (0, -signal.SIGKILL), f"the child failed by itself at moment {moment}"
    return code == 0


def moments(prepare: Callable[[], object], action: Callable[[], object]) -> Iterator[bool]:
    """Yield after each death of `action` (False), and after its survival (True)."""
    for moment in range(1, ENOUGH):
        prepare()
        done = survives(action, moment)
        yield done
        if done:
            assert moment > 10, "the clock counted next to nothing"
            return
    pytest.fail("the child never came to its end")


class Place:
    """A store in a folder that can be put back to how it was."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.live = folder / "live"
        self._saved = folder / "saved"
        self.key = self.live / "keys" / "device.key"
        self.root = self.live / "store"
        self.gguf = folder / "m.gguf"
        self.gguf.write_bytes(gguf_bytes(weights=CHUNK // 4))  # two chunks
        self.live.mkdir(mode=0o700)

    def store(self) -> Store:
        return Store(self.root, DeviceKey.load_or_create(self.key))

    def save(self) -> None:
        shutil.copytree(self.live, self._saved)

    def restore(self) -> None:
        shutil.rmtree(self.live)
        shutil.copytree(self._saved, self.live)

    def files(self) -> set[str]:
        return {str(path.relative_to(self.live)) for path in self.live.rglob("*") if path.is_file()}

    def check_nothing_in_clear(self) -> None:
        for path in self.live.rglob("*"):
            if path.is_file():
                data = path.read_bytes()
                assert CANARY not in data, path
                assert METADATA_CANARY.encode() not in data, path

    def check(self, *states: set[str]) -> set[str]:
        """Assert that the store is sound and in one of `states` (files of the folder)."""
        self.check_nothing_in_clear()
        store = self.store()
        assert store.damaged() == {}
        for manifest in store.list():
            store.verify(manifest.name, quiet)
        assert self.files() in states
        return self.files()

    def write_image(self, fingerprint: str) -> None:
        store = self.store()
        with store.open("a") as sealed:
            path = store.derived.image_path(sealed.manifest, "any")
            with ImageWriter(path, sealed, fingerprint, [BufferSpec("CPU", 9000)], 4096) as writer:
                content = memoryview((CANARY * 1000)[:9000])
                for index in range(3):
                    writer.write(0, index, content[index * 4096 : (index + 1) * 4096])
                writer.finish()

    def image_is(self, fingerprint: str) -> bool:
        store = self.store()
        with store.open("a") as sealed:
            try:
                image = Image.open(store.derived.image_path(sealed.manifest, "any"), sealed, fingerprint)
            except FlexServeError:
                return False
            with image:
                target = bytearray(9000)
                for index in range(3):
                    image.restore(0, index, memoryview(target)[index * 4096 : (index + 1) * 4096])
                return target == (CANARY * 1000)[:9000]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


KEY = "keys/device.key"
A, B = "store/models/a.flex", "store/models/b.flex"


def test_killed_while_making_the_device_key_and_an_empty_store(place: Place):
    place.save()
    for done in moments(place.restore, place.store):
        keys = {name for name in place.files() if name == KEY}
        before = place.key.read_bytes() if keys else None
        assert place.check({KEY}) == {KEY}
        if before is not None:
            assert place.key.read_bytes() == before, "a key that was published is the key"
        assert not done or keys


def test_killed_while_adding(place: Place):
    place.store().add(place.gguf, "a", quiet)
    place.save()
    seen = []
    for done in moments(place.restore, lambda: place.store().add(place.gguf, "b", quiet)):
        seen.append(place.check({KEY, A}, {KEY, A, B}))
        assert not done or B in seen[-1]
    assert {KEY, A} in seen
    assert seen == sorted(seen, key=len), "once published, it stays published"


def test_killed_while_removing(place: Place):
    for name in ("a", "b"):
        place.store().add(place.gguf, name, quiet)
    place.write_image("old")
    image = next(name for name in place.files() if name.endswith(".img"))
    place.save()
    seen = []
    for done in moments(place.restore, lambda: place.store().remove("a")):
        seen.append(place.check({KEY, A, B, image}, {KEY, B}))
        assert not done or seen[-1] == {KEY, B}
    assert {KEY, A, B, image} in seen


def test_killed_while_replacing_an_image(place: Place):
    place.store().add(place.gguf, "a", quiet)
    place.write_image("old")
    files = place.files()
    place.save()
    seen = []
    for done in moments(place.restore, lambda: place.write_image("new")):
        place.check(files)
        new = place.image_is("new")
        assert new or place.image_is("old")
        assert not done or new
        seen.append(new)
    assert seen == sorted(seen)
    assert not seen[0]


def test_killed_while_sweeping_after_a_kill(place: Place):
    place.store().add(place.gguf, "a", quiet)
    place.save()
    for _ in moments(place.restore, lambda: place.store().add(place.gguf, "b", quiet)):
        if place.files() > {KEY, A}:
            break  # a temporary file was left behind
    assert B not in place.files()
    shutil.rmtree(place.folder / "saved")
    place.save()
    for _ in moments(place.restore, place.store):
        place.check({KEY, A})


def test_killed_from_outside_at_any_time(place: Place):
    place.gguf.write_bytes(gguf_bytes(weights=6 * CHUNK // 4))
    place.store().add(place.gguf, "a", quiet)
    place.save()
    begin = time.monotonic()
    place.store().add(place.gguf, "b", quiet)
    whole = time.monotonic() - begin
    for step in range(25):
        place.restore()
        child = os.fork()
        if child == 0:
            try:
                place.store().add(place.gguf, "b", quiet)
            finally:
                os._exit(0)
        killer = threading.Timer(whole * step / 20, os.kill, (child, signal.SIGKILL))
        killer.start()
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # not reaped: its number is still its own
        killer.join()
        os.waitpid(child, 0)
        place.check({KEY, A}, {KEY, A, B})


def test_a_file_is_durable_before_its_name_and_its_name_before_success(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    store = place.store()
    events: list[str] = []

    def watch(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **named: Any) -> Any:
            folder = name == "fsync" and os.path.isdir(f"/proc/self/fd/{arguments[0]}")
            events.append("fsync folder" if folder else name)
            return real(*arguments, **named)

        monkeypatch.setattr(os, name, call)

    for name in ("pwritev", "fsync", "link", "replace", "unlink"):
        watch(name)
    store.add(place.gguf, "a", quiet)
    assert [event for event in events if event != "pwritev"] == ["fsync", "link", "unlink", "fsync folder"]
    assert "pwritev" not in events[events.index("fsync") :]

    events.clear()
    place.write_image("x")
    assert [event for event in events if event != "pwritev"][-4:] == [
        "fsync",
        "replace",
        "unlink",
        "fsync folder",
    ]
    assert "pwritev" not in events[events.index("replace") :]

    events.clear()
    store.remove("a")
    assert events[:2] == ["unlink", "fsync folder"]
