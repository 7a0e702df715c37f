"""Models inside of the machine have weights and KV on the disk of its guest, which may be lost, or lie."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conversations import MODEL
from inside_machines import ANSWER, QUESTION, TOKENS, client_of, conserved, machines
from library import Library

from flexserve.emulator.inner_core import InnerCore
from flexserve.errors import FlexServeError, NormalWorldError, StoredDataError
from flexserve.harness.worlds import DrivenWorld
from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.disk_image import SLOT, SLOT_PAGES, DiskImage, FileBlocks, StoredObject
from flexserve.platforms.trustzone.ram import BASE, PAGE, Ram
from flexserve.protocol.prompts import TextPrompt
from flexserve.testing.trustzone import eventually
from flexserve.units import MIB

pytestmark = [pytest.mark.vm, pytest.mark.engine]

PROMPT = "Flex-Mem is recallable secure memory. What is Flex-Mem? " * 3


class Scene:
    """A store of its own, machines with its disk, and a client of one."""

    def __init__(self, library: Library, core: InnerCore) -> None:
        self.library, self.core = library, core
        self.world: DrivenWorld
        self._life = contextlib.ExitStack()

    def start(self) -> DrivenWorld:
        """Have a client on a machine that was just booted."""
        self._life.close()
        self.world = self._life.enter_context(client_of(self.core, self.library))
        return self.world

    def end(self) -> None:
        self._life.close()

    def ask(self) -> str:
        return self.world.chat("tiny", QUESTION, TOKENS).text

    def converse(self) -> str:
        """Have the beginning of a conversation; return what is said."""
        return self.world.result(
            self.world.submit("tiny", TextPrompt(PROMPT), 8, owner="me", reuse=True)
        ).text

    def forget(self) -> None:
        """Have the machine's kernel get all memory back."""
        self.world.recall(None)
        assert eventually(lambda: self.core.machine.monitor().pages["SECURE"] < 40 << 20)

    def read(self) -> int:
        """Return how many pages the disk has read and written so far."""
        return self.core.machine.agent.ask("flexmem")["disk_pages"]

    @property
    def file(self) -> Path:
        return self.library.root / "images" / "inside.disk"

    def object(self, kind: str) -> StoredObject:
        """Return the one object of a kind that the disk has."""
        with FileBlocks(self.file) as blocks:
            [found] = [
                each for name, each in DiskImage(blocks).objects().items() if name.startswith(f"{kind}/")
            ]
        return found

    def slot(self, number: int) -> bytes:
        with FileBlocks(self.file) as blocks:
            return blocks.read(number * SLOT_PAGES, SLOT_PAGES)

    def put(self, number: int, data: bytes) -> None:
        with FileBlocks(self.file) as blocks:
            blocks.write(number * SLOT_PAGES, data)


@contextlib.contextmanager
def scene_in(folder: Path) -> Iterator[Scene]:
    library = Library(folder)
    library.add(MODEL, "tiny")
    with machines(library) as core:
        scene = Scene(library, core)
        try:
            yield scene
        finally:
            scene.end()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene_in(tmp_path_factory.mktemp("inside-disk")) as scene:
        scene.start()
        yield scene


def test_weights_come_from_the_disk_and_no_file_of_the_host_has_them(scene: Scene) -> None:
    assert scene.ask().startswith(ANSWER)
    weights = scene.object("weights")
    scene.forget()
    before = scene.read()
    assert scene.ask().startswith(ANSWER)
    assert scene.read() - before >= len(weights.pieces) * SLOT_PAGES
    names = [path.name for path in scene.library.images() if not path.name.endswith(".block")]
    assert names == ["inside.disk"]
    assert scene.file.stat().st_blocks * 512 < 4 * MODEL.stat().st_size
    assert conserved(scene.core)


def test_an_idle_model_makes_way_for_pages_that_the_disk_reads_to(tmp_path: Path) -> None:
    library, ram = Library(tmp_path), 384 * MIB
    for model in ("one", "another", "last"):
        library.add(MODEL, model)
    with machines(library, ram=ram) as core, client_of(core, library) as world:
        for model in ("one", "another", "last"):
            assert world.chat(model, QUESTION, TOKENS).text.startswith(ANSWER)
        world.recall(None)
        for model in ("one", "another"):
            assert world.chat(model, QUESTION, TOKENS).text.startswith(ANSWER)
        agent = core.machine.agent
        # Its kernel keeps all but 1 to 2 % from now on, which is less than the weights are. What it has
        # varies by as much, so the two that are idle have more than the last one needs.
        memory, said = agent.ask("meminfo"), agent.ask("read", "/proc/meminfo")["text"]
        free = re.search(r"CmaFree: *(\d+)", said)
        for_others = int(free[1]) * 1024 if free else 0  # what can be moved
        reserve = 100 * (memory["available"] - for_others) // memory["total"] - 1
        agent.ask("write", "/sys/module/flexmem/parameters/reserve_percent", str(reserve))
        for model in ("last", "one", "last"):
            assert world.chat(model, QUESTION, TOKENS).text.startswith(ANSWER)
        found = {each.name: each.resident / each.weights for each in world.status().models}
        assert min(found["one"], found["another"]) < found["last"] == 1
        assert sum(core.machine.monitor().pages.values()) == ram


def test_kv_goes_to_the_disk_and_the_next_machine_goes_on_from_it(scene: Scene) -> None:
    said = scene.converse()
    assert eventually(lambda: scene.world.status().kv.sealed > 0, within=60)
    assert list((scene.library.root / "kv").iterdir()) == []
    assert PROMPT.encode()[:20] not in scene.slot(scene.object("kv").pieces[0].slot)
    world = scene.start()
    more = TextPrompt(f"{PROMPT}{said} More.")
    before = scene.read()
    found = world.result(world.submit("tiny", more, 8, owner="me", reuse=True))
    assert found.finished.usage.cached_tokens > 32
    assert scene.read() > before
    fresh = world.result(world.submit("tiny", more, 8, owner="another"))
    assert fresh.finished.usage.cached_tokens == 0
    assert found.text == fresh.text


