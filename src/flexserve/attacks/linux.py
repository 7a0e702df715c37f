"""Root against a secure world on Linux; and the order of all attacks on one.

Some attack vectors of root are open unless the kernel was told to close them. An attack that succeeds by one
which the label calls open is `open`; on any other it has broken a promise. Every attack is first made
where nothing protects, and must succeed there: else it would prove nothing. So a kernel that lets nobody
look into any process (Yama's ptrace_scope 3) shows no attack of that kind to be stopped by us.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from flexserve.attacks import from_within, licences, relay, sealed
from flexserve.attacks.attempt import Attempt, Foreseen, Gained, Pointless, attempt
from flexserve.attacks.target import MODEL, Target
from flexserve.errors import NormalWorldError
from flexserve.harness.worlds import DrivenWorld
from flexserve.platforms.linux import injection
from flexserve.platforms.linux import kernel_views as views
from flexserve.platforms.linux.attack_vectors import Vector, assess, parent_of
from flexserve.platforms.linux.secure_memory import probe_secret_memory
from flexserve.units import MIB

_ENOUGH = 256 * MIB  # of secret memory for the target


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """The world under attack, and the same in ordinary memory."""

    target: Target
    secret: DrivenWorld
    plain: DrivenWorld

    @classmethod
    @contextlib.contextmanager
    def set(cls, folder: Path) -> Iterator[Scene]:
        """Set up both worlds with their files in `folder`.

        Raises NormalWorldError without root, or where there is no secret memory.
        """
        if os.geteuid() != 0:
            raise NormalWorldError(
                "Attacks through the kernel's interfaces need root.", hint="Run this command as root."
            )
        probe_secret_memory(_ENOUGH)
        target = Target.make(folder)
        with target.open("secret") as secret, target.open("plain", guarded=False) as plain:
            yield cls(target, secret, plain)

    def canary_in_plain(self) -> tuple[views.Mapping, int]:
        """Return where the canary lies in ordinary memory."""
        with _unprotected():
            found = views.places_of(self.target.canary, self.plain.pid)
        if not found:
            raise Pointless("the canary was not found in ordinary memory either")
        return found[0]

    def secret_mappings(self) -> list[views.Mapping]:
        """Return the mappings of secret memory of the world under attack."""
        return [mapping for mapping in views.mappings(self.secret.pid) if mapping.secret]


# ---- the attacks: each returns what stopped it, or raises Gained or Pointless ---------------------------


def read_proc_mem(scene: Scene) -> str:
    """Read Flex-Mem through /proc/PID/mem."""
    return _read_with(scene, views.read_mem, errno.EIO)


def read_process_vm(scene: Scene) -> str:
    """Read Flex-Mem with process_vm_readv."""
    return _read_with(scene, views.read_vm, errno.EFAULT)


def peek(scene: Scene) -> str:
    """Stop the process as a debugger does and peek at a word."""
    return _read_with(scene, lambda pid, address, _length: views.peek(pid, address), errno.EIO)


def search(scene: Scene) -> str:
    """Search every readable byte of the process for the weights."""
    return _search(scene, "the weights are in no mapping that can be read")


def search_after_recalls(scene: Scene) -> str:
    """Search again after the weights were recalled and restored."""
    for _ in range(3):
        scene.secret.recall(None)
        _search(scene, "what was given back cannot be read")
        scene.secret.generate(MODEL, "Once.", 2)
        stopped = _search(scene, "neither what was given back nor what came again can be read")
    return stopped


def drive_as_debugger(scene: Scene) -> str:
    """Attach as a debugger does, and have the process copy Flex-Mem into ordinary memory."""
    place, _ = scene.canary_in_plain()
    with _unprotected():
        driven = _drive(scene.plain, scene.target.canary, [place])
    if not driven:
        raise Pointless("not even ordinary memory can be had in this way")
    try:
        found = _drive(scene.secret, scene.target.canary, scene.secret_mappings())
    except PermissionError as error:
        return f"the kernel refuses it ({error.strerror}): {_closed(scene, Vector.ATTACH)}"
    if not found:
        raise Pointless("the process could be driven, but the weights were not found")
    raise _gain(scene, Vector.ATTACH, "the process copied its weights out")


def drive_companion(scene: Scene) -> str:
    """Attach to the companion that traces the process, to have it let go."""
    if not assess(scene.secret.pid)[Vector.ATTACH].closed_by:
        raise Pointless("there is none on this host")
    try:
        with injection.seized(parent_of(scene.secret.pid)):
            raise Gained("the companion does what it is told")
    except PermissionError as error:
        return f"the kernel refuses it ({error.strerror}): the process traces its companion, too"


def patch_code(scene: Scene) -> str:
    """Write into the code of the process through /proc/PID/mem."""
    with _unprotected():
        _patch(scene.plain.pid)
    try:
        _patch(scene.secret.pid)
    except OSError as error:
        return f"the kernel refuses it ({error.strerror}): {_closed(scene, Vector.WRITE)}"
    raise _gain(scene, Vector.WRITE, "a byte of the C library's code was changed, and put back")


def read_key_file(scene: Scene) -> str:
    """Read the file of the device's key."""
    try:
        scene.target.key.read_bytes()
    except OSError as error:
        return f"the kernel refuses it ({error.strerror})"
    raise _gain(scene, Vector.KEY, "with it the sealed models can be opened")


