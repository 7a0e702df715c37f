"""The trusted application over a secure OS that is played in its own process: memory comes in short runs."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from mmap import PAGESIZE
from pathlib import Path

import pytest
from inner_application import QUESTION, ROOT, RingApplication
from inner_models import Opened

from flexserve.emulator.trusted_app import Programs
from flexserve.harness.inner import Image, SealedFile
from flexserve.protocol.trusted_app import Kind
from flexserve.tee_client.messages import Ask, Status

# What trusted-app/tests/fake_secure_os.cpp plays.
PLAYED_CHUNKS = 128  # that its OS has, nearly
FIRST_PAGE, PAGES = 0x40000, 1 << 16
GRANTED, SECURE = 1, 2  # states of abi/flex.toml
CHUNK_PAGES = 512


@pytest.fixture
def inside(emulator: str, programs: Programs, tmp_path: Path) -> Iterator[RingApplication]:
    """An application that finds itself inside."""
    command = [emulator, "-cpu", "cortex-a76", str(programs.as_if_inside)]
    (tmp_path / "ram").touch()
    app = RingApplication(command, tmp_path / "ring", 256 * PAGESIZE, ram=tmp_path / "ram")
    yield app
    app.end()
    (tmp_path / "ram").unlink()


class Os:
    """The normal world's OS, as far as it grants pages that hold what a disk delivered."""

    def __init__(self, ram: Path) -> None:
        self._ram = ram

    def grant(self, first: int, contents: bytes, pages: int) -> None:
        """Grant pages with these contents."""
        with self._ram.open("r+b") as ram:
            ram.seek(PAGES + (first - FIRST_PAGE) * PAGESIZE)
            ram.write(contents)
            ram.seek(first - FIRST_PAGE)
            ram.write(bytes([GRANTED]) * pages)

    def state(self, page: int) -> int:
        """Return the state of a page."""
        with self._ram.open("rb") as ram:
            ram.seek(page - FIRST_PAGE)
            return ram.read(1)[0]

    def read(self, page: int) -> bytes:
        """Return what is in a page."""
        with self._ram.open("rb") as ram:
            ram.seek(PAGES + (page - FIRST_PAGE) * PAGESIZE)
            return ram.read(PAGESIZE)


@pytest.fixture
def machine_os(inside: RingApplication, tmp_path: Path) -> Os:
    """The OS of `inside`."""
    assert inside.process.poll() is None
    return Os(tmp_path / "ram")


def pages_payload(tag: bytes, *runs: tuple[int, int]) -> bytes:
    """Return a tag and runs of pages, as a payload."""
    return tag + b"".join(struct.pack("<QQ", *run) for run in runs)


def test_inside_the_secret_and_the_memory_come_from_the_secure_os(inside: RingApplication) -> None:
    assert inside.ask(Ask.SECRET, payload=ROOT).status is Status.BAD
    assert inside.do(Ask.GRANT, 3).values[0] == 3
    assert inside.do(Ask.POOL).values[0] == 3


def test_inside_it_says_what_it_says_elsewhere_also_after_all_its_memory_went(
    inside: RingApplication, sealed: SealedFile, loaded: Opened, image: Image
) -> None:
    prompt = loaded.tokenise(QUESTION)
    elsewhere = loaded.answer(prompt, most=5)
    inside.do(Ask.GRANT, 20)
    model = Opened(inside, sealed)
    model.write()
    assert model.answer(prompt, most=5) == elsewhere
    for kind in Kind:
        model.do(Ask.EVICT, kind, 0, model.chunks)
    back = inside.do(Ask.GIVE_BACK, 100).values[0]  # what is not overwritten ends the process
    assert back >= 19  # the work area stays
    inside.do(Ask.GRANT, back)
    model.load(image)  # of another process: it is the same layout
    assert model.answer(prompt, most=5) == elsewhere


def test_an_os_that_has_no_more_memory_grants_what_it_has(inside: RingApplication) -> None:
    granted = inside.do(Ask.GRANT, 2 * PLAYED_CHUNKS).values[0]
    assert PLAYED_CHUNKS // 2 < granted <= PLAYED_CHUNKS
    assert inside.do(Ask.GRANT, 1).values[0] == granted
    assert inside.do(Ask.GIVE_BACK, granted).values[0] == granted
    assert inside.do(Ask.POOL).values[0] == 0


