"""The NPU, which the kernel lends: reached while it is away, told to copy, handed over with a trap in it.

What the kernel tells the NPU past its driver is in driver/flexattack/npu.c. The secure world's end is the
product's own.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import re
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator

from flexserve.attacks.attempt import Gained, Pointless
from flexserve.attacks.trustzone.scene import (
    HIDDEN,
    MARK,
    RAM_BYTES,
    SECURE_RAM,
    UART,
    Scene,
    expect,
    hidden_places,
    until,
)
from flexserve.errors import NpuLostError
from flexserve.platforms.ports import NpuState, Product
from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.flexnpu import TrustZoneNpu
from flexserve.platforms.trustzone.layout import hidden_offset
from flexserve.platforms.trustzone.ram import BASE, PAGE, Ram
from flexserve.units import KIB

WINDOW = HIDDEN + abi.NPU_WINDOW_OFFSET

_WAYS = ("table", "device", "code", "tree")  # driver/flexattack/window.c
_PARTS = ("a", "b", "c", "list", "table", "directory")  # of a job: driver/flexattack/npu.c
_TOUCHED = (  # registers, by twos, as they are written
    abi.NpuRegister.OP_EN,
    abi.NpuRegister.DATA_ADDR,
    abi.NpuRegister.TASK_CON,
    abi.NpuRegister.MMU_DTE_ADDR,
    abi.NpuRegister.MMU_COMMAND,
)
_FAULTS = abi.NpuInterrupt.READ_FAULT | abi.NpuInterrupt.WRITE_FAULT
_TRAP = 0xD65F03C0_D2800020  # instructions: start nothing, say that all is well
_ROWS, _DEPTH, _ROW = 8, 32, 34  # of the secure world's B: rows, values, bytes
_TURNS, _STORM_MS = 40, 20_000  # how often the NPU changes hands in a storm, at most so long
_WATCH = 0.3  # seconds in which a job that still ran would be seen to write
_LONG = 10.0  # seconds


def reach_registers(scene: Scene) -> str:
    """Read and write the NPU's registers while it is the secure world's."""
    for way in _WAYS:
        scene.attack("poke", way, WINDOW + abi.NpuRegister.TASK_CON, MARK)
        if scene.attack("peek", way, WINDOW + abi.NpuRegister.TASK_CON)["value"] != MARK:
            raise Pointless(f"the attacker's own NPU cannot be programmed in this way either ({way})")
    with _asked(scene) as npu:
        _held(npu)
        for way in _WAYS:
            for page in range(WINDOW, WINDOW + abi.NPU_WINDOW_BYTES, PAGE):
                scene.expect_fault(f"read: registers ({way})", "peek", way, page)
            for register in _TOUCHED:
                scene.expect_fault(f"written: {register.name} ({way})", "poke", way, WINDOW + register, 1)
        _multiply(scene, npu)
    return "the registers leave Stage-2 before the NPU is handed over; that a job is over is read in them"


def copy_by_npu(scene: Scene) -> str:
    """Have the attacker's NPU use secure pages: as operands, results, list of commands, tables."""
    _copies(scene)
    secure = scene.secure()
    before = scene.word(secure)
    for part in _PARTS:
        _stopped(_run(scene, **{part: secure}), f"a secure page as {part}")
        if scene.word(secure) != before:
            raise Gained(f"the NPU wrote to a secure page ({part})")
    scene.check_canary()
    return "each address, of tables too, passes the monitor's table after the driver's"


def point_outside(scene: Scene) -> str:
    """Give the attacker's NPU jobs that name the monitor, its own registers and control page, secure RAM."""
    _copies(scene)
    places = {name: ipa for name, ipa in hidden_places().items() if ipa} | {
        "the NPU's registers": WINDOW,
        "the end of its registers": WINDOW + abi.NPU_WINDOW_BYTES - PAGE,
        "the UART": UART,
        "what is above RAM": BASE + RAM_BYTES,
        "the last page": (1 << 32) - PAGE,
    }
    for name, ipa in places.items():
        for part in _PARTS:
            _stopped(_run(scene, **{part: ipa}), f"{name} as {part}")
    scene.check_canary()
    return "the monitor's table has the OS's own pages and nothing else; registers are no memory to the NPU"


