"""Builds what a machine boots from: firmware, kernel, first file system, device tree.

Each part is made again only when something that it is made of changed (by content, not by time). The
sources are folders of the project's checkout, copied into the cache before anything is compiled, so
that the checkout stays clean. Each checkout has a place of its own there: what one has just built and
is about to boot is not replaced by another. What another one has made of the same is copied.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import flexserve
from flexserve.emulator import boot_rom, packages, secure_os, tools
from flexserve.emulator.cpio import Archive
from flexserve.emulator.devicetree import Board
from flexserve.emulator.kernel_modules import with_dependencies
from flexserve.emulator.packages import Kernel, Progress
from flexserve.errors import InternalError, NormalWorldError

_CROSS = "aarch64-linux-gnu-"
NEEDED = ("qemu-system-aarch64", "make", f"{_CROSS}gcc", "dtc")  # programs: what runs a machine, too
_SOURCES = ("abi", "monitor", "secure-os", "trusted-app", "driver")
_PRODUCTS = ("build", "__pycache__")  # folders of what is made of the sources
_FOREIGN_MODULES = (  # the agent's port, disks, a disk for workloads
    *("virtio_pci", "virtio_console"),
    *("virtio_blk", "loop"),
)
# Our modules, and those that each one uses, which come first; tests alone load flexattack.
_OUR_MODULES = {
    "flexmem": (),
    "flexnpu": ("flexmem",),
    "flexattack": (),
}
_GUEST_FLAGS = (
    *("-std=gnu11", "-D_GNU_SOURCE", "-static", "-Os", "-Wall", "-Wextra", "-Werror", "-pthread"),
    "-ffp-contract=off",  # sums are compared bit by bit
)
_NPU_CORE = ".npu_core"  # the section of flexnpu that the secure world uses, too
_NPU_CORE_MOST = 4096  # bytes
_LONGEST = 600.0  # seconds that make may take, on a machine that does much else, too


@dataclasses.dataclass(frozen=True, slots=True)
class Images:
    """What a machine boots from, and what the secure world knows one part by.

    `npu_core` has the bytes of the NPU driver's core as the guest's kernel loads them. `el2` is the part of
    the firmware that EL3 starts at EL2. `firmware_key` is the file of the key that firmware is signed with.
    """

    firmware: Path
    kernel: Path
    initrd: Path
    devicetree: Path
    npu_core: Path
    el2: Path
    firmware_key: Path


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What the device tree tells the guest beyond RAM and CPUs.

    `contiguous` bytes become a CMA area, and `bootargs` are more of the kernel's, for measurements. `npu`
    is for a machine that has one.
    """

    contiguous: int = 0
    bootargs: str = ""
    npu: bool = False


class NoSourcesError(NormalWorldError):
    """What the machine is built from is not here: neither in the wheel nor in a checkout."""

    default_code = "no_sources"


def build(
    cache: Path,
    *,
    ram_bytes: int,
    cpus: int,
    progress: Progress,
    options: Options | None = None,
    application: Path | None = None,
    unprotected: Path | None = None,
    sources: Path | None = None,
) -> Images:
    """Return the images of a machine, having made what is missing below `cache`.

    An `application`, a static aarch64 program of Linux, is put into the firmware with the secure OS below it.
    One that is to run `unprotected` is put into the first file system (driver/guest: application).

    Raises MissingToolError, NoPackageError, NoSourcesError, NormalWorldError when `cache` cannot be
    written; InternalError when a compiler fails.
    """
    sources = sources or sources_folder()
    tools.require(*NEEDED)
    cache = cache.absolute()
    try:
        kernel = packages.kernel(cache, progress)
        with making(sources, cache, progress):
            return _Build(cache, sources, kernel, progress).images(
                ram_bytes, cpus, options or Options(), application, unprotected
            )
    except OSError as error:
        raise NormalWorldError(
            f"The machine's parts cannot be kept in {cache}: {error.strerror}.",
            hint="Make room there, or set XDG_CACHE_HOME to a folder that can be written to.",
            code="no_cache",
        ) from error


