"""Are the attacks on a secure world inside able to succeed? `python tests/attacks/inside_mutants.py [NAME…]`.

As root, after `make trusted-app`. Each mutant takes one guard away, in a copy of the sources; then the attack
that it stops must succeed, and with all guards it must not (test_inside_attacks.py, test_inside_ends.py). A
minute for each, three for those on a server, which builds its machine from the copy by itself.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

import mutants_of_data
import mutants_of_worlds
from inside_mutant import Mutant

import flexserve
from flexserve.attacks.attempt import Verdict, attempt
from flexserve.attacks.trustzone.inside import ATTACKS_BEFORE, ends, restarts
from flexserve.attacks.trustzone.inside.ends import Ended
from flexserve.attacks.trustzone.inside.restarts import Driven
from flexserve.attacks.trustzone.inside.scene import Inside
from flexserve.attacks.trustzone.scene import CPUS, RAM_BYTES
from flexserve.emulator import tools, trusted_app
from flexserve.emulator.build import Images, build

SOURCES = Path(flexserve.__file__).parents[2]
PARTS = ("abi", "monitor", "secure-os", "driver", "trusted-app", "src")
CACHE = trusted_app.default_cache()

MUTANTS = (*mutants_of_worlds.MUTANTS, *mutants_of_data.MUTANTS)


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
    ignored = shutil.ignore_patterns("build", "__pycache__")
    for part in PARTS:
        copied = SOURCES / part, sources / part
        shutil.copytree(*copied, ignore=ignored, copy_function=_renew, dirs_exist_ok=True)
    _renew(SOURCES / "requirements.lock", sources / "requirements.lock")
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
        application=_application(mutant, sources),
        sources=sources,
    )


def _renew(source: str | Path, target: str | Path) -> None:
    """Copy a file unless it is there: what the last mutant changed gets a new time, so it is built again."""
    content = Path(source).read_bytes()
    if not Path(target).exists() or Path(target).read_bytes() != content:
        Path(target).write_bytes(content)
        shutil.copymode(source, target)


def _application(mutant: Mutant, sources: Path) -> Path:
    """Build the application of these sources, with the libraries that are built, unless it is as it was."""
    built = trusted_app.built(CACHE)
    if built is not None and not any(name.startswith(("trusted-app/", "abi/")) for name in mutant.changes):
        return built.application
    llama, mlkem = (
        max((path.parent for path in CACHE.glob(pattern)), key=lambda it: it.stat().st_mtime)
        for pattern in ("llama-*/libllama.a", "mlkem-*/cbmc.h")
    )
    program = sources / "out/trusted-app"
    tools.run(
        *("make", "-C", str(sources / "trusted-app"), f"-j{os.cpu_count()}", str(program)),
        *(f"OUT={program.parent}", f"LIBRARY={llama}"),
        *(f"LLAMA={llama / 'llama.cpp'}", f"MLKEM={mlkem}", f"CROSS_COMPILE={trusted_app.CROSS}"),
        *(f"CRYPTO={CACHE / 'arm64-nettle-dev/usr'}", f"NUMBERS={CACHE / 'arm64-libgmp-dev/usr'}"),
    )
    return program


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
            if mutant.attack not in ATTACKS_BEFORE:
                scene.hold()
            made = attempt(mutant.attack, scene)  # type: ignore[arg-type]
    sys.stdout.write(f"{mutant.name:18} {made.verdict.value:10} {made.name}: {made.detail}\n")
    sys.stdout.flush()
    return made.verdict


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
