"""The NPU of the machine without QEMU: the monitor's gate and an OS that lends it, before the real device.

    with NpuMachine(64 * MIB) as machine:
        pages = machine.unbegun()
        npu = TrustZoneNpu(pages, TrustZoneMemory(pages), DRIVER)
        pages.start(npu)

The device is the one of the emulated machine, on a thread, behind the monitor's tree of tables in RAM.
"""

from __future__ import annotations

import hashlib
import threading
import time

import msgspec
import numpy as np
from numpy.typing import NDArray

from flexserve.emulator.npu.device import Device
from flexserve.platforms.linux import mman
from flexserve.platforms.ports import Product
from flexserve.platforms.trustzone import abi, layout, npu_jobs
from flexserve.platforms.trustzone.abi import (
    Command,
    Event,
    Notice,
    NpuFormat,
    NpuInterrupt,
    NpuMmuCommand,
    NpuOperand,
    NpuRegister,
    NpuState,
    NpuTarget,
    PageState,
    Status,
)
from flexserve.platforms.trustzone.pool import Run
from flexserve.platforms.trustzone.ram import BASE, PAGE
from flexserve.protocol.launch import SecureOptions
from flexserve.testing import q8
from flexserve.testing.fake_monitor import FakeMonitor, Poll
from flexserve.testing.fake_os import Driver
from flexserve.testing.trustzone import FakeMachine, eventually
from flexserve.units import align_up

CODE = b"what drives the NPU (fake)"
DRIVER = hashlib.sha256(CODE).digest()

_ENTRIES = 512
_TABLE, _LEAF = 3, 3 | 1 << 10
_FLUSH = 30.0  # seconds; the thread of the device may be late


