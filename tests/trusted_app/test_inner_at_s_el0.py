"""The trusted application at S-EL0, over the secure OS, on an emulated CPU of two cores.

EL3 is secure-os/tests/boot/shim.S, which lends both cores all the time. A thread of the test plays the
monitor and the OS.
"""

from __future__ import annotations

import itertools
import mmap
import shutil
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from inner_application import QUESTION, ROOT, RingApplication
from inner_models import Opened, no_tokens

from flexserve.emulator import secure_os, tools
from flexserve.emulator.trusted_app import CROSS, Programs
from flexserve.harness.inner import Image, SealedFile
from flexserve.platforms.trustzone import abi, layout
from flexserve.protocol.sampling import Sampling
from flexserve.protocol.trusted_app import Kind
from flexserve.tee_client.messages import Ask, Status, packed
from flexserve.tee_client.sampling import settings
from flexserve.units import MIB

SOURCES = Path(__file__).parents[2]
RAM_BASE, RAM_BYTES = 0x4000_0000, 256 * MIB  # as shim.S has it
FIRST_PAGE, PAGES = RAM_BASE // mmap.PAGESIZE + 0x1000, 0x8000  # of which the played OS grants
RING_PAGE, RING_PAGES = 0x200, 256  # of RAM, behind where QEMU puts a device tree
MACHINE = "virt,secure=on,gic-version=3,highmem=off,memory-backend=ram"
QUIET = ["-nodefaults", "-display", "none", "-monitor", "none", "-serial", "stdio", "-semihosting"]

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(
        shutil.which("qemu-system-aarch64") is None, reason="needs `apt-get install qemu-system-arm`"
    ),
]


