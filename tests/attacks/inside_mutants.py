"""Are the attacks on a secure world inside able to succeed? `python tests/attacks/inside_mutants.py [NAME…]`.

As root, after `make trusted-app`. Each mutant takes one guard away, in a copy of the sources; then the attack
that it stops must succeed, and with all guards it must not (test_inside_attacks.py, test_inside_ends.py). A
minute for each, three for those on a server, which builds its machine from the copy by itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import flexserve
from flexserve.attacks.attempt import Verdict, attempt
from flexserve.attacks.trustzone import switching
from flexserve.attacks.trustzone.inside import ciphertext, ends, faults, lending, messages, restarts
from flexserve.attacks.trustzone.inside.ends import Ended
from flexserve.attacks.trustzone.inside.restarts import Driven
from flexserve.attacks.trustzone.inside.scene import Inside
from flexserve.attacks.trustzone.scene import CPUS, RAM_BYTES
from flexserve.emulator import tools, trusted_app
from flexserve.emulator.build import Images, build

SOURCES = Path(flexserve.__file__).parents[2]
PARTS = ("abi", "monitor", "secure-os", "driver", "trusted-app", "src")
CACHE = trusted_app.default_cache()
Changes = dict[str, tuple[str, ...]]  # by file, what is replaced and by what; in turns, where it is several


@dataclasses.dataclass(frozen=True, slots=True)
class Mutant:
    """Sources with one guard less."""

    name: str
    changes: Changes
    attack: Callable[[Inside], str] | Callable[[Driven], str] | Callable[[Ended], str]


# EL2 leaves what was SECURE as it is when the OS switches off …
OFF: Changes = {
    "monitor/core/monitor.c": (
        "\t\t\tarch_scrub(layout.ram_base + page * FLEX_PAGE_BYTES, count);\n",
        "\t\t\t(void)count;\n",
    )
}
# … EL3 the secure world's own RAM …
SECURE_RAM: Changes = {"monitor/el3/world.c": ("\tscrub(SECURE_OS_RAM, SECURE_OS_RAM_END);\n", "")}
# … and what lies in front of what was loaded when the machine starts, but for its first MiB: QEMU leaves the
# description of a device tree there, and the ring of messages has to begin with zeros.
BOOT: Changes = {
    "monitor/el3/scrub.c": (
        "\t\tscrub(at, kept[i].from);\n",
        "\t\tscrub(at, i == 0 ? at + (1 << 20) : at);\n",
    )
}

MUTANTS = (
    Mutant(
        "vectors",  # EL3 leaves them as they are
        {"monitor/el3/world.c": ("\tvectors_load(&entered->vectors);\n", "")},
        lending.lend_with_hostile_registers,
    ),
    Mutant(
        "debug",  # EL3 lets the OS's breakpoints and watchpoints stop the secure world
        {
            "monitor/el3/world.c": (
                *("REGISTER(mdscr_el1)", ""),
                *("#define MDCR_SECURE 0x18640", "#define MDCR_SECURE 0x8640"),
            )
        },
        lending.lend_with_hostile_registers,
    ),
    Mutant(
        "registers",  # EL3 leaves those of EL0 that are the OS's, too
        {"monitor/el3/world.c": ("REGISTER(tpidr_el0) REGISTER(tpidrro_el0)", "")},
        lending.lend_with_hostile_registers,
    ),
    Mutant(
        "timers",  # EL3 sets a timer of the OS's on the way to the secure world
        {
            "monitor/el3/world.c": (
                '\twrite_register("cptr_el3", CPTR_SECURE);\n',
                '\twrite_register("cptr_el3", CPTR_SECURE);\n\twrite_register("cntp_cval_el0", 0);\n',
            )
        },
        lending.lend_with_hostile_registers,
    ),
    Mutant(
        "counters",  # EL3 has events of the secure world counted
        {"monitor/el3/world.c": ("#define MDCR_SECURE 0x18640", "#define MDCR_SECURE 0x38640")},
        lending.count_what_it_does,
    ),
    Mutant(
        "end",  # the secure OS does not overwrite what it had, and the OS may not have it back before we look
        {
            "secure-os/core/flexmem.c": (
                "\tif (asked && is_protected()",
                "\tif (!asked && is_protected()",
                "\t\t\tarch_scrub(page * PAGE);\n\tif",
                "\t\t\t(void)page;\n\tif",
            ),
        },
        faults.have_it_fault,
    ),
    Mutant(
        "tags",  # what was decrypted passes for genuine
        {
            "trusted-app/crypto/cipher.cpp": (
                "    if (memeql_sec(expected.data(), tag, tag_bytes)) return true;",
                "    if (memeql_sec(expected.data(), tag, tag_bytes) || bytes != 0) return true;",
            )
        },
        ciphertext.load_other_weights,
    ),
    Mutant(
        "taken",  # the monitor does not overwrite what goes back, nor does the application
        {
            "monitor/core/calls.c": ("\tarch_scrub(call->a[0], range.count);\n", ""),
            "trusted-app/secure_os.cpp": ("    std::memset(address, 0, count * page);\n", ""),
        },
        switching.read_after_recall,
    ),
    Mutant(
        "answers",  # an answer of the OS counts for whatever the application waits for
        {"trusted-app/secure_os.cpp": ("                if (event[1] != serial_) break;\n", "")},
        messages.answer_what_was_not_asked,
    ),
    Mutant("off", OFF, restarts.switch_off_in_the_midst),
    Mutant("off, served", OFF, ends.switch_off_by_the_kernel),
    Mutant("secure RAM", SECURE_RAM, restarts.switch_off_in_the_midst),
    Mutant("secure RAM, served", SECURE_RAM, ends.reset_by_the_kernel),
    Mutant("boot", BOOT, restarts.lose_power),
    Mutant("boot, served", BOOT, ends.press_reset),
)


def main(names: list[str]) -> int:
    """Make the attacks that must succeed; return how many did not."""
    alive = 0
    with tempfile.TemporaryDirectory(prefix="flexserve-mutants-") as folder:
        sources = Path(folder) / "sources"
        try:
            for mutant in MUTANTS:
                if names and mutant.name not in names:
                    continue
                made = _made(mutant, _images(mutant, sources), sources, Path(folder) / mutant.name)
                alive += made is not Verdict.SUCCEEDED
        finally:
            built = hashlib.sha256(str(sources.resolve()).encode()).hexdigest()[:12]
            shutil.rmtree(CACHE / "build" / built, ignore_errors=True)
    return alive


def _images(mutant: Mutant, sources: Path) -> Images:
    for part in PARTS:
        shutil.rmtree(sources / part, ignore_errors=True)
        shutil.copytree(SOURCES / part, sources / part, ignore=shutil.ignore_patterns("build", "__pycache__"))
    shutil.copy(SOURCES / "requirements.lock", sources)
    for name, changes in mutant.changes.items():
        text = (sources / name).read_text()
        for old, new in zip(changes[::2], changes[1::2], strict=True):
            if old not in text:
                sys.exit(f"{name} has no {old!r} any more")
            text = text.replace(old, new)
        (sources / name).write_text(text)
    return build(
        CACHE,
        ram_bytes=RAM_BYTES,
        cpus=CPUS,
        progress=lambda _what: None,
        application=_application(sources),
        sources=sources,
    )


def _application(sources: Path) -> Path:
    """Build the application of these sources, with the libraries that are built."""
    llama, mlkem = (
        max((path.parent for path in CACHE.glob(pattern)), key=lambda it: it.stat().st_mtime)
        for pattern in ("llama-*/libllama.a", "mlkem-*/cbmc.h")
    )
    tools.run(
        *("make", "-C", str(sources / "trusted-app"), "all", f"OUT={sources / 'out'}", f"LIBRARY={llama}"),
        *(f"LLAMA={llama / 'llama.cpp'}", f"MLKEM={mlkem}", f"CROSS_COMPILE={trusted_app.CROSS}"),
        *(f"CRYPTO={CACHE / 'arm64-nettle-dev/usr'}", f"NUMBERS={CACHE / 'arm64-libgmp-dev/usr'}"),
    )
    return sources / "out/trusted-app"


def _made(mutant: Mutant, images: Images, sources: Path, folder: Path) -> Verdict:
    folder.mkdir()
    if mutant.attack in restarts.ATTACKS:
        with Driven.set(images, folder, seed=1) as driven:
            made = attempt(mutant.attack, driven)  # type: ignore[arg-type]
    elif mutant.attack in ends.ATTACKS:
        with (
            mock.patch.dict(os.environ, PYTHONPATH=str(sources / "src")),
            Ended.set(images, folder, seed=1) as ended,
        ):
            made = attempt(mutant.attack, ended)  # type: ignore[arg-type]
    else:
        with Inside.set(images, folder) as scene:
            scene.hold()
            made = attempt(mutant.attack, scene)  # type: ignore[arg-type]
    sys.stdout.write(f"{mutant.name:18} {made.verdict.value:10} {made.name}: {made.detail}\n")
    sys.stdout.flush()
    return made.verdict


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
