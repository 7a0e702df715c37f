"""What a machine boots from: the archive, the device tree, and that parts are made only when they must."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import flexserve
from flexserve.emulator import build, packages, tools
from flexserve.emulator.cpio import Archive
from flexserve.emulator.devicetree import BUFFER, BUFFER_BYTES, INITRD, RAM_BASE, RING_BYTES, Board
from flexserve.emulator.packages import Kernel
from flexserve.emulator.tools import MissingToolError
from flexserve.errors import InternalError, NormalWorldError
from flexserve.platforms.trustzone.abi import HIDDEN_BYTES, NPU_WINDOW_BYTES, NPU_WINDOW_OFFSET
from flexserve.testing.processes import ends
from flexserve.testing.trustzone import eventually
from flexserve.units import GIB, MIB


def have(*programs: str) -> pytest.MarkDecorator:
    missing = [program for program in programs if shutil.which(program) is None]
    words = " ".join(tools.PACKAGES.get(program, program) for program in missing)
    return pytest.mark.skipif(bool(missing), reason=f"needs `apt-get install {words}`")


# ---- the archive ---------------------------------------------------------------------------------


def sample() -> Archive:
    archive = Archive()
    archive.folder("bin")
    archive.file("bin/tool", b"12345", executable=True)
    archive.file("empty", b"")
    archive.link("init", "bin/tool")
    archive.character_device("console", 5, 1)
    return archive


def test_the_same_entries_make_the_same_bytes() -> None:
    assert sample().closed() == sample().closed()


def test_everything_starts_at_a_multiple_of_four() -> None:
    data = sample().closed()
    assert len(data) % 4 == 0
    assert all(at % 4 == 0 for at in range(len(data)) if data.startswith(b"070701", at))


@have("cpio")
def test_cpio_reads_it(tmp_path: Path) -> None:
    listing = subprocess.run(
        ["cpio", "-itv", "--quiet"], input=sample().closed(), capture_output=True, check=True
    ).stdout.decode()
    kinds = [(line[0], line.split()[-1]) for line in listing.splitlines()]
    assert [kind for kind, _ in kinds] == ["d", "-", "-", "l", "c"]
    subprocess.run(
        ["cpio", "-id", "--quiet", "bin*"], input=sample().closed(), cwd=tmp_path, check=True, timeout=10
    )
    assert (tmp_path / "bin/tool").read_bytes() == b"12345"


# ---- the device tree -----------------------------------------------------------------------------


def source(**options: object) -> str:
    fields: dict[str, object] = {"ram_bytes": GIB, "cpus": 2, "initrd_bytes": 4096, **options}
    return Board(**fields).source()  # type: ignore[arg-type]


def test_it_hides_the_end_of_ram() -> None:
    assert f"reg = <{RAM_BASE + GIB - HIDDEN_BYTES:#x} {HIDDEN_BYTES:#x}>" in source()


def test_it_tells_where_the_first_file_system_ends() -> None:
    assert f"linux,initrd-end = <{INITRD + 4096:#x}>" in source()


@pytest.mark.parametrize("cpus", [1, 8])
def test_it_has_as_many_cpus_as_the_machine(cpus: int) -> None:
    assert source(cpus=cpus).count('device_type = "cpu"') == cpus


def test_a_contiguous_area_ends_below_the_monitor_and_is_flexmems() -> None:
    tree = source(contiguous=128 * MIB)
    start = RAM_BASE + GIB - HIDDEN_BYTES - 128 * MIB
    assert f"reg = <{start:#x} {128 * MIB:#x}>" in tree
    assert "memory-region = <&ring>, <&buffer>, <&contiguous>;" in tree
    assert "contiguous" not in source()


def test_messages_with_the_secure_world_have_a_place_whatever_else_there_is() -> None:
    for tree in (source(), source(contiguous=128 * MIB), source(npu=True)):
        assert f"reg = <{RAM_BASE:#x} {RING_BYTES:#x}>" in tree
        assert f"reg = <{BUFFER:#x} {BUFFER_BYTES:#x}>" in tree
        assert 'memory-region-names = "ring", "buffer"' in tree


def test_an_npus_registers_lie_in_the_monitors_memory() -> None:
    window = RAM_BASE + GIB - HIDDEN_BYTES + NPU_WINDOW_OFFSET
    tree = source(npu=True)
    assert f"npu@{window:x} {{" in tree
    assert f"reg = <{window:#x} {NPU_WINDOW_BYTES:#x}>" in tree
    assert "npu" not in source()


def test_nothing_that_reaches_memory_past_the_monitor_is_listed() -> None:
    tree = source()
    for device in ("smmu", "fw-cfg", "virtio,mmio", "9040000", "9050000"):
        assert device not in tree


@have("dtc")
def test_dtc_compiles_it_without_a_complaint(tmp_path: Path) -> None:
    text = tmp_path / "flex.dts"
    text.write_text(source(contiguous=64 * MIB, bootargs="quiet", npu=True))
    done = subprocess.run(
        ["dtc", "-I", "dts", "-O", "dtb", "-o", tmp_path / "flex.dtb", text],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""


# ---- made when they must -------------------------------------------------------------------------


@pytest.fixture
def parts(tmp_path: Path) -> build._Build:
    sources = tmp_path / "sources"
    (sources / "driver/guest/build").mkdir(parents=True)
    (sources / "driver/guest/main.c").write_text("one")
    cache = tmp_path / "cache"
    cache.mkdir()
    return build._Build(cache, sources, Kernel("6.1.0-1-cloud-arm64", tmp_path), progress=lambda _: None)


def make(parts: build._Build, finished: list[Path] | None = None) -> int:
    """Return how often a part is made that depends on driver/guest; add it to `finished` when it is new."""
    made: list[Path] = []

    def maker(target: Path) -> None:
        made.append(target)
        target.write_bytes(b"made")
        target.with_name("part.table").write_bytes(b"table")

    finish = (finished if finished is not None else []).append
    files = parts._files("driver/guest")
    assert parts._made("part", "a part", files, maker, finish, beside=("part.table",)).read_bytes() == b"made"
    return len(made)


def other_checkout(parts: build._Build, folder: Path, source: str) -> build._Build:
    """Return the parts of a checkout in `folder` with a source of its own, in the same cache."""
    (folder / "driver/guest").mkdir(parents=True)
    (folder / "driver/guest/main.c").write_text(source)
    return build._Build(parts._out.parents[1], folder, parts._kernel, lambda _: None)


def test_a_part_is_made_once(parts: build._Build) -> None:
    assert [make(parts), make(parts)] == [1, 0]


def test_a_changed_source_makes_it_again_and_a_touched_one_does_not(parts: build._Build) -> None:
    make(parts)
    file = parts._sources / "driver/guest/main.c"
    file.touch()
    assert make(parts) == 0
    file.write_text("two")
    assert make(parts) == 1


def test_a_new_source_makes_it_again_and_a_product_does_not(parts: build._Build) -> None:
    make(parts)
    (parts._sources / "driver/guest/build/main.o").write_text("product")
    assert make(parts) == 0
    (parts._sources / "driver/guest/more.c").write_text("")
    assert make(parts) == 1


def test_a_maker_that_fails_leaves_what_was_there_to_be_made_again(parts: build._Build) -> None:
    make(parts)
    (parts._sources / "driver/guest/main.c").write_text("two")

    def fail(target: Path) -> None:
        target.write_bytes(b"half")
        raise InternalError("compiler")

    with pytest.raises(InternalError):
        parts._made("part", "a part", parts._files("driver/guest"), fail)
    assert (parts._out / "part").read_bytes() == b"made"
    assert make(parts) == 1


def test_what_a_killed_process_left_half_made_is_gone_when_something_is_made(parts: build._Build) -> None:
    (parts._out / "making-killed").mkdir()
    (parts._out / "making-killed" / "part").write_bytes(b"half")
    assert make(parts) == 1
    assert [path.name for path in parts._out.iterdir() if path.is_dir()] == []


def test_what_compiles_ends_with_a_process_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("all:\n\t@sh -c 'echo $$$$ > pid; exec sleep 300'\n")
    program = "import sys; from flexserve.emulator import build; build._make('-C', sys.argv[1])"
    builder = subprocess.Popen([sys.executable, "-c", program, tmp_path])
    pid = tmp_path / "pid"
    assert eventually(lambda: pid.exists() and pid.read_text() != "", within=60)
    builder.kill()
    builder.wait()
    assert ends(int(pid.read_text()))


def test_another_checkout_leaves_the_parts_alone(parts: build._Build, tmp_path: Path) -> None:
    make(parts)
    assert make(other_checkout(parts, tmp_path / "other", "two")) == 1
    assert make(parts) == 0


def test_what_another_checkout_made_of_the_same_is_not_made_again(
    parts: build._Build, tmp_path: Path
) -> None:
    make(parts)
    same = other_checkout(parts, tmp_path / "same", "one")
    finished: list[Path] = []
    assert [make(same, finished), make(same, finished)] == [0, 0]
    assert finished == [same._out / "part"]
    assert (same._out / "part.table").read_bytes() == b"table"
    assert sorted(path.name for path in same._out.iterdir()) == ["part", "part.inputs", "part.table"]


@pytest.mark.parametrize("lost", ["part", "part.table", "part.inputs"])
def test_what_another_checkout_has_in_part_only_is_made(
    parts: build._Build, tmp_path: Path, lost: str
) -> None:
    make(parts)
    (parts._out / lost).unlink()
    assert make(other_checkout(parts, tmp_path / "same", "one")) == 1


def test_what_another_checkout_replaces_while_it_is_copied_is_made(
    parts: build._Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(parts)
    copy = shutil.copy

    def copy_while_it_is_made_again(source: Path, target: Path) -> None:
        if source.parent == parts._out:
            (parts._out / "part.inputs").write_text("others")
            source.write_bytes(b"another")
        copy(source, target)

    monkeypatch.setattr(shutil, "copy", copy_while_it_is_made_again)
    assert make(other_checkout(parts, tmp_path / "same", "one")) == 1


def test_who_makes_parts_of_one_checkout_keeps_no_other_checkout_waiting(tmp_path: Path) -> None:
    said: list[str] = []
    made = threading.Event()

    def make_other() -> None:
        with build.making(tmp_path / "other", tmp_path / "cache", said.append):
            made.set()

    with build.making(tmp_path / "one", tmp_path / "cache", said.append):
        other = threading.Thread(target=make_other)
        other.start()
        assert made.wait(60)
    other.join()
    assert said == []


def test_who_makes_parts_of_one_checkout_keeps_who_makes_the_same_waiting(tmp_path: Path) -> None:
    said: list[str] = []
    waits, made = threading.Event(), threading.Event()

    def tell(what: str) -> None:
        said.append(what)
        waits.set()

    def make_same() -> None:
        with build.making(tmp_path / "one", tmp_path / "cache", tell):
            made.set()

    with build.making(tmp_path / "one", tmp_path / "cache", said.append):
        same = threading.Thread(target=make_same)
        same.start()
        assert waits.wait(60)
        assert not made.is_set()
    same.join()
    assert said == ["waiting for another command, which builds the same"]


def test_the_copy_of_the_sources_has_no_products(parts: build._Build) -> None:
    (parts._sources / "driver/guest/build/main.o").write_text("product")
    copy = parts._copied("driver")
    assert [path.name for path in copy.rglob("*") if path.is_file()] == ["main.c"]


# ---- what is missing -----------------------------------------------------------------------------


def test_a_missing_program_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingToolError, match="dtc") as caught:
        tools.require("dtc")
    assert caught.value.hint == "Run `apt-get install device-tree-compiler`."


def test_a_cache_that_cannot_be_written_is_said_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tools, "require", lambda *programs: None)
    (tmp_path / "file").touch()
    with pytest.raises(NormalWorldError, match="cannot be kept") as caught:
        build.build(tmp_path / "file/cache", ram_bytes=0, cpus=0, progress=print, sources=tmp_path)
    assert "XDG_CACHE_HOME" in caught.value.hint


def test_an_install_without_sources_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(flexserve, "__file__", str(tmp_path / "a/b/flexserve/__init__.py"))
    with pytest.raises(build.NoSourcesError, match="monitor"):
        build.sources_folder()


# ---- packages ------------------------------------------------------------------------------------


def test_the_newest_kernel_of_the_cache_is_used_without_asking_apt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    for release in ("6.1.0-9-cloud-arm64", "6.1.0-40-cloud-arm64"):
        (tmp_path / f"linux-{release}").mkdir()
    (tmp_path / "unpacking-xyz").mkdir()
    said: list[str] = []
    with packages.locked(tmp_path / "packages.lock", said.append):  # of who fetches others meanwhile
        assert packages.kernel(tmp_path, said.append).release == "6.1.0-40-cloud-arm64"
    assert said == []


SHOWN = {
    "linux-image-cloud-arm64": "linux-image-6.1.0-40-cloud-arm64 (= 6.1.2)",
    "linux-headers-6.1.0-40-cloud-arm64": "linux-headers-6.1.0-40-common (= 6.1.2), linux-kbuild-6.1 (>= 6)",
}


class FakeApt:
    """Stands in for the programs; remembers what was asked."""

    def __init__(self, shown: dict[str, str]) -> None:
        self.shown, self.asked = shown, list[tuple[str, ...]]()

    def run(self, *words: str | Path, **_: object) -> str:
        command = tuple(str(word) for word in words)
        self.asked.append(command)
        if command[0] == "dpkg":
            return "amd64\n"
        if "update" in command:
            raise InternalError("a mirror is down")
        package = command[-1].partition(":")[0]
        if package not in self.shown:
            raise InternalError("no such package")
        return f"Package: {package}\nDepends: {self.shown[package]}\n"


def apt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shown: dict[str, str]) -> packages._Apt:
    fake = FakeApt(shown)
    monkeypatch.setattr(tools, "run", fake.run)
    return packages._Apt(tmp_path)


def test_apt_is_asked_which_kernel_is_current(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    it = apt(monkeypatch, tmp_path, SHOWN)
    it.update()
    release = it.current_release()
    assert it.packages_of(release) == [
        "linux-image-6.1.0-40-cloud-arm64:arm64",
        "linux-headers-6.1.0-40-cloud-arm64:arm64",
        "linux-headers-6.1.0-40-common",
        "linux-kbuild-6.1:amd64",
    ]


def test_sources_without_that_kernel_are_a_clear_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    it = apt(monkeypatch, tmp_path, {})
    it.update()
    with pytest.raises(packages.NoPackageError, match="a mirror is down"):
        it.current_release()


def test_a_download_that_fails_is_the_networks_fault_and_can_be_repeated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    it = apt(monkeypatch, tmp_path, {})
    with pytest.raises(packages.NoPackageError, match="download") as caught:
        it.download(["linux-kbuild-6.1:amd64"])
    assert "run this again" in caught.value.hint