def test_the_heap_grows_by_what_was_granted_and_gives_it_back(inside: RingApplication) -> None:
    inside.do(Ask.GRANT, 4)
    assert inside.do(Ask.HEAP, 3, 1).values[0] == 3
    assert inside.do(Ask.HEAP, 3, 1).values[0] == 1
    assert inside.do(Ask.POOL).values[0] == 0
    assert inside.do(Ask.HEAP, 1).values[0] == 1
    assert inside.do(Ask.HEAP, 100).values[0] == 3
    assert inside.do(Ask.GIVE_BACK, 100).values[0] == 4


def test_a_chunk_is_decrypted_in_the_pages_that_the_disk_wrote_to(
    inside: RingApplication, machine_os: Os, sealed: SealedFile, loaded: Opened, image: Image
) -> None:
    prompt = loaded.tokenise(QUESTION)
    inside.do(Ask.GRANT, 10)  # for KV and scratch
    model = Opened(inside, sealed)
    model.do(Ask.IMAGE, payload=image.salt)
    for number, chunk in enumerate(image.chunks):
        first = FIRST_PAGE + 20_000 + number * 1000
        ciphertext, tag = chunk[:-16].ljust(CHUNK_PAGES * PAGESIZE, b"?"), chunk[-16:]
        half = CHUNK_PAGES // 2 * PAGESIZE
        machine_os.grant(
            first + 300, ciphertext[:half], CHUNK_PAGES // 2
        )  # in two runs, in no order of theirs
        machine_os.grant(first, ciphertext[half:], CHUNK_PAGES // 2)
        runs = ((first + 300, CHUNK_PAGES // 2), (first, CHUNK_PAGES // 2))
        model.do(Ask.LOAD_PAGES, number, payload=pages_payload(tag, *runs))
        assert machine_os.state(first) == SECURE
    assert model.answer(prompt, most=5) == loaded.answer(prompt, most=5)


def test_what_a_disk_or_an_os_lies_about_is_not_loaded(
    inside: RingApplication, machine_os: Os, sealed: SealedFile, image: Image
) -> None:
    model = Opened(inside, sealed)
    model.do(Ask.IMAGE, payload=image.salt)
    first, tag = FIRST_PAGE + 20_000, image.chunks[0][-16:]
    machine_os.grant(first, image.chunks[0][:-17] + b"?", CHUNK_PAGES)
    used = first + 4 * CHUNK_PAGES
    machine_os.grant(used, image.chunks[1][:-16], CHUNK_PAGES)
    model.do(Ask.LOAD_PAGES, 1, payload=pages_payload(image.chunks[1][-16:], (used, CHUNK_PAGES)))

    def load(*runs: tuple[int, int]) -> Status:
        return inside.ask(Ask.LOAD_PAGES, 0, 0, payload=pages_payload(tag, *runs)).status

    for runs in (
        ((first + CHUNK_PAGES, CHUNK_PAGES),),  # not granted
        ((first, CHUNK_PAGES - 1),),
        ((first, CHUNK_PAGES + 1),),
        ((1 << 60, CHUNK_PAGES),),
        ((FIRST_PAGE - CHUNK_PAGES, CHUNK_PAGES),),  # no RAM
        ((used, 1), *[(first, 1)] * (CHUNK_PAGES - 1)),
        ((first, 0), (first, CHUNK_PAGES)),
        (),
    ):
        assert load(*runs) is Status.BAD
        assert machine_os.state(first) == GRANTED
    assert inside.ask(Ask.LOAD_PAGES, 0, 0, payload=tag + b"odd").status is Status.BAD
    assert load((first, CHUNK_PAGES)) is Status.DAMAGED
    assert machine_os.read(first) == bytes(PAGESIZE)
    assert inside.do(Ask.POOL).values[0] == 1
    other = first + 2 * CHUNK_PAGES
    machine_os.grant(other, b"", CHUNK_PAGES // 2)
    assert load((other, CHUNK_PAGES // 2), (other, CHUNK_PAGES // 2)) is Status.BAD  # twice the same
    assert inside.do(Ask.GIVE_BACK, 9).values[0] == 1