def made_of(sources: Path, cache: Path) -> Path:
    """Return the folder below `cache` of what is made of a checkout's `sources`, which need not exist yet."""
    return cache / "build" / hashlib.sha256(str(sources.resolve()).encode()).hexdigest()[:12]


@contextlib.contextmanager
def making(sources: Path, cache: Path, progress: Progress) -> Iterator[None]:
    """Be who makes what is made of `sources`. Other commands wait for it; those of other checkouts do not."""
    folder = made_of(sources, cache)
    folder.mkdir(parents=True, exist_ok=True)
    with packages.locked(folder / "lock", progress):
        yield


def sources_folder() -> Path:
    """Return the folder of the machine's sources: the wheel's, or a checkout's. Raises NoSourcesError."""
    package = Path(flexserve.__file__).parent
    packed = package / "emulator" / "sources"
    folder = packed if packed.is_dir() else package.parents[1]
    missing = [name for name in _SOURCES if not (folder / name).is_dir()]
    if missing:
        raise NoSourcesError(
            f"The machine is built from folders of FlexServe's source: {', '.join(missing)} not found.",
            hint="Install FlexServe by a wheel of `make wheel`, or from a checkout by `make setup` there.",
        )
    return folder


def _tickless(options: Options, cpus: int) -> Options:
    """Have the guest's tick interrupt no CPU but the first one while that runs a single thread.

    A CPU that is lent to a secure world runs one; each tick would take it back, 250 times a second.
    """
    if cpus == 1:
        return options
    bootargs = f"nohz_full=1-{cpus - 1} {options.bootargs}".strip()
    return dataclasses.replace(options, bootargs=bootargs)