class Tree:
    """Tables through which the NPU sees the pages in one state, identically mapped."""

    def __init__(self, memory: memoryview, root: int, pages: int) -> None:
        self.root = root
        tables = -(-pages // _ENTRIES)
        entries = np.frombuffer(memory, np.uint64)
        entries[BASE >> 30] = root + PAGE | _TABLE
        entries[_ENTRIES : _ENTRIES + tables] = root + PAGE * np.arange(2, 2 + tables) | _TABLE
        self._leaves = entries[2 * _ENTRIES : 2 * _ENTRIES + pages]

    @staticmethod
    def size(pages: int) -> int:
        """Bytes of the tables for so many pages."""
        return (2 + -(-pages // _ENTRIES)) * PAGE

    def show(self, first: int, shown: NDArray[np.bool_]) -> None:
        """Let the pages from number `first` on be seen that are `shown`, and no others of them."""
        addresses = BASE + PAGE * np.arange(first, first + len(shown), dtype=np.uint64)
        self._leaves[first : first + len(shown)] = np.where(shown, addresses | np.uint64(_LEAF), 0)

    @property
    def shown(self) -> NDArray[np.bool_]:
        """Which pages are seen."""
        return np.asarray(self._leaves != 0)


class Gate:
    """The monitor's trees and control page, and whose the NPU is."""

    def __init__(self, monitor: FakeMonitor) -> None:
        self._monitor = monitor
        ram = monitor.ram
        self._control = ram.window(layout.npu_control_offset(ram.size), PAGE)
        self._window = ram.window(layout.npu_window_offset(ram.size), abi.NPU_WINDOW_BYTES)
        self.registers = self._window.cast("I")
        self._fields = monitor.mailbox.cast("I")
        at, size = layout.states_offset(ram.size) + align_up(ram.pages, PAGE), Tree.size(ram.pages)
        self.secure, self.devices = (
            Tree(ram.window(place, size), BASE + place, ram.pages) for place in (at, at + size)
        )
        self.rebuild()

    # ---- control page and trees

    def _word(self, offset: int) -> memoryview:
        return self._control[offset : offset + 4].cast("I")

    def _set_root(self, root: int) -> None:
        self._control[:8].cast("Q")[0] = root
        self._flush()

    def _flush(self) -> None:
        """Have no access with an older translation outstanding when this returns."""
        if not self._word(abi.NPU_OFFSET_BUSY)[0]:
            return
        flush, done = self._word(abi.NPU_OFFSET_FLUSH), self._word(abi.NPU_OFFSET_FLUSH_DONE)
        flush[0] = (flush[0] + 1) & 0xFFFF_FFFF
        deadline = time.monotonic() + _FLUSH
        while done[0] != flush[0]:
            assert time.monotonic() < deadline, "the device does not answer"
            time.sleep(0)

    def rebuild_tables(self) -> None:
        self._show(0, np.frombuffer(bytes(self._monitor.states), np.uint8))

    def moved(self, first: int, pages: int, state: PageState) -> None:
        self._show(first, np.full(pages, state, np.uint8))

    def _show(self, first: int, states: NDArray[np.uint8]) -> None:
        self.secure.show(first, states == PageState.SECURE)
        self.devices.show(first, states == PageState.NORMAL)
        self._flush()

    # ---- whose it is

    def rebuild(self) -> None:
        self._wanted: int | None = None
        self._become(NpuState.NORMAL)
        self.rebuild_tables()
        self._set_root(self.devices.root)

    @property
    def state(self) -> NpuState:
        return NpuState(self._fields[abi.OFFSET_NPU_STATE // 4])

    @property
    def normal(self) -> bool:
        return self.state is NpuState.NORMAL

    def _become(self, state: NpuState) -> None:
        self._fields[abi.OFFSET_NPU_STATE // 4] = state

    def grant(self, code: bytes) -> Status:
        """NPU_GRANT, a call of the OS: `code` is what stands in its pages."""
        with self._monitor.lock:
            if self._wanted is None or self.state is not NpuState.NORMAL:
                return Status.DENIED
            at = abi.OFFSET_NPU_DRIVER
            self._monitor.mailbox[at : at + 32] = hashlib.sha256(code).digest()
            self._begin(NpuState.ENTERING)
            return Status.OK

    def ask(self, deadline_ms: int) -> None:
        """NPU_ASK, a call of the OS."""
        self._monitor.tell(Event.NPU_ASKED, deadline_ms)

    def _begin(self, state: NpuState) -> None:
        self._become(state)
        self._set_root(0)
        reset = self._word(abi.NPU_OFFSET_RESET)
        reset[0] = (reset[0] + 1) & 0xFFFF_FFFF

    def go_on(self) -> bool:
        if self.state not in (NpuState.ENTERING, NpuState.LEAVING):
            return False
        if self._word(abi.NPU_OFFSET_RESET)[0] != self._word(abi.NPU_OFFSET_RESET_DONE)[0]:
            return True
        self._window[abi.NPU_WINDOW_KEPT :] = bytes(abi.NPU_WINDOW_BYTES - abi.NPU_WINDOW_KEPT)
        if self.state is NpuState.ENTERING:
            self._become(NpuState.SECURE)
            self._set_root(self.secure.root)
            self._monitor.tell(Event.NPU_GRANTED, self._wanted or 0)
        else:
            self._become(NpuState.NORMAL)
            self._set_root(self.devices.root)
            self._monitor.notify(Notice.NPU_BACK)
        self._wanted = None
        return False

    def leave(self) -> None:
        self._wanted = None
        if self.state in (NpuState.ENTERING, NpuState.SECURE):
            self._begin(NpuState.LEAVING)

    # ---- commands of the secure world

    def carry_out(self, command: Command, a: int, b: int, serial: int) -> None:
        status = Status.OK
        match command:
            case Command.NPU_WANT if self.normal:
                self._wanted = serial
                self._monitor.notify(Notice.NPU_WANTED, serial)
                return
            case Command.NPU_DRIVE if self.state is NpuState.SECURE:
                status = self.drive(a & 0xFFFF_FFFF, a >> 32, b)
            case Command.NPU_RELEASE if self._wanted is not None or self.state is NpuState.SECURE:
                self.leave()
            case _:
                status = Status.DENIED
        self._monitor.done(serial, status)

    def drive(self, commands: int, amount: int, tables: int) -> Status:
        """Do what the driver's code does, in its sandbox or in the OS: start a job."""
        registers = self.registers
        if registers[NpuRegister.OP_EN // 4]:
            return Status.BUSY
        for register, value in (
            (NpuRegister.INT_CLEAR, 0xFFFF_FFFF),
            (NpuRegister.MMU_DTE_ADDR, tables),
            (NpuRegister.MMU_COMMAND, NpuMmuCommand.ENABLE),
            (NpuRegister.DMA_BASE, 0),
            (NpuRegister.DATA_ADDR, commands),
            (NpuRegister.DATA_AMOUNT, amount),
            (NpuRegister.OP_EN, 1),
        ):
            registers[register // 4] = value
        return Status.OK


class Lender(Driver):
    """An OS with an NPU: lends it when it is asked, as long as it is `willing`, with `code` to drive it."""

    def __init__(self, *, willing: bool = True, code: bytes = CODE) -> None:
        super().__init__()
        self.willing, self.code = willing, code
        self.wanted = False  # by the secure world
        self.lent = 0  # times
        self.gate: Gate

    def serve(self, notice: Poll) -> None:
        super().serve(notice)
        if notice[0] is Notice.NPU_WANTED:
            self.wanted = True
            if self.willing:
                self.lend()

    def lend(self) -> None:
        """Lend it, if it is wanted."""
        if self.gate.grant(self.code) is Status.OK:
            self.lent += 1
        self.wanted = False


class DeviceThread:
    """The device, in this process. `stuck`: it begins no job, and answers the monitor only."""

    def __init__(self, machine: FakeMachine) -> None:
        memory = machine.monitor.ram.window(0, machine.monitor.ram.size)
        size = machine.monitor.ram.size
        control = layout.npu_control_offset(size)
        self._control = memory[control : control + PAGE].cast("I")
        self._op_en = memory[layout.npu_window_offset(size) + NpuRegister.OP_EN :][:4].cast("I")
        self._device = Device(memory, BASE, threads=1)
        self.stuck = False
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="fake-npu", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing = True
        self._thread.join()
        self._device.close()

    def _run(self) -> None:
        while not self._closing:
            if self.stuck and self._op_en[0]:
                self._play_dead()
            elif not self._device.look():
                time.sleep(0.0002)

    def _play_dead(self) -> None:
        words = self._control
        words[abi.NPU_OFFSET_FLUSH_DONE // 4] = words[abi.NPU_OFFSET_FLUSH // 4]
        if words[abi.NPU_OFFSET_RESET // 4] != words[abi.NPU_OFFSET_RESET_DONE // 4]:
            self._op_en[0] = 0  # and the device does the rest
        time.sleep(0.0002)


class NpuMachine(FakeMachine):
    """A FakeMachine with an NPU."""

    def __init__(self, ram_bytes: int, lender: Lender | None = None) -> None:
        self.lender = lender or Lender()
        super().__init__(ram_bytes, self.lender)
        self.gate = self.lender.gate = Gate(self.monitor)
        self.monitor.npu = self.gate
        self.device = DeviceThread(self)

    def die(self) -> None:
        super().die()
        self.device.close()

    def secure_options(self, options: SecureOptions) -> SecureOptions:
        return msgspec.structs.replace(super().secure_options(options), npu_driver=DRIVER)

    def relent(self) -> None:
        """Have the OS lend it from now on, what it was asked for included."""
        self.lender.willing = True
        with self.hung():
            if self.lender.wanted:
                self.lender.lend()
        self.serve()


class OsJobs:
    """The OS's own use of the NPU, on pages of its own. Only while it has it."""

    _ROWS, _COLUMNS, _DEPTH, _WIDTH = 16, 8, 64, 68

    def __init__(self, machine: NpuMachine) -> None:
        self._gate = machine.gate
        ram = machine.monitor.ram
        self._ram = np.frombuffer(ram.window(0, ram.size), np.uint8)
        self._rng = np.random.default_rng(8)
        runs = machine.driver.runs(machine.driver.allocate(npu_jobs.LIMITS.place // PAGE + 3))
        (ipa, _), *others = runs
        assert not others, "its memory is in pieces"
        self._place = self._base + ipa - BASE
        self._a, self._b, self._c = (self._place + npu_jobs.LIMITS.place + n * PAGE for n in range(3))

    @property
    def _base(self) -> int:
        """Where RAM is mapped here."""
        return int(self._ram.ctypes.data)

    def compute(self) -> bool:
        """Multiply random matrices; return whether the result is right."""
        a, b = (q8.random_matrix(self._rng, rows, self._DEPTH) for rows in (self._ROWS, self._COLUMNS))
        for address, matrix in ((self._a, a), (self._b, b)):
            data = q8.pack(matrix)
            mman.view(address, len(data))[:] = data
        size = 4 * self._ROWS * self._COLUMNS
        mman.view(self._c, size)[:] = b"\xee" * size
        raw = self._run(self._product(self._b))
        return raw == NpuInterrupt.DONE and bytes(mman.view(self._c, size)) == q8.multiply(a, b).tobytes()

    def read(self, page: int) -> int:
        """Name page number `page` of RAM as a matrix; return INT_RAW."""
        return self._run(self._product(self._base + page * PAGE))

    def reuse(self) -> int:
        """Multiply by what the job before has left on the chip; return INT_RAW."""
        return self._run(self._product(self._b), NpuFormat.Q8_0 | NpuFormat.REUSE)

    def _product(self, b: int) -> Product:
        return Product(
            rows=self._ROWS,
            columns=self._COLUMNS,
            depth=self._DEPTH,
            a=self._a,
            a_stride=self._WIDTH,
            b=b,
            b_stride=self._WIDTH,
            c=self._c,
            c_stride=4 * self._COLUMNS,
        )

    def _run(self, product: Product, form: int = NpuFormat.Q8_0) -> int:
        job = npu_jobs.write([product], self._place, self._behind)
        mman.view(self._place, 8).cast("Q")[0] = NpuTarget.CNA << 48 | form << 16 | NpuOperand.FORMAT
        assert self._gate.drive(job.list, job.commands, job.directory) is Status.OK
        registers = self._gate.registers
        assert eventually(lambda: not registers[NpuRegister.OP_EN // 4], within=_FLUSH), "a job hangs"
        return registers[NpuRegister.INT_RAW // 4]

    def _behind(self, address: int, length: int) -> list[Run]:
        return [Run(BASE + address - self._base, length // PAGE)]