class PlayedMonitor(threading.Thread):
    """Carries out what the secure world puts into the mailbox, and grants what it wants."""

    def __init__(self, ram: mmap.mmap) -> None:
        super().__init__(daemon=True)
        self._ram, self._ended = ram, threading.Event()
        self._mailbox = layout.mailbox_offset(RAM_BYTES)
        self._states = RAM_BYTES - abi.HIDDEN_BYTES + abi.HIDDEN_STATES
        self._done = self._said = 0
        self._free = list(range(FIRST_PAGE, FIRST_PAGE + PAGES))
        self.dirty = 0  # pages that came back with something in them

    def run(self) -> None:
        """Serve until `end`."""
        while not self._ended.wait(0.001):
            while self._done != self._word(abi.OFFSET_COMMAND_HEAD):
                self._serve(*struct.unpack_from("<4Q", self._ram, self._slot(0, self._done)))
                self._done += 1
                self._set_word(abi.OFFSET_COMMAND_TAIL, self._done)

    def end(self) -> None:
        """Stop it."""
        self._ended.set()
        self.join()

    def _serve(self, kind: int, a: int, b: int, c: int) -> None:
        match abi.Command(kind):
            case abi.Command.ATTACH:
                self._say(abi.Event.ATTACHED, a)
            case abi.Command.WANT:
                self._grant(a, b)
            case abi.Command.COMMIT:
                self._change(a // mmap.PAGESIZE, b, abi.PageState.GRANTED, abi.PageState.SECURE)
                self._say(abi.Event.DONE, c, abi.Status.OK)
            case abi.Command.RECALL:
                first = a // mmap.PAGESIZE
                self._change(first, b, abi.PageState.SECURE, abi.PageState.NORMAL)
                self.dirty += sum(any(self._contents(page)) for page in range(first, first + b))
                self._free += range(first, first + b)
                self._say(abi.Event.DONE, c, abi.Status.OK)

    def _grant(self, serial: int, pages: int) -> None:
        granted, self._free = self._free[:pages], self._free[pages:]
        for _, group in itertools.groupby(enumerate(granted), lambda pair: pair[1] - pair[0]):
            run = [page for _, page in group]
            self._change(run[0], len(run), None, abi.PageState.GRANTED)
            self._say(abi.Event.GRANTED, run[0] * mmap.PAGESIZE, len(run))
        self._say(abi.Event.ANSWER, serial, len(granted))

    def _change(self, first: int, pages: int, old: abi.PageState | None, new: abi.PageState) -> None:
        at = self._states + first - RAM_BASE // mmap.PAGESIZE
        assert old is None or set(self._ram[at : at + pages]) == {old}
        self._ram[at : at + pages] = bytes([new]) * pages

    def _contents(self, page: int) -> bytes:
        start = page * mmap.PAGESIZE - RAM_BASE
        return self._ram[start : start + mmap.PAGESIZE]

    def _say(self, kind: abi.Event, *arguments: int) -> None:
        words = [*arguments, *[0] * (3 - len(arguments))]
        struct.pack_into("<4Q", self._ram, self._slot(1, self._said), kind, *words)
        self._said += 1
        self._set_word(abi.OFFSET_EVENT_HEAD, self._said)

    def _slot(self, ring: int, count: int) -> int:
        return self._mailbox + abi.HEADER_BYTES + (ring * abi.SLOTS + count % abi.SLOTS) * abi.SLOT_BYTES

    def _word(self, offset: int) -> int:
        return int(struct.unpack_from("<I", self._ram, self._mailbox + offset)[0])

    def _set_word(self, offset: int, value: int) -> None:
        struct.pack_into("<I", self._ram, self._mailbox + offset, value)


@pytest.fixture(scope="module")
def firmware(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What the machine starts from."""
    folder = tmp_path_factory.mktemp("firmware")
    for name in ("abi", "monitor", "secure-os"):
        shutil.copytree(SOURCES / name, folder / name, ignore=shutil.ignore_patterns("build"))
    tools.run("make", "-C", folder / "secure-os", "image", f"CROSS_COMPILE={CROSS}")
    shim = folder / "secure-os/tests/boot/shim.S"
    text = shim.read_text()
    for shown, ours in (
        ("#define RING 0x42\n", f"#define RING {RING_PAGE:#x}\n"),
        ("mov\tx2, #1\n\tb\t3b", f"mov\tx2, #{RING_PAGES}\n\tb\t3b"),
    ):
        assert shown in text
        text = text.replace(shown, ours)
    shim.write_text(text)
    include = ("-I", folder / "secure-os", "-I", folder / "monitor", "-I", folder / "abi")
    elf, binary = folder / "shim.elf", folder / "shim.bin"
    link = ("-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none,-Ttext=0,-e,0")
    tools.run(f"{CROSS}gcc", *link, *include, shim, "-o", elf)
    tools.run(f"{CROSS}objcopy", "-O", "binary", "-j", ".text", elf, binary)
    image = bytearray(
        secure_os.firmware_with(
            binary.read_bytes(),
            (folder / "secure-os/build/secure_os.bin").read_bytes(),
            programs.application.read_bytes(),
        )
    )
    secure_os.provision(image, ROOT)
    return bytes(image)


class InnerMachine(RingApplication):
    """The application of a machine that starts from `firmware`, with its RAM in a file."""

    def __init__(self, firmware: bytes, folder: Path) -> None:
        ram, flash = folder / "ram", folder / "flash"
        flash.write_bytes(firmware)
        with ram.open("w+b") as file:
            file.truncate(RAM_BYTES)
            self.ram = mmap.mmap(file.fileno(), RAM_BYTES)
        self.monitor = PlayedMonitor(self.ram)
        self.monitor.start()
        backend = f"memory-backend-file,id=ram,size={RAM_BYTES},mem-path={ram},share=on"
        command = ["qemu-system-aarch64", "-machine", MACHINE, "-cpu", "cortex-a76", "-smp", "2"]
        size = ["-m", str(RAM_BYTES // MIB), "-object", backend, "-bios", str(flash)]
        ring = memoryview(self.ram)[RING_PAGE * mmap.PAGESIZE :][: RING_PAGES * mmap.PAGESIZE]
        self.start([*command, *size, *QUIET])
        self.drive_in(ring, threads=2)

    def end(self) -> None:
        """End it. Always safe."""
        super().end()
        self.monitor.end()


@pytest.fixture
def machine(emulator: str, firmware: bytes, tmp_path: Path) -> Iterator[InnerMachine]:
    """A machine of two cores."""
    del emulator  # another program computes what the answers are compared with
    app = InnerMachine(firmware, tmp_path)
    yield app
    app.end()
    (tmp_path / "ram").unlink()


def test_at_s_el0_it_says_what_it_says_elsewhere_also_after_its_memory_was_recalled(
    machine: InnerMachine, sealed: SealedFile, loaded: Opened, image: Image
) -> None:
    prompt = loaded.tokenise(QUESTION)
    elsewhere = loaded.answer(prompt, most=4)
    assert machine.ask(Ask.SECRET, payload=ROOT).status is Status.BAD  # it has one
    machine.do(Ask.GRANT, 50)
    model = Opened(machine, sealed)  # with the heap of the secure RAM
    model.load(image)
    assert model.answer(prompt, most=4) == elsewhere
    drawn = settings(Sampling(temperature=3.0, samplers=["temperature", "xtc"], seed=5), no_tokens)
    assert model.answer(prompt, most=4, sampling=drawn) == loaded.answer(prompt, most=4, sampling=drawn)
    machine.do(Ask.HEAP, 4, 1)
    assert model.embed(prompt) == loaded.embed(prompt)
    for kind in Kind:
        model.do(Ask.EVICT, kind, 0, model.chunks)
    back = machine.do(Ask.GIVE_BACK, 100).values[0]
    assert back > model.chunks
    assert machine.monitor.dirty == 0
    machine.do(Ask.GRANT, back)
    model.load(image)
    assert model.answer(prompt, most=4) == elsewhere


def test_at_s_el0_prompts_are_told_kv_is_quantised_and_contexts_shift_as_elsewhere(
    machine: InnerMachine, sealed: SealedFile, loaded: Opened, image: Image
) -> None:
    prompt = loaded.tokenise(QUESTION)
    telling = settings(Sampling(temperature=0, echo=True, logprobs=0, ignore_eos=True), no_tokens)
    machine.do(Ask.GRANT, 50)
    answers = []
    for app in (machine, loaded.app):
        model = Opened(app, sealed, number=1, context=len(prompt) + 4, kv="q8_0")
        model.load(image)
        model.begin(prompt, most=8, sampling=telling)
        said = model.say(logprobs=0)
        assert said.tokens[: len(prompt) - 1] == prompt[1:]
        assert model.shift(2, 10) == len(prompt) + 4 - 10
        answers.append((said, model.say(logprobs=0)))
    for here, there in zip(*answers, strict=True):
        assert here.tokens == there.tokens
        scores = [[own.value for own, _ in each.scores] for each in (here, there)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-2)


def test_at_s_el0_a_vector_that_the_heap_has_no_room_for_is_refused(
    machine: InnerMachine, sealed: SealedFile, image: Image
) -> None:
    machine.do(Ask.GRANT, 60)
    machine.do(Ask.HEAP, 2, 1)
    model = Opened(machine, sealed, context=1024, sequences=64)  # its context takes most of the heap
    model.load(image)
    text = packed(model.tokenise(QUESTION))
    assert machine.ask(Ask.EMBED, 0, 0, 512, payload=text).status is Status.FAILED
    machine.do(Ask.HEAP, 8, 1)
    assert machine.do(Ask.EMBED, 0, 0, 512, payload=text).payload