class _Build:
    """One look at every part."""

    def __init__(self, cache: Path, sources: Path, kernel: Kernel, progress: Progress) -> None:
        self._out = made_of(sources, cache)
        self._tree = self._out / "tree"  # the sources, as they are compiled
        self._firmware_key = cache / "firmware.key"
        self._sources, self._kernel, self._progress = sources, kernel, progress
        self._out.mkdir(parents=True, exist_ok=True)

    def images(
        self,
        ram_bytes: int,
        cpus: int,
        options: Options,
        application: Path | None,
        unprotected: Path | None,
    ) -> Images:
        """Make all parts."""
        firmware = self._firmware()
        if application is not None:
            firmware = self._firmware_inside(firmware, application)
        modules = {name: self._module(name, needed) for name, needed in _OUR_MODULES.items()}
        initrd = self._initrd(self._guest(), list(modules.values()), unprotected)
        if application is not None or unprotected is not None:
            options = _tickless(options, cpus)
        board = Board(ram_bytes, cpus, initrd.stat().st_size, **dataclasses.asdict(options))
        npu_core = self._npu_core(modules["flexnpu"])
        devicetree = self._devicetree(board)
        return Images(
            *(firmware, self._kernel.image, initrd, devicetree, npu_core),
            el2=self._el2(),
            firmware_key=self._firmware_key,
        )

    # ---- the parts --------------------------------------------------------------------------------

    def _firmware(self) -> Path:
        def make(target: Path) -> None:
            tree = self._copied("abi", "monitor")
            _make("-C", tree / "monitor", "fw", f"CROSS_COMPILE={_CROSS}")
            shutil.copyfile(tree / "monitor/build/fw.bin", target)

        return self._made("fw.bin", "the monitor", self._files("abi", "monitor"), make, self._sign)

    def _secure_os(self) -> Path:
        def make(target: Path) -> None:
            tree = self._copied("abi", "monitor", "secure-os")
            _make("-C", tree / "secure-os", "image", f"CROSS_COMPILE={_CROSS}")
            shutil.copyfile(tree / "secure-os/build/secure_os.bin", target)

        files = self._files("abi", "monitor", "secure-os")
        return self._made("secure_os.bin", "the secure OS", files, make)

    def _firmware_inside(self, firmware: Path, application: Path) -> Path:
        kernel = self._secure_os()

        def make(target: Path) -> None:
            parts = (path.read_bytes() for path in (firmware, kernel, application))
            target.write_bytes(secure_os.firmware_with(*parts))

        inputs = [firmware, kernel, application]
        return self._made("fw-inside.bin", "the firmware with a secure OS", inputs, make, self._sign)

    def _sign(self, firmware: Path) -> None:
        boot_rom.sign(firmware, self._firmware_key)

    def _el2(self) -> Path:
        def make(target: Path) -> None:
            tree = self._copied("abi", "monitor")
            _make("-C", tree / "monitor", "build/fw/el2.bin", f"CROSS_COMPILE={_CROSS}")
            shutil.copyfile(tree / "monitor/build/fw/el2.bin", target)

        return self._made("el2.bin", "EL2 of the monitor", self._files("abi", "monitor"), make)

    def _module(self, name: str, needed: tuple[str, ...]) -> Path:
        def make(target: Path) -> None:
            folder = self._copied("abi", "driver") / "driver" / name
            self._make_module(folder, [self._out / _symbols(other) for other in needed])
            shutil.copyfile(folder / "Module.symvers", target.with_name(_symbols(name)))
            tools.run(f"{_CROSS}strip", "--strip-debug", folder / f"{name}.ko", "-o", target)

        files = self._files("abi", *(f"driver/{part}" for part in (*needed, name)))
        inputs: list[Path | str] = [self._kernel.release, *files]
        return self._made(f"{name}.ko", f"the module {name}", inputs, make, beside=(_symbols(name),))

    def _make_module(self, folder: Path, symbols: list[Path]) -> None:
        """Compile a module. `symbols` are the files that tell what other modules export."""
        _make(
            "-C",
            self._kernel.headers,
            f"M={folder}",
            f"KBUILD_EXTRA_SYMBOLS={' '.join(map(str, symbols))}",
            f"-j{os.cpu_count()}",
            "ARCH=arm64",
            f"CROSS_COMPILE={_CROSS}",
            "modules",
        )

    def _npu_core(self, module: Path) -> Path:
        """Cut the core out of its module; nothing may be done to its bytes when that is loaded."""

        def make(target: Path) -> None:
            sections = tools.run(f"{_CROSS}readelf", "--sections", "--wide", module)
            if f".rela{_NPU_CORE}" in sections:
                raise InternalError(f"{_NPU_CORE} of {module} depends on where it lies.", hint="Report this.")
            tools.run(f"{_CROSS}objcopy", "-O", "binary", f"--only-section={_NPU_CORE}", module, target)
            if not 0 < target.stat().st_size <= _NPU_CORE_MOST:
                raise InternalError(f"{_NPU_CORE} of {module} is no page or less.", hint="Report this.")

        return self._made("npu_core.bin", "the NPU driver's core", [module], make)

    def _guest(self) -> Path:
        def make(target: Path) -> None:
            folder = self._copied("driver") / "driver/guest"
            sources = sorted(str(path) for path in folder.glob("*.c"))
            tools.run(f"{_CROSS}gcc", *_GUEST_FLAGS, *sources, "-o", target)
            tools.run(f"{_CROSS}strip", target)

        files = self._files("driver/guest", "driver/flexnpu/uapi")
        return self._made("guest", "the guest's programs", files, make)

    def _initrd(self, guest: Path, modules: list[Path], unprotected: Path | None) -> Path:
        foreign = with_dependencies(self._kernel.modules, _FOREIGN_MODULES)
        programs = [unprotected] if unprotected is not None else []

        def make(target: Path) -> None:
            archive = Archive()
            for folder in ("bin", "dev", "proc", "sys", "tmp", "modules"):
                archive.folder(folder)
            archive.character_device("dev/console", 5, 1)
            archive.file("bin/guest", guest.read_bytes(), executable=True)
            archive.link("init", "bin/guest")
            for program in programs:
                archive.file("bin/trusted-app", program.read_bytes(), executable=True)
            order = [path.name for path in foreign]
            archive.file("modules/order", "".join(f"{name}\n" for name in order).encode())
            for path in [*foreign, *modules]:
                archive.file(f"modules/{path.name}", path.read_bytes())
            target.write_bytes(archive.closed())

        name = "initrd-unprotected.cpio" if programs else "initrd.cpio"
        return self._made(name, "the first file system", [guest, *modules, *foreign, *programs], make)

    def _devicetree(self, board: Board) -> Path:
        source = board.source()
        shape = hashlib.sha256(source.encode()).hexdigest()[:12]

        def make(target: Path) -> None:
            text = target.with_suffix(".dts")
            text.write_text(source)
            tools.run("dtc", "-q", "-I", "dts", "-O", "dtb", "-o", target, text)

        return self._made(f"flex-{shape}.dtb", "the device tree", [source], make)

    # ---- made once ---------------------------------------------------------------------------------

    def _made(
        self,
        name: str,
        what: str,
        inputs: Iterable[Path | str],
        make: Callable[[Path], None],
        finish: Callable[[Path], None] = lambda _made: None,
        *,
        beside: Sequence[str] = (),
    ) -> Path:
        """Return the file `name`, made by `make` unless it was made of the same `inputs` already.

        `make` leaves files `beside` it, too. `finish` is called with a fresh one in its place.
        """
        target, stamp = self._out / name, self._out / f"{name}.inputs"
        digest = self._digest(inputs)
        if target.exists() and stamp.exists() and stamp.read_text() == digest:
            return target
        stamp.unlink(missing_ok=True)
        with packages.passing_folder(self._out, "making-") as folder:
            fresh, names = folder / name, (*beside, name)
            if not self._copied_from_another_checkout(names, stamp.name, digest, folder):
                self._progress(f"building {what}")
                make(fresh)
            for each in names:
                os.replace(folder / each, self._out / each)
        finish(target)
        stamp.write_text(digest)
        return target

    def _copied_from_another_checkout(
        self, names: Sequence[str], stamp: str, digest: str, folder: Path
    ) -> bool:
        """Copy files into `folder` that another checkout made of the same inputs; return whether there are.

        It may be making others at this moment: then its stamp is gone, or another one, when they are copied.
        """
        for other in self._out.parent.glob(f"*/{stamp}"):
            with contextlib.suppress(FileNotFoundError):
                if other.read_text() == digest:
                    for name in names:
                        shutil.copy(other.with_name(name), folder)
                    if other.read_text() == digest:
                        return True
        return False

    def _digest(self, inputs: Iterable[Path | str]) -> str:
        digest = hashlib.sha256()
        for item in inputs:
            content = item.encode() if isinstance(item, str) else item.read_bytes()
            label = "" if isinstance(item, str) else item.name
            digest.update(f"{label}:{len(content)}\n".encode() + content)
        digest.update(Path(__file__).read_bytes())  # how it is made
        return digest.hexdigest()

    def _files(self, *folders: str) -> list[Path]:
        """Return the files below folders of the sources, without what builds leave there."""
        found: list[Path] = []
        for folder in folders:
            for parent, inner, names in os.walk(self._sources / folder):
                inner[:] = [name for name in inner if name not in _PRODUCTS]  # a build may be under way there
                found += [Path(parent, name) for name in names]
        return sorted(found)

    def _copied(self, *folders: str) -> Path:
        """Return a folder with fresh copies of `folders` of the sources."""
        shutil.rmtree(self._tree, ignore_errors=True)
        for path in self._files(*folders):
            copy = self._tree / path.relative_to(self._sources)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
        return self._tree


def _make(*words: str | Path) -> None:
    """Run make, which ends with this process, however that ends."""
    tools.follow("make", *words, heard=lambda _line: None, seconds=_LONGEST)


def _symbols(module: str) -> str:
    """Return the name of the file that tells what a module exports, left by its own build."""
    return f"{module}.symvers"