Lie = Callable[[Scene, list[int]], dict[int, bytes]]  # of the weights' slots; what is there then


def wrong(scene: Scene, slots: list[int]) -> dict[int, bytes]:
    data = bytearray(scene.slot(slots[1]))
    data[SLOT // 2] ^= 1
    return {slots[1]: bytes(data)}


def swapped(scene: Scene, slots: list[int]) -> dict[int, bytes]:
    return {slots[0]: scene.slot(slots[1]), slots[1]: scene.slot(slots[0])}


def torn(scene: Scene, slots: list[int]) -> dict[int, bytes]:
    return {slots[1]: scene.slot(slots[1])[: SLOT // 2].ljust(SLOT, b"\0")}


def stale(scene: Scene, slots: list[int]) -> dict[int, bytes]:
    """The same weights, as an earlier image had them."""
    before = [scene.slot(slot) for slot in slots]
    scene.put(slots[0], bytes(SLOT))
    with pytest.raises(StoredDataError):
        scene.ask()
    scene.ask()  # another image is made
    scene.forget()
    after = [piece.slot for piece in scene.object("weights").pieces]
    return dict(zip(after, before, strict=True))


@pytest.mark.parametrize("lie", [wrong, swapped, torn, stale], ids=lambda lie: lie.__name__)
def test_what_a_disk_lies_about_fails_one_request_and_is_made_anew(scene: Scene, lie: Lie) -> None:
    assert scene.ask().startswith(ANSWER)
    scene.forget()
    slots = [piece.slot for piece in scene.object("weights").pieces]
    for slot, data in lie(scene, slots).items():
        scene.put(slot, data)
    with pytest.raises(StoredDataError):
        scene.ask()
    assert scene.ask().startswith(ANSWER)
    scene.forget()
    before = scene.read()
    assert scene.ask().startswith(ANSWER)
    assert scene.read() > before
    assert conserved(scene.core)


def test_a_disk_writes_to_no_page_of_a_models(scene: Scene) -> None:
    assert scene.ask().startswith(ANSWER)
    machine = scene.core.machine
    machine.agent.ask("load", "flexattack")
    states = bytes(machine._mailbox().states)
    page = BASE // PAGE + states.index(abi.PageState.SECURE)
    ram = Ram(machine.ram_fd)
    before = ram.window(page * PAGE - BASE, PAGE).tobytes()
    report = machine.agent.ask("attack", "disk-read", str(page * PAGE), "/dev/vda", "1")
    assert report["broken"] == 0
    assert ram.window(page * PAGE - BASE, PAGE).tobytes() == before
    scene.forget()
    assert machine.monitor().faults > 0
    assert scene.ask().startswith(ANSWER)


def test_a_disk_that_does_not_answer_ends_the_client_and_the_next_machine_answers(scene: Scene) -> None:
    scene.start()
    assert scene.ask().startswith(ANSWER)
    scene.forget()
    machine = scene.core.machine
    machine.agent.ask("write", "/sys/module/flexmem/parameters/disk_ms", "1000")
    machine.agent.ask("load", "flexattack")
    states = bytes(machine._mailbox().states)
    pair = BASE // PAGE + states.index(bytes([abi.PageState.SECURE] * 2))
    machine.agent.ask("attack", "disk-read", str(pair * PAGE), "/dev/vda", "2")  # QEMU stops the disk
    with pytest.raises(FlexServeError) as error:
        scene.ask()
    assert "does not answer" in str(scene.world._death()) or "does not answer" in str(error.value)
    scene.start()
    assert scene.ask().startswith(ANSWER)


@pytest.mark.timeout(900)
def test_who_is_killed_while_an_image_is_written_leaves_a_disk_that_is_whole(tmp_path: Path) -> None:
    with scene_in(tmp_path) as scene:
        for chunks, whom in itertools.product(range(2), ("client", "machine")):
            scene.start()
            before = scene.read()
            asked = threading.Thread(target=ask_in_vain, args=(scene,), daemon=True)
            asked.start()
            while scene.read() - before <= chunks * SLOT_PAGES:
                time.sleep(0.001)
            os.kill(scene.world.pid if whom == "client" else scene.core.machine.pid, signal.SIGKILL)
            asked.join(60)
            assert not asked.is_alive()
            scene.end()
            with FileBlocks(scene.file) as blocks:
                image = DiskImage(blocks)
                image.remove(*image.objects())
        scene.start()
        assert scene.ask().startswith(ANSWER)
        scene.forget()
        assert scene.ask().startswith(ANSWER)


def ask_in_vain(scene: Scene) -> None:
    with contextlib.suppress(FlexServeError):
        scene.ask()


def test_a_host_whose_disk_is_full_is_said_to_be_and_nothing_stands_still(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={2 * MODEL.stat().st_size}", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        with scene_in(folder) as scene:
            scene.start()
            with pytest.raises(NormalWorldError) as full:
                scene.ask()
            assert full.value.code == "disk_full"
            subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
            assert scene.ask().startswith(ANSWER)
            with contextlib.suppress(OSError), (folder / "filler").open("wb") as filler:
                while filler.write(bytes(1 << 20)):
                    filler.flush()
            scene.converse()  # its KV cannot be sealed to the disk
            agent = scene.core.machine.agent
            assert eventually(lambda: agent.ask("flexmem")["disk_errors"] > 0, within=60)
            scene.forget()
            assert scene.ask().startswith(ANSWER)
            assert conserved(scene.core)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
