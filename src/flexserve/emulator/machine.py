"""The emulated machine: QEMU plays it, a second process its NPU, and nothing outlives this process.

RAM is an anonymous shared file, the secure UART and the agent's port are socket pairs, and the
firmware is a patched copy in memory: all of them descriptors, so there is no path that anybody else
could open and nothing to clean up. The secure world inherits RAM and its end of the secure UART, as
a secure core is wired to DRAM and to its interrupt. This process, which plays the hardware and could
read everything as QEMU itself can, keeps them only to start the next secure world.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from flexserve.emulator import boot_rom, disks, npu, secure_os, tools
from flexserve.emulator.build import Images
from flexserve.emulator.device import Device, Provisioned
from flexserve.emulator.guest_memory import GuestMemory
from flexserve.errors import CallerError, MachineGoneError, NormalWorldError
from flexserve.platforms.linux import parent_death
from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.agent import Agent
from flexserve.platforms.trustzone.mailbox import Mailbox
from flexserve.platforms.trustzone.ram import BASE, PAGE, Ram
from flexserve.protocol.launch import SECURE_WORLD, SecureOptions
from flexserve.units import GIB, MIB, format_size

SMALLEST, LARGEST, STEP = 256 * MIB, 3 * GIB, 2 * MIB  # of RAM
MOST_CPUS = 8

_QEMU = "qemu-system-aarch64"
_KERNEL, _DEVICETREE, _INITRD = 0x4020_0000, 0x4400_0000, 0x4800_0000  # where the firmware expects them
_BOOT = 120.0  # seconds: a machine that shares its cores with a build is slow
_RESET = 1.0  # seconds for the monitor to answer
_CONSOLE = 400  # lines kept
_LAST_LINES = 20
_LAST_WORDS = 0.5  # seconds


@dataclasses.dataclass(frozen=True, slots=True)
class MonitorState:
    """What the monitor counts."""

    pages: dict[str, int]  # bytes in each state
    faults: int  # accesses of the normal world that it stopped
    npu: abi.NpuState


class Machine:
    """A machine of `ram_bytes` and `cpus`, from `__enter__` until `__exit__` or its own end.

    With an `npu` it ends when that does. `disks` are files of whole pages, as /dev/vda and so on, or
    descriptors of such; they must not grow or shrink while it runs. A program of the guest has the driver use
    the first one, as `disk_line` commands. `devices` are more of QEMU's `-device`, for tests; `lines` are
    names of character devices for them, of which `self.lines` has the other ends. With `resets` it starts
    again when its OS resets it, instead of ending. An application at S-EL0 has a secret: `secret`, 32 bytes,
    or what `device` hands on (then `provisioned` says more). `ram` is that of a machine that has ended, as it
    left it: a descriptor, which stays the caller's. `emulator`: a program that plays it, for tests.
    Start it from a thread that lives as long as it should: the kernel kills it with that thread.
    """

    program = SECURE_WORLD  # what answers on it, as a normal.guest.SecureCore has it

    def __init__(
        self,
        images: Images,
        *,
        ram_bytes: int = GIB,
        cpus: int = 2,
        npu: bool = False,
        disks: Sequence[Path | int] = (),
        devices: Sequence[str] = (),
        lines: Sequence[str] = (),
        resets: bool = False,
        secret: bytes = b"",
        device: Device | None = None,
        ram: int | None = None,
        emulator: str = _QEMU,
    ) -> None:
        if not SMALLEST <= ram_bytes <= LARGEST or ram_bytes % STEP:
            raise CallerError(
                f"The machine cannot have {format_size(ram_bytes)} of memory.",
                hint="Give 256M to 3G, in steps of 2M.",
            )
        if not 1 <= cpus <= MOST_CPUS:
            raise CallerError(f"The machine cannot have {cpus} CPUs.", hint=f"Give it 1 to {MOST_CPUS}.")
        self._images, self.ram_bytes, self.cpus, self._devices = images, ram_bytes, cpus, devices
        self.has_npu, self._disks = npu, disks
        self._npu_status: int | None = None  # of its end, when it came by itself
        self._resets, self._secret, self._device = resets, secret, device
        self.provisioned: Provisioned | None = None
        self._ram, self._emulator = ram, emulator
        self._more_lines, self.lines = lines, dict[str, socket.socket]()
        self._console: collections.deque[str] = collections.deque(maxlen=_CONSOLE)
        self._stack = contextlib.ExitStack()
        self.ram_fd = -1
        self.doorbell: socket.socket
        self.firmware: boot_rom.StartedFirmware
        self.agent: Agent
        self.boot_seconds = 0.0
        self._given_up = False  # nobody wants it to come up any more
        self._process: subprocess.Popen[bytes]
        self._reader: threading.Thread  # of the console

    def __enter__(self) -> Self:
        """Boot. Raises NormalWorldError, with the end of the console, when it does not come up."""
        try:
            self._boot()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def give_up(self) -> None:
        """Have `__enter__` raise soon, if it still boots. Any thread."""
        self._given_up = True

    @property
    def alive(self) -> bool:
        """Whether the emulator runs."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """The emulator's process id."""
        return self._process.pid

    def console(self) -> list[str]:
        """Return the last lines of the machine's console and of the emulator's messages."""
        return list(self._console)

    def require_alive(self) -> None:
        """Return if the machine runs, else raise MachineGoneError with the end of its console."""
        if not self.alive:
            raise MachineGoneError(
                f"The machine {self._how_it_ended()}. {self.last_words()}",
                hint="Start it again; if it ends again, report this as a bug.",
            )

    def renew(self) -> None:
        """Return if another secure world can run here, else raise MachineGoneError."""
        self.require_alive()

    def last_words(self) -> str:
        """Return the end of the console, for people; of a machine that is ending, all that it still says."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_WORDS)  # its descriptors go a moment before it does
            self._reader.join(_LAST_WORDS)
        last = "\n  ".join(["", *self.console()[-_LAST_LINES:]]) or " nothing."
        return f"Its last words:{last}\n"

    def secure_options(self, options: SecureOptions) -> SecureOptions:
        """Return `options` of a secure world on this machine: those by which it finds it are added."""
        ram, doorbell = self.secure_fds
        driver = self.npu_driver if self.has_npu else b""
        return msgspec.structs.replace(
            options,
            memory="trustzone",
            ram_fd=ram,
            doorbell_fd=doorbell,
            npu_driver=driver,
            firmware=self.firmware.digest,
            firmware_authority=self.firmware.authority,
        )

    @property
    def npu_driver(self) -> bytes:
        """SHA-256 of the code that must drive the NPU for a secure world."""
        return hashlib.sha256(self._images.npu_core.read_bytes()).digest()

    @property
    def has_disk(self) -> bool:
        """Whether it has a disk."""
        return bool(self._disks)

    @property
    def disk_line(self) -> socket.socket:
        """The line to the program of the guest that has its disk (driver/guest/disk.c)."""
        return self.lines["disk"]

    @property
    def secure_fds(self) -> tuple[int, int]:
        """RAM and the secure core's end of the secure UART."""
        return self.ram_fd, self.doorbell.fileno()

    def memory(self) -> GuestMemory:
        """Return the guest's view of its memory."""
        return GuestMemory(self.agent)

    def monitor(self) -> MonitorState:
        """Return what the monitor counts."""
        mailbox = self._mailbox()
        states = bytes(mailbox.states)
        pages = {state.name: states.count(state) * PAGE for state in abi.PageState}
        return MonitorState(pages, mailbox.faults, abi.NpuState(mailbox.npu_state))

    def _mailbox(self) -> Mailbox:
        return Mailbox(Ram(self.ram_fd), self.doorbell)

    def reset_secure_core(self) -> None:
        """Tell the monitor that the secure world is dead, so that the guest gets its memory back now.

        Raises NormalWorldError when the guest does not serve its mailbox.
        """
        if self.alive:
            self._mailbox().lay_to_rest(_RESET)

    # ---- starting -------------------------------------------------------------------------------

    def _boot(self) -> None:
        began = time.monotonic()
        tools.require(self._emulator)
        self.ram_fd = self._memory("ram", self.ram_bytes) if self._ram is None else self._kept(self._ram)
        firmware = self._memory("firmware", 0)
        os.write(firmware, self._patched_firmware())
        if self._device is not None:
            self.provisioned = self._device.provision(self._images, firmware, self.firmware)
        with contextlib.ExitStack() as theirs:
            wires: dict[str, int] = {}
            for name in ("secure", "agent", *["disk"] * self.has_disk, *self._more_lines):
                self.lines[name], end = self._pair()
                wires[name] = theirs.enter_context(end).fileno()
            files = [theirs.enter_context(disks.opened(disk)) for disk in self._disks]
            words = [self._emulator, *self._arguments(self.ram_fd, firmware, wires), *disks.arguments(files)]
            fds = (self.ram_fd, firmware, *wires.values(), *files)
            self._process, self._reader = self._started(words, fds)
        self.doorbell = self.lines["secure"]
        if self.has_npu:
            self._start_npu()
        self.agent = Agent(self.lines["agent"])
        try:
            self.agent.wait_until_ready(_BOOT, alive=self._comes_up)
            if self.has_disk:
                self.agent.ask("start", "disk")
                Agent(self.disk_line).wait_until_ready(_BOOT, alive=self._comes_up)
        except NormalWorldError as error:
            raise self._no_boot() from error
        self.boot_seconds = time.monotonic() - began

    def _comes_up(self) -> bool:
        return self.alive and not self._given_up

    def _memory(self, name: str, size: int) -> int:
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        self._stack.callback(os.close, fd)
        os.ftruncate(fd, size)
        return fd

    def _kept(self, memory: int) -> int:
        fd = os.dup(memory)
        self._stack.callback(os.close, fd)
        return fd

    def _pair(self) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair()
        self._stack.callback(ours.close)
        return ours, theirs

    def _patched_firmware(self) -> bytes:
        """Return the firmware with this board's description, as fuses would tell it, and a fresh seed."""
        verified, self.firmware = boot_rom.verified(self._images.firmware, self._images.firmware_key)
        image = bytearray(verified)
        board = struct.pack(
            "<8Q",
            *(abi.BOARD_MAGIC, BASE, self.ram_bytes, self.cpus, self.has_npu),
            *(_size_of(path) for path, _ in self._loaded()),
        )
        place = slice(abi.BOARD_OFFSET, abi.BOARD_OFFSET + len(board))
        if any(image[place]) or len(image) <= place.stop:
            raise NormalWorldError(
                f"{self._images.firmware} leaves no place for the board's description.",
                hint="Delete it: `flexserve boot` builds another.",
            )
        image[place] = board
        secure_os.provision(image, self._secret)
        return bytes(image)

    def provide_models(self) -> None:
        """Ready the models that its device's store got meanwhile. Raises what Device.provision raises."""
        if self._device is not None:
            self._device.provision(self._images, -1, self.firmware)

    def _loaded(self) -> tuple[tuple[Path, int], ...]:
        """Return the files that are in RAM when the machine starts, and where."""
        images = self._images
        return (images.kernel, _KERNEL), (images.devicetree, _DEVICETREE), (images.initrd, _INITRD)

    def _start_npu(self) -> None:
        process, _ = self._started(npu.command(self.ram_fd, self.ram_bytes), (self.ram_fd,))
        closing = threading.Event()
        self._stack.callback(closing.set)

        def watch() -> None:
            status = process.wait()
            if not closing.is_set():
                self._npu_status = status
                self._process.kill()

        threading.Thread(target=watch, name="machine-npu", daemon=True).start()

    def _started(
        self, words: Sequence[str], fds: Sequence[int]
    ) -> tuple[subprocess.Popen[bytes], threading.Thread]:
        """Start a part of the machine; return it, and the thread that puts its words on the console."""
        try:
            process = subprocess.Popen(
                parent_death.command(*words),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=fds,
                start_new_session=True,  # Ctrl-C is ours to handle
            )
        except OSError as error:
            raise NormalWorldError(
                f"The emulator cannot be started: {error.strerror}.", hint="Free memory or processes."
            ) from error
        self._stack.callback(_kill, process)
        reader = threading.Thread(
            target=self._read_console, args=(process,), name="machine-console", daemon=True
        )
        reader.start()
        return process, reader

    def _arguments(self, ram: int, firmware: int, wires: Mapping[str, int]) -> list[str]:
        # No ITS, no highmem, nothing by default: every device that could reach RAM is one we name,
        # and sits behind the SMMU. `-cpu max` would need more traps than the monitor sets.
        file = f"/proc/self/fd/{ram}"
        options = {
            "machine": "virt,secure=on,virtualization=on,gic-version=3,highmem=off,its=off,iommu=smmuv3,"
            "memory-backend=ram",
            "cpu": "cortex-a76",
            # For one CPU alone QEMU leaves barriers out, and the NPU beside it could see writes out of order.
            "smp": f"cpus={self.cpus},maxcpus={max(self.cpus, 2)}",
            "m": f"{self.ram_bytes // MIB}M",
            "object": f"memory-backend-file,id=ram,share=on,size={self.ram_bytes},mem-path={file}",
            "display": "none",
            "monitor": "none",
            "bios": f"/proc/self/fd/{firmware}",
        }
        words = ["-nodefaults", "-no-user-config", *([] if self._resets else ["-no-reboot"])]
        for name, value in options.items():
            words += [f"-{name}", value]
        for name, fd in wires.items():
            words += ["-chardev", f"socket,id={name},fd={fd}"]
        words += ["-chardev", "file,id=console,path=/dev/stdout"]
        words += ["-serial", "chardev:console", "-serial", "chardev:secure"]
        devices = [f"loader,file={path},addr={address:#x},force-raw=on" for path, address in self._loaded()]
        devices += ["virtio-serial-pci,iommu_platform=on,disable-legacy=on"]
        devices += ["virtserialport,chardev=agent,name=flex"]
        devices += ["virtserialport,chardev=disk,name=disk"] * self.has_disk
        devices += self._devices
        for device in devices:
            words += ["-device", device]
        return words

    def _read_console(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                text = line.decode(errors="replace").rstrip()
                self._console.append("".join(char if char.isprintable() else " " for char in text))

    def _how_it_ended(self) -> str:
        if self._npu_status is not None:
            return f"ended because its NPU did, with status {self._npu_status}"
        return f"ended with status {self._process.returncode}"

    def _no_boot(self) -> NormalWorldError:
        last = self.last_words()
        how = "did not boot" if self.alive else f"{self._how_it_ended()} while booting"
        return NormalWorldError(
            f"The machine {how}. {last}",
            hint="`flexserve boot` builds its parts again.",
            code="no_boot",
        )


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _size_of(path: Path) -> int:
    """Return the bytes of a file that is loaded. Raises NormalWorldError when there is none."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise NormalWorldError(
            f"Cannot load {path}: {error.strerror}.", hint="`flexserve boot` builds what is missing."
        ) from None