def patch_driver(scene: Scene) -> str:
    """Patch the driver's code before the NPU is handed over, and while the secure world uses it."""
    with _asked(scene) as npu:
        _held(npu)
        _multiply(scene, npu)
    places = _places(scene, scene.core, 0, hidden_offset(RAM_BYTES))
    with _patched(scene, places), _asked(scene) as npu:
        if npu.state is not NpuState.REFUSED:
            raise Gained("the secure world uses an NPU that another code drives")
    with _asked(scene) as npu:
        _held(npu)
        copies = _places(scene, scene.core, hidden_offset(RAM_BYTES), RAM_BYTES)
        for ipa in copies:
            scene.expect_fault("read: what drives the NPU", "peek", "table", ipa)
            scene.expect_fault("written: what drives the NPU", "poke", "table", ipa, _TRAP)
        with _patched(scene, places):
            _multiply(scene, npu)
    if not copies:
        raise Pointless("what drives the NPU was not found")
    return "the monitor hashes its own copy: the secure world refuses another, and a later patch is too late"


def reuse_what_is_left(scene: Scene) -> str:
    """Look for what the secure world left in the NPU's registers, and multiply with what is on its chip."""
    reuse = abi.NpuFormat.Q8_0 | abi.NpuFormat.REUSE
    made = [_run(scene, abi.NpuFormat.Q8_0), _run(scene, reuse)]
    if any(each["raw"] != abi.NpuInterrupt.DONE for each in made):
        raise Pointless("the attacker cannot use what it left there itself")
    if not scene.attack("npu-registers")["nonzero"]:
        raise Pointless("a job leaves nothing in the registers")
    with _asked(scene) as npu:
        _held(npu)
        _multiply(scene, npu)
    seen = scene.attack("npu-registers")
    if seen["fault"]:
        raise Pointless("the registers did not come back")
    if seen["nonzero"]:
        raise Gained(f"{seen['nonzero']} registers tell of the secure world's job")
    if (raw := _run(scene, reuse)["raw"]) != abi.NpuInterrupt.BAD_COMMAND:
        raise Gained(f"the NPU multiplied with what was on the chip (INT_RAW {raw:#x})")
    return "the NPU is reset whenever it changes hands, and the monitor clears its registers"


def keep_it_busy(scene: Scene) -> str:
    """Start a job that takes long and writes all the time, then hand the NPU over with it."""
    ipa = scene.attack("npu-hang")["ipa"]
    began = time.monotonic()
    if not _is_written(scene, ipa, _LONG) or not _is_written(scene, ipa, _LONG):
        raise Pointless("the job does not run")
    watch = max(_WATCH, 2 * (time.monotonic() - began))
    with _asked(scene) as npu:
        _held(npu)
        if _is_written(scene, ipa, watch):
            raise Gained("the job goes on while the NPU is the secure world's")
        _multiply(scene, npu)
    if _is_written(scene, ipa, watch):
        raise Gained("the job went on afterwards")
    _copies(scene)
    return "handing over takes the job's tables away and resets the NPU, and is not over before that is"


def lend_other_code(scene: Scene) -> str:
    """Grant the NPU unasked; grant code that is hidden, secure, or of another size."""
    own, size = scene.own(), len(scene.core)
    with _no_driver(scene):
        _lay(scene, own, scene.core)
        expect(_grant(scene, own, size), abi.Status.DENIED, "the NPU was handed over unasked")
        with _asked(scene, driven=False) as npu:
            for code in (HIDDEN, WINDOW, scene.secure(), scene.secure() - PAGE, BASE + RAM_BYTES - PAGE):
                status = _grant(scene, code, abi.NPU_CODE_BYTES_MAX)
                if status == abi.Status.OK:
                    raise Gained(f"code at {code:#x} was taken")
            for code, length in ((own + 8, size), (own, 0), (own, 8193), (own, 2**64 - 1), (SECURE_RAM, 8)):
                expect(
                    _grant(scene, code, length), abi.Status.INVALID, f"{length} bytes at {code:#x} were taken"
                )
            _taken(scene, own, size - 4)
            _served(scene, lambda: npu.state is NpuState.REFUSED)
        with _asked(scene, driven=False) as npu:
            _taken(scene, own, size)
            _served(scene, lambda: npu.state is NpuState.HELD)
            expect(_grant(scene, own, size), abi.Status.DENIED, "the NPU was granted twice")
            _multiply(scene, npu)
    return "code is whole pages of the OS's own, taken when asked for; it counts what it is, not where it was"


