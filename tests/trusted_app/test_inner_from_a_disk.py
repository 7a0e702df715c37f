"""Weights and KV between S-EL0 and a disk of the guest's: by DMA, in place, and what a disk cannot do."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from inner_application import QUESTION, ROOT
from inner_models import Opened
from test_inner_on_a_machine import RAM, AtSEl0

from flexserve.emulator.machine import Machine
from flexserve.emulator.trusted_app import Programs
from flexserve.errors import StoredDataError
from flexserve.harness.inner import Image, SealedFile
from flexserve.platforms.trustzone.disk_image import SLOT, TAG, DiskImage, FileBlocks, StoredObject
from flexserve.platforms.trustzone.ram import BASE, PAGE, Ram
from flexserve.tee_client.disk import Disk, Run
from flexserve.tee_client.messages import Ask, Status
from flexserve.testing.machines import booted, guest_disk
from flexserve.units import MIB

pytestmark = [pytest.mark.vm, pytest.mark.engine]

DISK = 128 * MIB
SPARE = b"spare".ljust(PAGE, b"!") * 256  # what the disks have that are asked for what they must not do
WEIGHTS = "weights/tiny"
HEAP, MEMORY = 45, 20  # chunks: two models are open at once
MOST = 6  # tokens


@dataclasses.dataclass
class Scene:
    """A machine with a disk that has the weights of the demo's model, and two others."""

    machine: Machine
    store: Path  # the disk's file
    app: AtSEl0
    disk: Disk
    sealed: SealedFile
    numbers: Iterator[int]

    @contextlib.contextmanager
    def opened(self) -> Iterator[Opened]:
        """Open the model, with its image and without weights, for the length of the block."""
        self.app.do(Ask.GRANT, MEMORY)
        model = Opened(self.app, self.sealed, number=next(self.numbers))
        model.do(Ask.IMAGE, payload=self.weights.head)
        try:
            yield model
        finally:
            model.do(Ask.CLOSE)
            self.app.do(Ask.GIVE_BACK, DISK // SLOT)  # what the disk read to was granted besides

    @property
    def weights(self) -> StoredObject:
        """The weights on the disk."""
        return self.disk.image.objects()[WEIGHTS]

    def load(self, model: Opened, *chunks: int) -> Status:
        """Load chunks from the disk; return how it went, up to the first that was not loaded."""
        for chunk in chunks:
            reply = self.disk.load(self.weights, model.number, chunk)
            if reply.status is not Status.DONE:
                return reply.status
        return Status.DONE

    def resident(self, model: Opened) -> list[int]:
        """Return the chunks that are there."""
        return [number for number, there in enumerate(model.do(Ask.RESIDENT).payload) if there]

    def page(self, number: int) -> bytes:
        """Return what a page of RAM has, as nobody in the machine could see it."""
        return Ram(self.machine.ram_fd).window(number * PAGE - BASE, PAGE).tobytes()

    def attack(self, page: int, disk: str, pages: int) -> dict[str, int]:
        """Have the guest's kernel ask a disk to write to pages."""
        return self.machine.agent.ask("attack", "disk-read", str(page * PAGE), f"/dev/{disk}", str(pages))

    def stopped(self) -> int:
        """Return how many accesses the monitor stopped. Those of devices it counts when it is polled."""
        self.app.do(Ask.GRANT, 1)
        self.app.do(Ask.GIVE_BACK, 1)
        return self.machine.monitor().faults

    def counters(self) -> dict[str, int]:
        """Return what the driver counts."""
        return self.machine.agent.ask("flexmem")


@contextlib.contextmanager
def scene_of(programs: Programs, sealed: SealedFile, *disks: Path) -> Iterator[Scene]:
    with booted(RAM, disks=disks, application=programs.application, secret=ROOT) as machine:
        app = AtSEl0(machine)
        app.do(Ask.GRANT, HEAP)
        app.do(Ask.HEAP, HEAP, 1)
        disk = Disk(guest_disk(machine), app.link)
        yield Scene(machine, disks[0], app, disk, sealed, itertools.count(1))


@pytest.fixture(scope="module")
def store(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk's file that has the weights of the demo's model. Not for a machine: those get copies."""
    store = tmp_path_factory.mktemp("disk") / "store"
    with FileBlocks.create(store, DISK) as blocks:
        pieces = ((chunk[:-TAG], chunk[-TAG:]) for chunk in image.chunks)
        DiskImage.create(blocks, DISK).put(WEIGHTS, image.salt, pieces)
    return store


@pytest.fixture(scope="module")
def scene(
    programs: Programs, sealed: SealedFile, store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("disks")
    copy, *others = (folder / name for name in ("store", "first", "second"))
    shutil.copy(store, copy)
    for other in others:
        other.write_bytes(SPARE)
    with scene_of(programs, sealed, copy, *others) as scene:
        scene.machine.agent.ask("load", "flexattack")
        yield scene
    shutil.rmtree(folder)


def test_weights_are_decrypted_in_the_pages_that_the_disk_read_to(scene: Scene, loaded: Opened) -> None:
    prompt = loaded.tokenise(QUESTION)
    with scene.opened() as model:
        before = scene.counters()
        assert scene.load(model, *range(model.chunks)) is Status.DONE
        assert scene.resident(model) == list(range(model.chunks))
        read = scene.counters()["disk_pages"] - before["disk_pages"]
        assert read == model.chunks * SLOT // PAGE
        assert scene.counters()["wants"] == before["wants"]  # nothing was granted but what was read to
        assert 0 < scene.disk.room() < RAM
        assert model.answer(prompt, most=MOST) == loaded.answer(prompt, most=MOST)


Lie = Callable[[Scene, list[int]], dict[int, bytes]]  # of slots 0 and 1 of the weights; what is there then


def flipped(scene: Scene, places: list[int]) -> dict[int, bytes]:
    data = bytearray(scene_bytes(scene, places[1]))
    data[SLOT // 2] ^= 1
    return {places[1]: bytes(data)}


def swapped(scene: Scene, places: list[int]) -> dict[int, bytes]:
    return {places[0]: scene_bytes(scene, places[1]), places[1]: scene_bytes(scene, places[0])}


def truncated(scene: Scene, places: list[int]) -> dict[int, bytes]:
    return {places[1]: scene_bytes(scene, places[1])[: SLOT // 2].ljust(SLOT, b"\0")}


def stale(scene: Scene, places: list[int]) -> dict[int, bytes]:
    """The same weights, as an earlier image of them had them: another salt."""
    with scene.opened() as model:
        model.write()
        return {places[1]: model.seal().chunks[1][:-TAG].ljust(SLOT, b"\0")}


def scene_bytes(scene: Scene, slot: int) -> bytes:
    with FileBlocks(scene.store) as blocks:
        return blocks.read(slot * SLOT // PAGE, SLOT // PAGE)


def put_bytes(scene: Scene, what: dict[int, bytes]) -> None:
    with FileBlocks(scene.store) as blocks:
        for slot, data in what.items():
            blocks.write(slot * SLOT // PAGE, data)


@pytest.mark.parametrize("lie", [flipped, swapped, truncated, stale], ids=lambda lie: lie.__name__)
def test_what_a_disk_lies_about_is_wiped_and_nothing_else_is_lost(scene: Scene, lie: Lie) -> None:
    with scene.opened() as model:
        last = model.chunks - 1
        assert scene.load(model, last) is Status.DONE
        places = [piece.slot for piece in scene.weights.pieces]
        truth = {slot: scene_bytes(scene, slot) for slot in places[:2]}
        put_bytes(scene, lie(scene, places))
        try:
            runs = scene.disk.grant(scene.weights.pieces[1])
            assert scene.page(runs[0][0]) != bytes(PAGE)
            reply = scene.app.ask(Ask.LOAD_PAGES, model.number, 1, payload=named(scene, 1, runs))
            assert reply.status is Status.DAMAGED
            assert all(scene.page(first) == bytes(PAGE) for first, _ in runs)
            assert scene.load(model, 1) is Status.DAMAGED
        finally:
            put_bytes(scene, truth)
        assert scene.resident(model) == [last]
        assert scene.load(model, *range(last)) is Status.DONE
        assert len(scene.resident(model)) == model.chunks
    assert sum(scene.machine.monitor().pages.values()) == RAM


def named(scene: Scene, chunk: int, runs: list[Run]) -> bytes:
    """Return the payload that names pages."""
    pages = b"".join(number.to_bytes(8, "little") for run in runs for number in run)
    return scene.weights.pieces[chunk].tag + pages


def test_a_disk_writes_to_no_page_that_was_granted_before_and_after_it_is_committed(
    scene: Scene, loaded: Opened
) -> None:
    own = scene.machine.agent.ask("attack", "own")["ipa"] // PAGE
    assert scene.attack(own, "vdb", 1) == {"answered": 1, "errno": 0, "broken": 0}
    assert scene.page(own) == SPARE[:PAGE]  # a disk writes where it may
    with scene.opened() as model:
        runs = scene.disk.grant(scene.weights.pieces[0])
        pages = range(runs[0][0], runs[0][0] + 2)
        assert scene.machine.monitor().pages["GRANTED"] == SLOT
        refused(scene, pages, "vdb")
        reply = scene.app.ask(Ask.LOAD_PAGES, model.number, 0, payload=named(scene, 0, runs))
        assert reply.status is Status.DONE
        refused(scene, pages, "vdc")
        assert scene.load(model, *range(1, model.chunks)) is Status.DONE
        prompt = loaded.tokenise(QUESTION)
        assert model.answer(prompt, most=MOST) == loaded.answer(prompt, most=MOST)


def refused(scene: Scene, pages: range, disk: str) -> None:
    """Assert that a disk that is asked to write to these pages does not, and that this is reported."""
    before = [scene.page(page) for page in pages]
    for count in range(1, len(pages) + 1):
        stopped = scene.stopped()
        report = scene.attack(pages[0], disk, count)
        assert [scene.page(page) for page in pages] == before
        assert scene.stopped() > stopped
    assert report["broken"] == 1


def test_a_disk_that_falls_silent_is_given_up_and_what_was_loaded_stays(
    programs: Programs, sealed: SealedFile, store: Path, tmp_path: Path, loaded: Opened
) -> None:
    shutil.copy(store, tmp_path / "store")
    with scene_of(programs, sealed, tmp_path / "store") as scene, scene.opened() as model:
        assert scene.load(model, *range(model.chunks - 1)) is Status.DONE
        runs = scene.disk.grant(scene.weights.pieces[-1])
        scene.machine.agent.ask("load", "flexattack")
        assert scene.attack(runs[0][0], "vda", 2)["answered"] == 0
        for _ in range(2):  # it is told something, which it leaves undone; then it is not asked any more
            with pytest.raises(StoredDataError) as unreadable:
                scene.load(model, 0)
            assert unreadable.value.code == "disk_unreadable"
        reply = scene.app.ask(Ask.LOAD_PAGES, model.number, model.chunks - 1, payload=named(scene, -1, runs))
        assert reply.status is Status.DONE
        prompt = loaded.tokenise(QUESTION)
        assert model.answer(prompt, most=MOST) == loaded.answer(prompt, most=MOST)
        assert sum(scene.machine.monitor().pages.values()) == RAM
