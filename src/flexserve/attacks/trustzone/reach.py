"""Reaching for a page by address: through every kind of mapping, and from programs."""

from __future__ import annotations

from flexserve.attacks.attempt import Gained, Pointless
from flexserve.attacks.trustzone.scene import MARK, UART, Attacked, Scene, hidden_places
from flexserve.platforms.trustzone import abi

_WAYS = ("direct", "table", "device", "code", "tree", "walk")  # driver/flexattack/window.c
_RUNNING_WAYS = ("opened", "code", "tree")
_TOUCHES = ("read", "write", "execute", "send", "receive", "copy")  # driver/guest/reach.c
_TRACES = ("vm", "mem", "peek", "poke")
_MAINTENANCE = ("civac", "cvac", "ivac", "ivau")  # driver/flexattack/lines.c
_FAILED, _ADDRESS = 1, 0xFFFF_FFFF_F000  # of PAR_EL1
_RETURN = 0xD65F03C0  # the instruction


def read_as_kernel(scene: Attacked) -> str:
    """Read a secure page through the kernel's map of RAM, entries and tables of the attacker's own."""
    own, secure = scene.own(), scene.secure()
    for way in _WAYS:
        scene.attack("poke", "direct", own, MARK)
        made = scene.attack("peek", way, own)
        if made["fault"] or (way != "walk" and made["value"] != MARK):
            raise Pointless(f"the attacker's own page cannot be read in this way ({way})")
        scene.expect_fault(f"read ({way})", "peek", way, secure)
    scene.check_canary()
    return "Stage-2 has no mapping of the page; the kernel gets a fault, its fix-ups run"


def write_as_kernel(scene: Attacked) -> str:
    """Write to a secure page in the same ways."""
    own, secure = scene.own(), scene.secure()
    for way in _WAYS:
        if scene.attack("poke", way, own, MARK)["fault"] != 0:
            raise Pointless(f"the attacker's own page cannot be written in this way ({way})")
        scene.expect_fault(f"written ({way})", "poke", way, secure, MARK)
    scene.check_canary()
    return "Stage-2 has no mapping of the page, not even for the CPU's own walk of page tables"


def execute_as_kernel(scene: Attacked) -> str:
    """Jump into a secure page through the kernel's map of RAM, an entry and tables of the attacker's own."""
    own, secure = scene.own(), scene.secure()
    for way in _RUNNING_WAYS:
        scene.attack("poke", "direct", own, _RETURN)
        if scene.attack("execute", way, own)["fault"] != 0:
            raise Pointless(f"the attacker's own page cannot be executed in this way ({way})")
        scene.expect_fault(f"executed ({way})", "execute", way, secure)
    return "Stage-2 has no mapping of the page; the attacker's thread dies"


def reach_granted(scene: Scene) -> str:
    """Read and write a page that was granted and not yet used."""
    if not scene.pages.want(1, 1):
        raise Pointless("the guest granted no page")
    ipa = scene.attack("find", int(abi.PageState.GRANTED))["ipa"]
    try:
        scene.expect_fault("read", "peek", "direct", ipa)
        scene.expect_fault("written", "poke", "table", ipa, MARK)
    finally:
        scene.pages.trim(0)
    return "a page leaves Stage-2 with its grant, before the secure world hears of it"


def map_into_program(scene: Attacked) -> str:
    """Map a secure page into a program: it reads, writes, executes; system calls copy from and to it."""
    return _by_program(scene, "touch", _TOUCHES)


def trace_program(scene: Attacked) -> str:
    """Look at a program that has a secure page mapped: ptrace, /proc/PID/mem, process_vm_readv."""
    return _by_program(scene, "trace", _TRACES)


def overwrite_lines(scene: Attacked) -> str:
    """Overwrite, clean and invalidate lines of a secure page by virtual address."""
    own, secure = scene.own(), scene.secure()
    for way in ("direct", "table"):
        scene.attack("poke", "direct", own, MARK)
        if scene.attack("line", "zva", way, own)["fault"] or scene.word(own) != bytes(8):
            raise Pointless(f"a line of the attacker's own page cannot be overwritten either ({way})")
        scene.expect_fault(f"overwritten ({way})", "line", "zva", way, secure)
        for operation in _MAINTENANCE:
            scene.attack("line", operation, way, secure)
    scene.check_canary()
    return "what writes needs a mapping in Stage-2; what cleans or invalidates alters nothing that is secure"


def translate_through_it(scene: Attacked) -> str:
    """Have the CPU translate (AT) by a secure page, as if that were a table, and say what it found."""
    own, secure = scene.own(), scene.secure()
    made = scene.attack("translate", "walk", own)
    if made["fault"] or made["par"] & _FAILED or made["par"] & _ADDRESS != own:
        raise Pointless("it does not translate by the attacker's own page either")
    scene.expect_fault("read as a table", "translate", "walk", secure)
    return "the CPU's own walk passes Stage-2, too, also when nobody accesses what is translated"


def reach_hidden(scene: Attacked) -> str:
    """Read, write and execute what is hidden: the monitor, its tables, secure RAM and UART, SMMU, fw_cfg."""
    if scene.attack("peek", "device", UART)["fault"] != 0:
        raise Pointless("not even the UART can be read in this way")
    places = hidden_places()
    for name, address in places.items():
        for way in ("table", "device"):
            scene.expect_fault(f"read: {name} ({way})", "peek", way, address)
        scene.expect_fault(f"written: {name}", "poke", "device", address, MARK)
        scene.expect_fault(f"executed: {name}", "execute", "code", address)
    return f"{len(places)} places are in no table: Stage-2 lists what may be reached, and nothing else"


def _by_program(scene: Attacked, program: str, ways: tuple[str, ...]) -> str:
    """Have a program reach for a page in all `ways`."""
    own, secure = scene.own(), scene.secure()
    ends: dict[str, list[str]] = {}
    for how in ways:
        scene.attack("poke", "direct", own, _RETURN)
        if (control := _end(scene, program, own, how)) is not None:
            raise Pointless(f"the attacker's own page cannot be reached either ({how}: {control})")
        with scene.stopped(how):
            end = _end(scene, program, secure, how)
            if end is None:
                raise Gained(f"a program reached it ({how})")
        ends.setdefault(end, []).append(how)
    scene.check_canary()
    return "; ".join(f"{end} ({', '.join(hows)})" for end, hows in ends.items())


def _end(scene: Attacked, program: str, ipa: int, how: str) -> str | None:
    """Return what stopped a program that reached for a page; None: nothing did."""
    job = scene.run(program, ipa, how)
    came = job["result"]
    if job["signal"] or not isinstance(came, dict):
        return "the kernel faults in its stead, and it dies"
    if not came["mapped"]:
        return "it gets no mapping"
    if came["signal"]:
        return f"it gets signal {came['signal']}"
    return f"the call fails with errno {came['errno']}" if came["errno"] else None