def storm_gate(scene: Scene) -> str:
    """Grant, ask for and poll the NPU on two CPUs at once while the secure world gets and uses it."""
    own, size = scene.own(), len(scene.core)
    turns: Counter[str] = Counter()
    with _no_driver(scene), concurrent.futures.ThreadPoolExecutor(1) as pool:
        _lay(scene, own, scene.core)
        storm = pool.submit(scene.attack, "npu-storm", _TURNS, size, scene.secure(), _STORM_MS)
        while not storm.done():
            turns[_turn(scene, storm.done)] += 1
        calls = storm.result()["calls"]
    scene.check_canary()
    _copies(scene)
    if not turns["right"]:
        raise Pointless(f"the secure world never had it {dict(turns)}")
    return (
        f"{calls} calls on two CPUs: {turns['right']} right products, {turns['refused']} other codes refused"
    )


# ---- the attacker's NPU -----------------------------------------------------------------------------------


def _run(scene: Scene, form: int = abi.NpuFormat.INT8, **where: int) -> dict[str, int]:
    """Have the NPU run a job, of which some parts lie in pages that are named."""
    made = scene.attack("npu-run", form, *(where.get(part, 0) for part in _PARTS))
    if made["fault"]:
        raise Pointless("the NPU is not the attacker's")
    return made


def _copies(scene: Scene) -> None:
    """Raise Pointless unless the NPU copies within the attacker's own pages."""
    made = _run(scene)
    if made["raw"] != abi.NpuInterrupt.DONE or made["value"] != made["mark"]:
        raise Pointless(f"the NPU does not copy the attacker's own pages either (INT_RAW {made['raw']:#x})")


def _stopped(made: dict[str, int], what: str) -> None:
    """Raise Gained unless the monitor's table ended a job."""
    if not (made["raw"] > 0 and made["raw"] & _FAULTS and made["mmu"] & abi.NpuMmuStatus.MONITOR):
        raise Gained(f"the NPU took {what} (INT_RAW {made['raw']:#x}, status {made['mmu']:#x})")


def _is_written(scene: Scene, ipa: int, seconds: float) -> bool:
    """Whether something writes to a word of the attacker's within so long."""
    scene.attack("poke", "direct", ipa, 0)
    deadline = time.monotonic() + seconds
    while scene.word(ipa) == bytes(8):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


# ---- handing over -----------------------------------------------------------------------------------------


def _grant(scene: Scene, code: int, size: int) -> int:
    return scene.call(abi.Call.NPU_GRANT, code, size)


def _taken(scene: Scene, code: int, size: int) -> None:
    """Grant the NPU, which is asked for: as soon as that has come through."""
    until(lambda: _grant(scene, code, size) == abi.Status.OK, "code of the attacker's own is refused")


@contextlib.contextmanager
def _asked(scene: Scene, *, driven: bool = True) -> Iterator[TrustZoneNpu]:
    """Have the secure world ask for the NPU, and give it back afterwards.

    If the driver hands it over (`driven`) it came before the block, to be HELD or REFUSED.
    """
    npu = TrustZoneNpu(scene.pages, scene.memory, hashlib.sha256(scene.core).digest())
    scene.audience.npu = npu
    npu.ask()
    try:
        if driven:
            _await(lambda: npu.state in (NpuState.HELD, NpuState.REFUSED), _LONG)
        yield npu
    finally:
        npu.release()
        _await(lambda: scene.mailbox.npu_state == abi.NpuState.NORMAL, _LONG)
        _await(lambda: npu.state in (NpuState.AWAY, NpuState.REFUSED), _LONG)


def _held(npu: TrustZoneNpu) -> None:
    if npu.state is not NpuState.HELD:
        raise Pointless(f"the secure world does not get the NPU ({npu.state.value})")