def dump_with_gdb(scene: Scene) -> str:
    """Attach gdb and dump Flex-Mem to a file."""
    if shutil.which("gdb") is None:
        raise Pointless("gdb is not installed")
    place, _ = scene.canary_in_plain()
    if scene.target.canary not in b"".join(_dumps(scene.plain.pid, [place])):
        raise Pointless("gdb's dump of ordinary memory does not show what is there")
    try:
        if _dumps(scene.secret.pid, scene.secret_mappings()):
            raise Gained("gdb wrote secret memory to a file")
    except Pointless:
        return "gdb cannot attach"
    return "gdb gets an I/O error for every mapping of secret memory"


def read_kcore(scene: Scene) -> str:
    """Read the kernel's own map of memory, /proc/kcore."""
    _, address = scene.canary_in_plain()
    if _kcore(scene.plain.pid, address, len(scene.target.canary)) != scene.target.canary:
        raise Pointless("/proc/kcore does not show ordinary memory on this kernel")
    for mapping in scene.secret_mappings():
        if any(_kcore(scene.secret.pid, mapping.start, 4096)):
            raise Gained("a page of secret memory is in the kernel's map")
    return "pages of secret memory are not in the kernel's direct map"


def read_store(scene: Scene) -> str:
    """Look for the weights on the disk."""
    files = [path for path in scene.target.root.rglob("*") if path.is_file()]
    if any(scene.target.canary in path.read_bytes() for path in files):
        raise Gained("a file of the store contains the weights in clear")
    return f"{len(files)} files of the store hold ciphertext only"


def search_for_key(scene: Scene) -> str:
    """Search every readable byte of the process for the device's key, as root."""
    secrets = scene.target.secrets()
    helpers = views.children_of(scene.secret.pid)
    with _unprotected():
        holders = [pid for pid in helpers for each in secrets if views.places_of(each, pid)]
    if not holders:
        raise Pointless("it is not found in the process that holds it either")
    found = "the process that runs llama.cpp never had it: another holds it, and answers"
    for each in secrets:
        found = _search_for(each, "a key of the device", scene, found)
    return found


ATTACKS: tuple[Callable[[Scene], str], ...] = (
    read_proc_mem,
    read_process_vm,
    peek,
    search,
    search_after_recalls,
    drive_as_debugger,
    drive_companion,
    patch_code,
    read_key_file,
    dump_with_gdb,
    read_kcore,
    read_store,
    search_for_key,
    *from_within.ATTACKS,
    *relay.ATTACKS,
    *sealed.ATTACKS,
)


def run(say: Callable[[str], None]) -> Iterator[Attempt]:
    """Set the scene and make every attack. Raises NormalWorldError where there can be no scene."""
    say("making a model with a canary in its weights, and two worlds: secret memory, ordinary memory")
    with tempfile.TemporaryDirectory(prefix="flexserve-attack-") as folder, Scene.set(Path(folder)) as scene:
        for attack in (*ATTACKS, *licences.ATTACKS):
            yield attempt(attack, scene)


# ---- their tools ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _unprotected() -> Iterator[None]:
    """Make an attack where nothing of ours protects. Raises Pointless where the kernel refuses it there."""
    try:
        yield
    except PermissionError as error:
        raise Pointless(
            f"the kernel refuses it for any process ({error.strerror}), as with Yama's ptrace_scope at 3"
        ) from error


