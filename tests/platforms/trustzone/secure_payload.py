"""A secure OS for tests (payload.S), images of registers, and where a test tells it what to do.

It makes no use of a secure OS of ours: it looks at what EL3 does between the two worlds.
"""

from __future__ import annotations

import enum
import mmap
import secrets
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import flexserve
from flexserve.units import MIB

SECURE_RAM, SECURE_RAM_END = 0x0E10_0000, 0x0F00_0000
FUNCTION = {"yield": 0xC200_0010, "doorbell": 0xC200_0011, "protection": 0xC200_0012}

_SOURCES = Path(flexserve.__file__).parents[2]
_CROSS = "aarch64-linux-gnu-"
_FROM_END, _BLOCK = 8 * MIB, 0x8000
_GO, _GOT, _IMAGE, _STEP = 0x18, 0x30, 0x1000, 0x1000
_VECTORS, _STATUS, _SYSTEM = 256, 768, 784

# What an image has behind x0 … x30, q0 … q31, FPCR and FPSR, and which bits of each can be any.
SYSTEM = {
    "sp_el0": ~0 & (1 << 64) - 1,
    "sp": 0xFFFF_FFFF_FFF0,
    "elr_el1": 0xFFFF_FFFF_FFFF,
    "spsr_el1": 0xF000_0000,
    "esr_el1": 0xFFFF_FFFF,
    "far_el1": 0xFFFF_FFFF_FFFF,
    "afsr0_el1": 0xFFFF_FFFF,
    "afsr1_el1": 0xFFFF_FFFF,
    "par_el1": 0xFFFF_FFFF_F001,
    "tpidr_el0": (1 << 64) - 1,
    "tpidrro_el0": (1 << 64) - 1,
    "tpidr_el1": (1 << 64) - 1,
    "contextidr_el1": 0xFFFF_FFFF,
    "csselr_el1": 0x3,
    "cntkctl_el1": 0x3F3,
    "amair_el1": (1 << 64) - 1,
    "ttbr1_el1": 0xFFFF_F000,
    "vbar_el1": 0xFFFF_FFFF_F800,
}
# Those that only a world without an MMU can change in passing; and those that only the OS may touch.
TRANSLATION = {"mair_el1": (1 << 64) - 1, "ttbr0_el1": 0xFFFF_F000, "tcr_el1": 0x3F3F}
OF_OS = {"mdscr_el1": 1 << 12, "pmuserenr_el0": 0xF}
_FIXED = ("sctlr_el1", "cpacr_el1")  # looked at, never loaded


def _move(register: str, *, write: bool) -> str:
    if register == "sp":
        return "mov sp, x2" if write else "mov x2, sp"
    return f"msr {register}, x2" if write else f"mrs x2, {register}"


def macros(loaded: Sequence[str], looked_at: Sequence[str]) -> str:
    """Return load_all and dump_all for images with `loaded` and then `looked_at`."""
    pairs = range(0, 32, 2)
    load = ["add x1, x0, #784"]
    load += [line for name in loaded for line in ("ldr x2, [x1], #8", _move(name, write=True))]
    load += ["isb", "add x1, x0, #256", *(f"ldp q{n}, q{n + 1}, [x1, #{16 * n}]" for n in pairs)]
    load += ["add x1, x0, #768", "ldp x2, x3, [x1]", "msr fpcr, x2", "msr fpsr, x3", "ldr x1, [x0, #8]"]
    load += [f"ldp x{n}, x{n + 1}, [x0, #{8 * n}]" for n in range(2, 30, 2)] + ["ldr x30, [x0, #240]"]
    dump = ["str x1, [x0, #8]", *(f"stp x{n}, x{n + 1}, [x0, #{8 * n}]" for n in range(2, 30, 2))]
    dump += ["str x30, [x0, #240]", "add x1, x0, #784"]
    for name in (*loaded, *looked_at):
        dump += [_move(name, write=False), "str x2, [x1], #8"]
    dump += ["mov x2, #3 << 20", "msr cpacr_el1, x2", "isb", "add x1, x0, #256"]
    dump += [f"stp q{n}, q{n + 1}, [x1, #{16 * n}]" for n in pairs]
    dump += ["mrs x2, fpcr", "str x2, [x1, #512]", "mrs x2, fpsr", "str x2, [x1, #520]"]
    return "".join(
        f".macro {name}\n" + "".join(f"\t{line}\n" for line in lines) + ".endm\n"
        for name, lines in (("load_all", load), ("dump_all", dump))
    )