def _await(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Pointless("the NPU does not change hands")
        time.sleep(0.002)


def _served(scene: Scene, condition: Callable[[], bool]) -> None:
    """POLL in the driver's stead until something holds."""
    for _ in range(200):
        if condition():
            return
        scene.call(abi.Call.POLL)
    raise Pointless("the NPU does not change hands")


def _multiply(scene: Scene, npu: TrustZoneNpu) -> None:
    """Have the secure world's NPU multiply. Raises Gained when the product is wrong."""
    place = npu.limits.place
    a, b, c = (scene.arena.base + place + at * KIB for at in (4, 8, 12))
    product = Product(1, _ROWS, _DEPTH, a, _ROW, b, _ROW, c, 4 * _ROWS)
    length = place + 16 * KIB
    try:
        with scene.memory.view(scene.arena, 0, length) as view:
            view[place + 4 * KIB : place + 4 * KIB + _ROW] = _row(1)
            for row in range(_ROWS):
                at = place + 8 * KIB + row * _ROW
                view[at : at + _ROW] = _row(row)
            npu.submit([product], scene.arena.base)
            if not npu.wait(_LONG):
                raise Pointless("the secure world's job does not end")
            at = place + 12 * KIB
            seen = struct.unpack(f"<{_ROWS}f", view[at : at + 4 * _ROWS])
    except NpuLostError as error:
        raise Pointless(f"the secure world's job failed: {error.message}") from None
    finally:
        with scene.memory.view(scene.arena, 0, length) as view:
            view[:] = (scene.canary * (length // len(scene.canary) + 1))[:length]
    if seen != tuple(float(_DEPTH * row) for row in range(_ROWS)):
        raise Gained("the secure world's product is wrong")


def _row(value: int) -> bytes:
    """Return a block of q8_0: a scale of one, and the same value everywhere."""
    return struct.pack(f"<e{_DEPTH}b", 1.0, *[value] * _DEPTH)


def _turn(scene: Scene, over: Callable[[], bool]) -> str:
    """Have the secure world get the NPU and use it once; return what came of it."""
    with _asked(scene, driven=False) as npu:
        _await(lambda: over() or npu.state in (NpuState.HELD, NpuState.REFUSED), _LONG)
        if npu.state is not NpuState.HELD:
            return "refused" if npu.state is NpuState.REFUSED else "late"
        try:
            _multiply(scene, npu)
        except Pointless:
            return "failed"
        return "right"


# ---- code -------------------------------------------------------------------------------------------------


def _lay(scene: Scene, ipa: int, data: bytes) -> None:
    """Write to a page of the attacker's."""
    padded = data + bytes(-len(data) % 8)
    for at, (word,) in enumerate(struct.iter_unpack("<Q", padded)):
        scene.attack("poke", "direct", ipa + 8 * at, word)


def _places(scene: Scene, data: bytes, start: int, end: int) -> list[int]:
    """Return which pages of a part of RAM begin with `data`."""
    with Ram(scene.machine.ram_fd).window(start, end - start) as view:
        found = [match.start() for match in re.finditer(re.escape(data), view)]
    return [BASE + start + at for at in found if at % PAGE == 0]


@contextlib.contextmanager
def _patched(scene: Scene, places: list[int]) -> Iterator[None]:
    """Have other code where the driver's is. Raises Pointless when it cannot be altered."""
    before = int.from_bytes(scene.core[:8], "little")
    for ipa in places:
        scene.attack("poke", "table", ipa, _TRAP)
    try:
        if not places or any(scene.word(ipa) != _TRAP.to_bytes(8, "little") for ipa in places):
            raise Pointless("the driver's code cannot be patched")
        yield
    finally:
        for ipa in places:
            scene.attack("poke", "table", ipa, before)


@contextlib.contextmanager
def _no_driver(scene: Scene) -> Iterator[None]:
    """Have no driver of the NPU loaded for the length of the block."""
    scene.machine.agent.ask("unload", "flexnpu", seconds=60)
    try:
        yield
    finally:
        scene.machine.agent.ask("load", "flexnpu")
