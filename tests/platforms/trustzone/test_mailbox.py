"""The mailbox: believed when it can be, bounded, and no wake-up is lost."""

import contextlib
import random
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from flexserve.errors import MonitorError, NormalWorldError
from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.exchange import Answer, Detached, Event, Pressure, Quiet, Want
from flexserve.platforms.trustzone.mailbox import Mailbox, Measured, Ring
from flexserve.platforms.trustzone.measured_boot import started_el2
from flexserve.testing.trustzone import FakeMachine
from flexserve.units import MIB

RAM = 32 * MIB
ROOM = abi.HEADER_BYTES + 2 * abi.SLOTS * abi.SLOT_BYTES


class Reader:
    """Reads the events of a mailbox in a thread of its own."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self.events: list[Event] = []
        self.heard = threading.Semaphore(0)
        self.ended = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for event in self._mailbox.events():
            if not isinstance(event, Quiet):
                self.events.append(event)
                self.heard.release()
        self.ended.set()


@contextlib.contextmanager
def attached() -> Iterator[tuple[FakeMachine, Mailbox, Reader]]:
    with FakeMachine(RAM) as machine:
        mailbox = machine.mailbox()
        reader = Reader(mailbox)
        assert mailbox.attach(5)
        yield machine, mailbox, reader


@pytest.mark.parametrize("offset", [abi.OFFSET_MAGIC, abi.OFFSET_VERSION, abi.OFFSET_RAM_BYTES])
def test_another_monitor_is_refused(offset: int):
    with FakeMachine(RAM) as machine:
        struct.pack_into("<Q", machine.monitor.mailbox, offset, 77)
        mailbox = machine.mailbox()
        Reader(mailbox)
        with pytest.raises(MonitorError):
            mailbox.attach(5)


def test_a_ring_gives_what_was_put_in_order_and_wraps():
    memory = memoryview(bytearray(ROOM))
    struct.pack_into("<I", memory, 64, 0xFFFF_FFF0)
    struct.pack_into("<I", memory, 128, 0xFFFF_FFF0)
    writer, reader = (Ring(memory, head=64, tail=128, slots=4096) for _ in range(2))
    for number in range(abi.SLOTS):
        assert writer.put(3, number, 1 << 63)
    assert not writer.put(3, 0)
    for number in range(abi.SLOTS):
        assert reader.take() == (3, number, 1 << 63, 0)
    assert reader.take() is None


def test_a_damaged_ring_is_the_monitors_fault():
    memory = memoryview(bytearray(ROOM))
    struct.pack_into("<I", memory, 64, abi.SLOTS + 1)
    with pytest.raises(MonitorError):
        Ring(memory, head=64, tail=128, slots=4096).take()


def test_no_event_waits_for_a_bell_that_was_not_rung():
    """Events that come at any moment of the reader's way to sleep are heard at once."""
    with attached() as (machine, _, reader):
        times: list[float] = []
        rng = random.Random(1)
        for number in range(2000):
            time.sleep(rng.random() * 1e-3)
            began = time.monotonic()
            machine.monitor.pressure(number, 0)
            assert reader.heard.acquire(timeout=10)
            times.append(time.monotonic() - began)
        assert reader.events == [Pressure(number, 0) for number in range(2000)]
        assert sorted(times)[-20] < 0.5, "events were found by looking again, not by the bell"


def test_more_commands_than_the_ring_holds_wait_for_the_os():
    with attached() as (_, mailbox, reader):
        mailbox.put(*(Want(serial, 0, 0) for serial in range(3 * abi.SLOTS)))
        for _ in range(3 * abi.SLOTS):
            assert reader.heard.acquire(timeout=10)
        assert reader.events == [Answer(serial, 0) for serial in range(3 * abi.SLOTS)]