class Layout:
    """An image of registers: what it is loaded from, and what is in it."""

    def __init__(self, loaded: dict[str, int], looked_at: Sequence[str] = _FIXED) -> None:
        self.loaded, self.looked_at = loaded, (*looked_at,)

    def macros(self) -> str:
        return macros(tuple(self.loaded), self.looked_at)

    def random(self) -> bytes:
        """Return an image that can be loaded, of values that nobody else has."""
        image = bytearray(secrets.token_bytes(_STATUS) + struct.pack("<2Q", *_random_status()))
        for mask in self.loaded.values():
            image += struct.pack("<Q", secrets.randbits(64) & mask or mask & -mask)
        return bytes(image)

    def read(self, image: bytes) -> dict[str, int]:
        """Return the registers of an image by their names."""
        found = {f"x{n}": struct.unpack_from("<Q", image, 8 * n)[0] for n in range(31)}
        for n in range(32):
            found[f"q{n}"] = int.from_bytes(image[_VECTORS + 16 * n : _VECTORS + 16 * n + 16], "little")
        names = ("fpcr", "fpsr", *self.loaded, *self.looked_at)
        found |= zip(names, struct.unpack_from(f"<{len(names)}Q", image, _STATUS), strict=True)
        return found

    def loaded_from(self, image: bytes) -> dict[str, int]:
        """Return the system registers, FPCR and FPSR of an image that can be loaded."""
        names = ("fpcr", "fpsr", *self.loaded)
        return dict(zip(names, struct.unpack_from(f"<{len(names)}Q", image, _STATUS), strict=True))

    @property
    def size(self) -> int:
        """Bytes of what is dumped."""
        return _SYSTEM + 8 * (len(self.loaded) + len(self.looked_at))


def _random_status() -> tuple[int, int]:
    """Return an FPCR (how is rounded) and an FPSR (what happened so far), neither of them zero."""
    return (secrets.randbelow(3) + 1) << 22, secrets.randbelow(31) + 1


def images() -> tuple[bytes, bytes]:
    """Return an image for the OS, and one for the payload that has another value in each register."""
    while True:
        ours, theirs = OS.random(), PAYLOAD.random()
        others = PAYLOAD.loaded_from(theirs)
        if all(others.get(name) != value for name, value in OS.loaded_from(ours).items()):
            return ours, theirs


PAYLOAD = Layout(SYSTEM | TRANSLATION)
OS = Layout(SYSTEM | OF_OS, (*_FIXED, *TRANSLATION))


def payload(folder: Path) -> bytes:
    """Return the image of the secure OS."""
    return assembled(PAYLOAD.macros() + (Path(__file__).parent / "payload.S").read_text(), folder)


def assembled(source: str, folder: Path) -> bytes:
    """Return the machine code of assembly that may include the monitor's headers."""
    target = folder / "secure"
    includes = (f"-I{_SOURCES / 'monitor'}", f"-I{_SOURCES / 'abi'}")
    command = (f"{_CROSS}gcc", *includes, "-x", "assembler-with-cpp", "-c", "-", "-o", f"{target}.o")
    subprocess.run(command, input=source.encode(), check=True)
    subprocess.run((f"{_CROSS}objcopy", "-O", "binary", f"{target}.o", target), check=True)
    return target.read_bytes()


class Wish(enum.IntEnum):
    """What the payload can be told."""

    IDLE = 0
    BUSY = 1
    CANARIES = 2
    FINISH = 3
    CALL = 4
    TOUCH = 5
    FETCH = 6
    SCAN = 7
    PAINT = 8


class Block:
    """Where a CPU's payload is told something, and tells what came of it."""

    def __init__(self, memory: mmap.mmap, cpu: int) -> None:
        self._at = len(memory) - _FROM_END + cpu * _BLOCK
        self.address = 0x4000_0000 + self._at
        self._memory = memory
        self._words = memoryview(memory).cast("Q")  # written and read whole

    def _word(self, offset: int) -> int:
        return (self._at + offset) // 8

    def wish(self, wish: Wish, a: int = 0, b: int = 0) -> None:
        self._words[self._word(8)], self._words[self._word(16)] = a, b
        self._words[self._word(0)] = wish

    @property
    def wished(self) -> Wish:
        return Wish(self._words[self._word(0)])

    @property
    def beats(self) -> int:
        """How often a busy payload went round."""
        return self._words[self._word(0x20)]

    @property
    def ticks(self) -> int:
        """How much of the counter's time a busy payload had."""
        return self._words[self._word(0x28)]

    @property
    def got(self) -> tuple[int, ...]:
        """x0 … x5 of a call, or one number."""
        return struct.unpack_from("<6Q", self._memory, self._at + _GOT)

    def go(self, yes: bool) -> None:
        """Whether the payload that waits with canaries in its registers shall go on."""
        self._words[self._word(_GO)] = yes

    def load(self, image: bytes) -> None:
        """Put there what CANARIES loads."""
        self._memory[self._at + _IMAGE : self._at + _IMAGE + len(image)] = image

    def image(self, number: int) -> dict[str, int]:
        """Return what was dumped: 1 after it was loaded, 2 after the wait, 3 at its first instruction."""
        at = self._at + _IMAGE + number * _STEP
        return PAYLOAD.read(self._memory[at : at + PAYLOAD.size])
