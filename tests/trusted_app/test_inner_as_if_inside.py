"""The trusted application over a secure OS that is played in its own process: memory comes in short runs."""

from __future__ import annotations

from collections.abc import Iterator
from mmap import PAGESIZE
from pathlib import Path

import pytest
from inner_application import (
    QUESTION,
    ROOT,
    Ask,
    Image,
    Kind,
    Opened,
    RingApplication,
    SealedFile,
    Status,
)

from flexserve.emulator.trusted_app import Programs

PLAYED_CHUNKS = 128  # that the OS of tests/fake_secure_os.cpp has, nearly


@pytest.fixture
def inside(emulator: str, programs: Programs, tmp_path: Path) -> Iterator[RingApplication]:
    """An application that finds itself inside."""
    command = [emulator, "-cpu", "cortex-a76", programs.as_if_inside]
    app = RingApplication(command, tmp_path / "ring", 256 * PAGESIZE)
    yield app
    app.end()


def test_inside_the_secret_and_the_memory_come_from_the_secure_os(inside: RingApplication) -> None:
    assert inside.ask(Ask.SECRET, payload=ROOT).status is Status.BAD
    assert inside.do(Ask.GRANT, 3).values[0] == 3
    assert inside.do(Ask.POOL).values[0] == 3


def test_inside_it_says_what_it_says_elsewhere_also_after_all_its_memory_went(
    inside: RingApplication, sealed: SealedFile, loaded: Opened, image: Image
) -> None:
    prompt = loaded.tokenise(QUESTION)
    elsewhere = loaded.answer(prompt)
    inside.do(Ask.GRANT, 20)
    model = Opened(inside, sealed)
    model.write_weights()
    assert model.answer(prompt) == elsewhere
    for kind in Kind:
        model.do(Ask.EVICT, kind, 0, model.chunks)
    back = inside.do(Ask.GIVE_BACK, 100).values[0]  # what is not overwritten ends the process
    assert back >= 19  # the work area stays
    inside.do(Ask.GRANT, back)
    model.load(image)  # of another process: it is the same layout
    assert model.answer(prompt) == elsewhere


def test_an_os_that_has_no_more_memory_grants_what_it_has(inside: RingApplication) -> None:
    granted = inside.do(Ask.GRANT, 2 * PLAYED_CHUNKS).values[0]
    assert PLAYED_CHUNKS // 2 < granted <= PLAYED_CHUNKS
    assert inside.do(Ask.GRANT, 1).values[0] == granted
    assert inside.do(Ask.GIVE_BACK, granted).values[0] == granted
    assert inside.do(Ask.POOL).values[0] == 0