def _gain(scene: Scene, vector: Vector, what: str) -> Gained:
    """Return what an attack that succeeded by `vector` raises: a broken promise, or what the label says."""
    found = assess(scene.secret.pid)[vector]
    if not found.open:
        return Gained(f"{what}, although it should be closed: {found.closed_by}")
    return Foreseen(f"{what}. This host leaves that to root, as its label says; see `flexserve doctor`")


def _closed(scene: Scene, vector: Vector) -> str:
    return assess(scene.secret.pid)[vector].closed_by or "nobody promised that"


def _drive(world: DrivenWorld, pattern: bytes, places: list[views.Mapping]) -> bool:
    """Have a process look for `pattern` in its own memory and copy it out; return whether it did."""
    try:
        with injection.seized(world.pid) as puppet:
            puppet.write(puppet.scratch, pattern)
            for place in places:
                size = place.end - place.start
                found = puppet.call("memmem", place.start, size, puppet.scratch, len(pattern))
                if found:
                    puppet.call("memcpy", puppet.scratch + 1024, found, len(pattern))
                    return views.read_mem(world.pid, puppet.scratch + 1024, len(pattern)) == pattern
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise Pointless("this attack is not written for this machine") from error
        raise
    return False


def _patch(pid: int) -> None:
    """Change a byte of padding behind the C library's code, and put it back. Raises OSError."""
    code = next(m for m in views.mappings(pid) if m.access == "r-xp" and "/libc.so" in m.name)
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        before = os.pread(memory.fileno(), 1, code.end - 1)
        for byte in (bytes([before[0] ^ 0xFF]), before):
            os.pwrite(memory.fileno(), byte, code.end - 1)
            if os.pread(memory.fileno(), 1, code.end - 1) != byte:
                raise OSError(errno.EIO, "written, and not there")


def _read_with(scene: Scene, read: Callable[[int, int, int], bytes], refusal: int) -> str:
    """Read the canary in ordinary memory, then both ends of every mapping of secret memory."""
    _, address = scene.canary_in_plain()
    with _unprotected():
        seen = read(scene.plain.pid, address, len(scene.target.canary))
    if not scene.target.canary.startswith(seen[:8]):
        raise Pointless("ordinary memory cannot be read in this vector either")
    for mapping in scene.secret_mappings():
        for place in (mapping.start, mapping.end - 4096):
            try:
                read(scene.secret.pid, place, 4096)
            except PermissionError as error:
                return f"the kernel refuses it ({error.strerror})"
            except OSError as error:
                if error.errno != refusal:
                    raise
            else:
                raise Gained(f"bytes at {place:#x}")
    return f"the kernel answers {errno.errorcode[refusal]}: the pages have no place in its map"


def _search(scene: Scene, missed: str) -> str:
    """Search both worlds for the canary; return what stopped it, `missed` where the kernel let it search."""
    scene.canary_in_plain()
    return _search_for(scene.target.canary, "the canary", scene, missed)


def _search_for(pattern: bytes, what: str, scene: Scene, missed: str) -> str:
    try:
        found = views.places_of(pattern, scene.secret.pid)
    except PermissionError as error:
        return f"the kernel refuses it ({error.strerror})"
    if found:
        raise Gained(f"{what}, in {found[0][0].name or 'anonymous memory'}")
    return missed


def _dumps(pid: int, places: list[views.Mapping]) -> list[bytes]:
    """Dump mappings with gdb (a whole core has gigabytes of reserved addresses); return what it got."""
    with tempfile.TemporaryDirectory(prefix="flexserve-attack-") as folder:
        command = ["gdb", "-nx", "-batch", "-iex", "set auto-solib-add off", "-p", str(pid)]
        for place in places:
            command += ["-ex", f"dump binary memory {folder}/{place.start:x} {place.start:#x} {place.end:#x}"]
        ended = subprocess.run([*command, "-ex", "detach"], capture_output=True, timeout=120, check=False)
        if b"detached" not in ended.stdout:
            raise Pointless("gdb could not attach")
        return [path.read_bytes() for path in Path(folder).iterdir() if path.stat().st_size]


def _kcore(pid: int, address: int, length: int) -> bytes:
    """Return what /proc/kcore shows of a process's memory (empty: it is not in it, or cannot be read)."""
    try:
        frame = views.frame_of(pid, address)
        return views.read_kcore(frame, length) if frame else b""
    except OSError:
        return b""