def test_an_os_that_leaves_the_ring_full_is_an_error_after_a_while(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flexserve.platforms.trustzone.mailbox._PATIENCE", 0.05)
    with attached() as (machine, mailbox, _), machine.hung():
        with pytest.raises(NormalWorldError) as error:
            mailbox.put(*(Want(serial, 0, 0) for serial in range(abi.SLOTS + 1)))
        assert error.value.code == "guest_silent"


def test_events_end_with_the_machine():
    with attached() as (machine, _, reader):
        machine.monitor.detach()
        assert reader.heard.acquire(timeout=5)
        machine.die()
        assert reader.ended.wait(5)
        assert reader.events == [Detached()]


def test_an_os_that_does_not_run_attaches_nobody():
    with FakeMachine(RAM) as machine, machine.hung():
        mailbox = machine.mailbox()
        Reader(mailbox)
        assert mailbox.protected(5)
        assert not mailbox.attach(0.1)


def test_an_attachment_forged_while_protection_was_off_for_a_moment_is_not_believed(
    monkeypatch: pytest.MonkeyPatch,
):
    with FakeMachine(RAM) as machine, machine.hung():
        mailbox, monitor = machine.mailbox(), machine.monitor
        honest, forged = mailbox._events.take, list[int]()

        def take() -> tuple[int, int, int, int] | None:
            """Read what the OS wrote while it could: after the OFF, before the ON that follows at once."""
            if mailbox._epoch in (0, *forged):
                return honest()
            forged.append(mailbox._epoch)
            assert monitor.relax() == abi.Status.OK
            monitor.poll()
            return abi.Event.ATTACHED, mailbox._epoch, 0, 0

        monkeypatch.setattr(mailbox._events, "take", take)
        reader = Reader(mailbox)
        assert not mailbox.attach(2)
        assert len(forged) > 0
        assert reader.events == []


def test_the_page_states_cannot_be_written():
    with FakeMachine(RAM) as machine, pytest.raises(TypeError):
        machine.mailbox().states[0] = 1


@pytest.mark.parametrize("is_attached", [False, True])
def test_el3_says_what_el2_is_and_that_it_protects(is_attached: bool):
    with FakeMachine(RAM) as machine:
        mailbox = machine.mailbox()
        Reader(mailbox)
        if is_attached:
            assert mailbox.attach(5)
        said = mailbox.measured(5)
        assert said == Measured(abi.MeasuredByte.ON, machine.monitor.image)
        assert started_el2(mailbox) == machine.monitor.image


def test_bells_between_the_bytes_of_that_answer_change_nothing_of_it():
    with FakeMachine(RAM) as machine:
        mailbox = machine.mailbox()
        Reader(mailbox)
        stop = threading.Event()

        def ring() -> None:
            while not stop.wait(0.0001):
                machine.monitor._send(abi.Byte.EVENT)

        threading.Thread(target=ring, daemon=True).start()
        answers = {mailbox.measured(5) for _ in range(20)}
        stop.set()
        assert answers == {Measured(abi.MeasuredByte.ON, machine.monitor.image)}


def test_nothing_is_attested_of_a_monitor_that_was_altered():
    with FakeMachine(RAM) as machine:
        mailbox = machine.mailbox()
        Reader(mailbox)
        machine.monitor.tampered = True
        with pytest.raises(MonitorError, match="TAMPERED") as refused:
            started_el2(mailbox)
        assert refused.value.code == "monitor_off"


def test_a_machine_whose_protection_is_off_has_it_switched_on_to_be_attested():
    with FakeMachine(RAM) as machine:
        mailbox = machine.mailbox()
        Reader(mailbox)
        assert mailbox.protected(5)
        machine.monitor.relax()
        assert mailbox.measured(5) == Measured(abi.MeasuredByte.OFF, machine.monitor.image)
        assert started_el2(mailbox) == machine.monitor.image
        assert machine.monitor.protected


def test_an_answer_that_is_none_is_taken_for_silence():
    with FakeMachine(RAM) as machine:
        mailbox = machine.mailbox()
        Reader(mailbox)
        machine.monitor.image = b"too short"
        assert mailbox.measured(0.2) is None
