"""At S-EL0 it says what the same file says as a process of the guest, whatever the guest's kernel recalls."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from inner_application import QUESTION, ROOT, Application, provide
from inner_models import Opened
from inner_unprotected import Unprotected
from test_inner_on_a_machine import CHUNKS, RAM, AtSEl0

from flexserve.emulator.machine import Machine
from flexserve.emulator.trusted_app import Programs
from flexserve.harness.inner import Image, SealedFile
from flexserve.protocol.trusted_app import Kind
from flexserve.tee_client.messages import Ask, Finish, Status, packed, unpacked
from flexserve.testing.machines import booted
from flexserve.testing.trustzone import eventually

pytestmark = [pytest.mark.vm, pytest.mark.engine]

MOST = 60  # tokens of an answer …
BEFORE = 6  # … and graphs of it before memory is short
LONGEST = 60.0  # seconds that the test waits for a thing


@pytest.fixture
def expected(programs: Programs, sealed: SealedFile, image: Image) -> list[int]:
    """What a process of the guest says."""
    with booted(RAM, unprotected=programs.application) as machine:
        app: Application = Unprotected(machine)
        assert app.inside == 0
        provide(app)
        model = Opened(app, sealed)
        model.load(image)
        return model.answer(model.tokenise(QUESTION), most=MOST)


@pytest.fixture
def machine(programs: Programs) -> Iterator[Machine]:
    with booted(RAM, application=programs.application, secret=ROOT) as machine:
        yield machine


class Pressed:
    """A program of the guest's that takes all memory that its kernel has for it, and keeps it a while."""

    def __init__(self, machine: Machine, seconds: int) -> None:
        self._agent = machine.agent
        memory = self._agent.ask("meminfo")
        self._asked = self._pressures()
        percent = memory["available"] * 100 // memory["total"]
        self._job = self._agent.ask("start", "hog", str(percent), str(seconds))["job"]

    def _pressures(self) -> int:
        return int(self._agent.ask("flexmem")["pressures"])

    def asked(self) -> bool:
        """Whether the shrinker has asked for memory since it looked for the last time."""
        before, self._asked = self._asked, self._pressures()
        return self._asked > before

    def wait(self) -> None:
        """Wait until the program has ended, with what it had written in its memory."""
        deadline = time.monotonic() + LONGEST
        while (ended := self._agent.ask("job", str(self._job)))["running"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert (ended["status"], ended["result"]["wrong"]) == (0, 0)


def go_on(model: Opened) -> list[int]:
    """Return what it says to the end of the answer that it has begun."""
    while model.step(0)[0].finished is Finish.NO:
        pass
    said = unpacked(model.do(Ask.SAID, 0).payload)
    model.do(Ask.END, 0)
    return said


def test_tokens_are_those_of_a_process_before_during_and_after_a_recall_by_the_guests_shrinker(
    machine: Machine, sealed: SealedFile, image: Image, expected: list[int]
) -> None:
    app = AtSEl0(machine)
    app.do(Ask.GRANT, CHUNKS)
    app.do(Ask.HEAP, CHUNKS // 2, 1)
    model = Opened(app, sealed)
    model.load(image)
    prompt = model.tokenise(QUESTION)
    assert model.answer(prompt, most=MOST) == expected
    held = machine.monitor().pages["SECURE"]
    model.begin(prompt, most=MOST)
    for _ in range(BEFORE):
        assert model.step(0)[0].finished is Finish.NO
    pressed = Pressed(machine, seconds=1)
    assert eventually(pressed.asked, within=LONGEST)
    gone = model.do(Ask.EVICT, Kind.WEIGHTS, 0, model.chunks).values[0]
    assert app.do(Ask.GIVE_BACK, CHUNKS).values[0] >= gone > 0
    assert eventually(lambda: machine.monitor().pages["SECURE"] < held)
    assert app.ask(Ask.STEP, 0, 1, payload=packed([0])).status is Status.MISSING
    pressed.wait()
    app.do(Ask.GRANT, CHUNKS)
    model.load(image)
    assert go_on(model) == expected
    assert model.answer(prompt, most=MOST) == expected
    assert sum(machine.monitor().pages.values()) == RAM
