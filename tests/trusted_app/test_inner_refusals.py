"""The trusted application of S-EL0 against a normal world that lies: requests, sealed files, the ring."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from mmap import PAGESIZE
from pathlib import Path

import pytest
from inner_application import MODEL, QUESTION, ROOT, Gone, RingApplication, Start, provide
from inner_models import Opened

from flexserve.emulator.trusted_app import Programs
from flexserve.harness.inner import Image, SealedFile
from flexserve.protocol.trusted_app import Kind
from flexserve.tee_client import ring
from flexserve.tee_client.messages import MOST_PAYLOAD, Ask, Status, packed
from flexserve.trusted.store.manifest import CHUNK

# ---- what it refuses -----------------------------------------------------------------------------


def test_nothing_is_done_before_the_first_word(start: Start) -> None:
    app = start(hello=False)
    assert app.ask(Ask.GRANT, 1).status is Status.BAD
    assert app.ask(Ask.HELLO, 0).status is Status.BAD
    assert app.ask(Ask.HELLO, 1).status is Status.DONE
    assert app.ask(Ask.HELLO, 1).status is Status.BAD


@pytest.mark.parametrize(
    ("kind", "arguments", "payload"),
    [
        (0, (), b""),
        (99, (0,), b""),
        (Ask.SECRET, (), ROOT),  # it has one
        (Ask.OPEN, (0, 1 << 20, 1024, 1, 100), bytes(200)),  # there is a model of this number
        (Ask.OPEN, (1, 1 << 20, 0, 1, 100), bytes(200)),
        (Ask.OPEN, (1, 1 << 20, 1024, 1000, 100), bytes(200)),
        (Ask.OPEN, (1, 1 << 20, 1024, 1, 100), bytes(10)),
        (Ask.CLOSE, (7,), b""),
        (Ask.WRITE, (0, 5), b"x"),  # not the next one
        (Ask.WRITE, (0, 0), b"x"),
        (Ask.SEAL, (0, 0), b""),  # not in memory
        (Ask.SEAL, (0, 10_000), b""),
        (Ask.IMAGE, (0,), b"short"),
        (Ask.LOAD, (0, 0), b"there is no image"),
        (Ask.EVICT, (0, Kind.WEIGHTS, 2, 1), b""),
        (Ask.EVICT, (0, Kind.WEIGHTS, 0, 1 << 63), b""),
        (Ask.EVICT, (0, 77), b""),
        (Ask.DETOKENISE, (0,), b"odd"),
        (Ask.DETOKENISE, (0,), packed([1 << 31])),
        (Ask.BEGIN, (0, 0, 10), b""),
        (Ask.BEGIN, (0, 0, 0), packed([1])),
        (Ask.BEGIN, (0, 9, 10), packed([1])),
        (Ask.BEGIN, (0, 0, 10), packed([1 << 31])),
        (Ask.BEGIN, (0, 0, 10), packed([1] * 1024)),  # as long as the context
        (Ask.STEP, (0, 512), packed([0])),  # nothing began
        (Ask.STEP, (0, 512), b""),
        (Ask.SAID, (0, 0), b""),
        (Ask.END, (0, 1 << 40), b""),
        (Ask.KEEP, (0, 0), b""),  # it has nothing
        (Ask.KEEP, (0, 1 << 32), b""),
        (Ask.KEPT, (0, 0), b""),
        (Ask.RESUME, (0, 0, 1 << 40), bytes(32)),
        (Ask.RESUME, (0, 0, 100), bytes(31)),
        (Ask.RESUMED, (0, 0), bytes(100)),
        (Ask.LOAD_PAGES, (0, 0), bytes(16)),  # a tag, and no pages
        (Ask.WORDS, (0, 1 << 40), b""),
        (Ask.MARKS, (7,), b""),
        (Ask.SHIFT, (0, 0, 1, 2), b""),  # nothing began
        (Ask.SHIFT, (0, 1 << 63, 1, 2), b""),
        (Ask.SAMPLING, (0, (1 << 64) - 1), bytes(500)),
        (Ask.ADMIT, (0, 1 << 32), bytes(40)),
        (Ask.DESCRIBE, (7,), b"general.name"),
    ],
)
def test_a_request_that_is_none_changes_nothing(
    listening: Opened, kind: int, arguments: tuple[int, ...], payload: bytes
) -> None:
    app = listening.app
    before = (app.do(Ask.POOL), listening.do(Ask.RESIDENT))
    assert app.ask(kind, *arguments, payload=payload).status is Status.BAD
    assert (app.do(Ask.POOL), listening.do(Ask.RESIDENT)) == before


def test_a_sequence_is_named_once_in_a_step(loaded: Opened) -> None:
    loaded.begin(loaded.tokenise(QUESTION))
    assert loaded.app.ask(Ask.STEP, loaded.number, 512, payload=packed([0, 0])).status is Status.BAD


def test_what_this_device_did_not_seal_is_not_opened(start: Start, sealed: SealedFile) -> None:
    app = start()
    provide(app)
    manifest, opening = sealed.manifest, sealed.opening()
    sizes = (manifest.size, 1024, 1, manifest.metadata_bytes)
    for place in (0, 16, 50, len(opening) - 20, len(opening) - 1):
        damaged = bytearray(opening)
        damaged[place] ^= 1
        assert app.ask(Ask.OPEN, 0, *sizes, payload=bytes(damaged)).status is Status.DAMAGED
    for other in ((manifest.size + CHUNK, *sizes[1:]), (manifest.size - CHUNK, *sizes[1:])):
        assert app.ask(Ask.OPEN, 0, *other, payload=opening).status is Status.DAMAGED
    assert app.ask(Ask.OPEN, 0, *sizes, payload=opening).status is Status.DONE


def test_metadata_that_is_cut_off_is_no_model(start: Start, sealed: SealedFile) -> None:
    app = start()
    provide(app)
    for size in (1, 100, sealed.manifest.metadata_bytes - 40):
        sizes = (sealed.manifest.size, 1024, 1, size)
        assert app.ask(Ask.OPEN, 0, *sizes, payload=sealed.opening()).status is Status.UNSUPPORTED


def test_a_damaged_chunk_of_the_file_leaves_nothing(opened: Opened) -> None:
    first, second, *_ = opened.file.data
    damaged = bytearray(opened.file.chunk(first))
    damaged[-1] ^= 1
    assert opened.app.ask(Ask.WRITE, 0, first, payload=bytes(damaged)).status is Status.DAMAGED
    stranger = opened.file.chunk(second)  # it is genuine, and of another place
    assert opened.app.ask(Ask.WRITE, 0, first, payload=stranger).status is Status.DAMAGED
    opened.write()  # it goes on where it was
    assert opened.detokenise(opened.answer(opened.tokenise(QUESTION), most=8)).startswith("Flex-Mem")


def test_a_damaged_chunk_of_the_image_is_not_loaded(opened: Opened, image: Image) -> None:
    unused = opened.app.do(Ask.POOL)

    def load(chunk: bytes) -> Status:
        return opened.app.ask(Ask.LOAD, 0, 0, payload=chunk).status

    opened.do(Ask.IMAGE, payload=image.salt)
    for place in (0, len(image.chunks[0]) // 2, len(image.chunks[0]) - 1):
        damaged = bytearray(image.chunks[0])
        damaged[place] ^= 1
        assert load(bytes(damaged)) is Status.DAMAGED
    opened.do(Ask.IMAGE, payload=bytes(32))
    assert load(image.chunks[0]) is Status.DAMAGED  # another image's
    assert opened.do(Ask.RESIDENT).values[Kind.WEIGHTS] == 0
    assert opened.app.do(Ask.POOL) == unused


def test_a_chunk_is_loaded_in_its_own_place_only(opened: Opened, image: Image) -> None:
    sizes = [len(chunk) for chunk in image.chunks]
    first = next(number for number, size in enumerate(sizes) if sizes.count(size) > 1)
    other = sizes.index(sizes[first], first + 1)
    opened.do(Ask.IMAGE, payload=image.salt)
    swapped = opened.app.ask(Ask.LOAD, 0, first, payload=image.chunks[other])
    assert swapped.status is Status.DAMAGED


def test_weights_that_are_not_whole_are_not_computed_with_nor_evicted(opened: Opened) -> None:
    first, *_ = opened.file.data
    opened.do(Ask.WRITE, first, payload=opened.file.chunk(first))
    opened.begin(opened.tokenise(QUESTION))
    assert opened.app.ask(Ask.STEP, 0, 512, payload=packed([0])).status is Status.MISSING
    assert opened.app.ask(Ask.EVICT, 0, Kind.WEIGHTS, 0, 1).status is Status.BAD
    assert opened.app.ask(Ask.SEAL, 0, 0).status is Status.BAD


def test_writing_waits_for_memory_and_goes_on(start: Start, sealed: SealedFile) -> None:
    app = start()
    provide(app, chunks=0)
    model = Opened(app, sealed)
    for number in sealed.data:
        while (reply := app.ask(Ask.WRITE, 0, number, payload=sealed.chunk(number))).status is Status.REFUSED:
            app.do(Ask.GRANT, reply.values[0])
        assert reply.status is Status.DONE
    assert all(model.do(Ask.RESIDENT).payload)


def test_a_chunk_is_sealed_once(opened: Opened) -> None:
    opened.write()
    sealed = opened.do(Ask.SEAL, 0)
    assert opened.app.ask(Ask.SEAL, 0, 0).status is Status.BAD
    assert MODEL.read_bytes()[-4096:] not in sealed.payload


def test_a_message_longer_than_any_ends_it(start: Start) -> None:
    app = start()
    with contextlib.suppress(Gone):
        app.send(Ask.TOKENISE, 0, payload=bytes(MOST_PAYLOAD + 1))
    assert app.process.wait(10) == 0


# ---- the ring ------------------------------------------------------------------------------------


@pytest.fixture
def in_ring(emulator: str, programs: Programs, tmp_path: Path) -> Iterator[RingApplication]:
    """An application that is driven through a ring of twelve pages."""
    command = [emulator, "-cpu", "cortex-a76", str(programs.application)]
    app = RingApplication(command, tmp_path / "ring", 12 * PAGESIZE)
    yield app
    app.end()


def test_through_a_ring_it_says_the_same(in_ring: RingApplication, sealed: SealedFile) -> None:
    provide(in_ring)
    model = Opened(in_ring, sealed)
    model.write()  # chunks are many times larger than the ring
    assert model.detokenise(model.answer(model.tokenise(QUESTION), most=8)).startswith("Flex-Mem")


@pytest.mark.parametrize(("number", "lie"), [(ring.REQUESTS_WRITTEN, 1 << 20), (ring.ANSWERS_READ, 1)])
def test_counts_that_cannot_be_end_it(in_ring: RingApplication, number: int, lie: int) -> None:
    in_ring.add_to_count(number, lie)
    if number == ring.ANSWERS_READ:  # it looks when it answers
        in_ring.send(Ask.POOL)
    assert in_ring.process.wait(10) == 0


# ---- the file ------------------------------------------------------------------------------------


def test_the_file_is_static_and_names_no_place_of_its_making(programs: Programs) -> None:
    content = programs.application.read_bytes()
    assert b"/ld-linux" not in content
    for place in (programs.application.parent, MODEL.parents[2]):
        assert str(place).encode() not in content
