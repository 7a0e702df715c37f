from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import resource
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_models import CANARY, METADATA_CANARY, gguf_bytes, quiet

from flexserve.errors import CallerError, NormalWorldError, StoredDataError
from flexserve.secure.models import DeviceKey, SealedModel, container, parse_gguf, seal
from flexserve.secure.models.manifest import BLOCK_SIZE, CHUNK

STRIDE = CHUNK + 16


def use(path: Path, device: DeviceKey) -> None:
    """Read all of a sealed model in every way there is."""
    with SealedModel.open(path, device) as model:
        model.verify(quiet)
        model.header()


def chunk(data: bytes | bytearray, index: int) -> slice:
    start = BLOCK_SIZE + index * STRIDE
    return slice(start, min(start + STRIDE, len(data)))


# ---- what was sealed comes back ----------------------------------------------------------------


def test_the_manifest_says_what_was_sealed(source: Path, flex: Path, device: DeviceKey):
    data = source.read_bytes()
    with SealedModel.open(flex, device) as model:
        manifest = model.manifest
    assert manifest.name == "model"
    assert manifest.size == len(data)
    assert manifest.digest == hashlib.sha256(data).hexdigest()
    assert manifest.chunks == 3
    assert (manifest.architecture, manifest.quantization, manifest.context_length) == ("llama", "Q4_0", 2048)
    assert manifest.parameters == (1 << 19) + 96
    assert data[manifest.metadata_bytes :].startswith(CANARY)
    assert flex.stat().st_mode & 0o777 == 0o600


def test_a_sealed_model_gives_back_its_header(source: Path, sealed: SealedModel):
    data = source.read_bytes()
    assert sealed.metadata_bytes() == data[: sealed.manifest.metadata_bytes]
    assert sealed.header() == parse_gguf(lambda offset, length: data[offset : offset + length], len(data))


def test_progress_rises_to_the_total(source: Path, tmp_path: Path, device: DeviceKey):
    seen: list[tuple[int, int]] = []
    manifest = seal(source, tmp_path / "x.flex", "x", device, lambda *step: seen.append(step))
    assert seen == [(min((i + 1) * CHUNK, manifest.size), manifest.size) for i in range(3)]
    with SealedModel.open(tmp_path / "x.flex", device) as model:
        again: list[tuple[int, int]] = []
        model.verify(lambda *step: again.append(step))
    assert again == seen


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_range_reads_as_in_the_source(source: Path, sealed: SealedModel, data: st.DataObject):
    expected = source.read_bytes()
    edges = st.sampled_from([0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, len(expected) - 1, len(expected)])
    bound = edges | st.integers(0, len(expected))
    start, end = sorted((data.draw(bound), data.draw(bound)))
    target = bytearray(b"?" * (end - start + 2))
    sealed.read_into(start, memoryview(target)[1:-1])
    assert target == b"?" + expected[start:end] + b"?"


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, 1 << 30), (1 << 60, 1)])
def test_a_range_outside_the_model_is_a_bug_of_the_caller(sealed: SealedModel, offset: int, length: int):
    with pytest.raises(ValueError, match="outside"):
        sealed.read_into(offset, memoryview(bytearray(min(length, 4 * CHUNK))))


def test_memory_from_ctypes_can_be_read_into(source: Path, sealed: SealedModel):
    target = (ctypes.c_ubyte * (CHUNK + 100))()
    sealed.read_into(50, memoryview(target))
    assert bytes(target) == source.read_bytes()[50 : CHUNK + 150]


def test_whole_chunks_never_touch_the_scratch_and_parts_leave_nothing_in_it(flex: Path, device: DeviceKey):
    scratch = bytearray(b"\xaa" * CHUNK)
    with SealedModel.open(flex, device, scratch=memoryview(scratch)) as model:
        model.read_into(CHUNK, memoryview(bytearray(CHUNK)))
        assert scratch == b"\xaa" * CHUNK
        model.read_into(model.manifest.metadata_bytes, memoryview(bytearray(100)))
        assert scratch == bytes(CHUNK)
        model.verify(quiet)
        assert scratch == bytes(CHUNK)


def test_threads_may_read_at_once(source: Path, sealed: SealedModel):
    expected = source.read_bytes()
    wrong: list[int] = []

    def read(start: int) -> None:
        for offset in range(start, len(expected) - 70_000, 150_001):
            target = bytearray(70_000)
            sealed.read_into(offset, memoryview(target))
            if target != expected[offset : offset + 70_000]:
                wrong.append(offset)

    threads = [threading.Thread(target=read, args=(i * 1000,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_model_smaller_than_a_chunk_is_sealed(tmp_path: Path, device: DeviceKey):
    (tmp_path / "s.gguf").write_bytes(gguf_bytes())
    seal(tmp_path / "s.gguf", tmp_path / "s.flex", "s", device, quiet)
    use(tmp_path / "s.flex", device)


def test_nothing_of_the_model_is_in_the_file_in_clear(source: Path, flex: Path):
    sealed = flex.read_bytes()
    data = source.read_bytes()
    assert CANARY in data
    assert METADATA_CANARY.encode() in data
    for start in range(0, len(data) - 16, 4099):
        assert data[start : start + 16] not in sealed
    assert CANARY not in sealed
    assert METADATA_CANARY.encode() not in sealed


def test_two_sealings_of_a_file_share_nothing(source: Path, tmp_path: Path, device: DeviceKey):
    one, two = tmp_path / "1.flex", tmp_path / "2.flex"
    assert seal(source, one, "m", device, quiet).model_id != seal(source, two, "m", device, quiet).model_id
    first, second = one.read_bytes(), two.read_bytes()
    assert all(first[chunk(first, i)][:64] != second[chunk(second, i)][:64] for i in range(3))


# ---- hostile files -----------------------------------------------------------------------------


def test_a_flip_of_any_byte_of_the_signed_block_is_refused(flex: Path, device: DeviceKey):
    with flex.open("r+b", buffering=0) as file:
        block = file.read(BLOCK_SIZE)
        for position in range(BLOCK_SIZE):
            os.pwrite(file.fileno(), bytes([block[position] ^ (1 << position % 8)]), position)
            with pytest.raises(StoredDataError):
                SealedModel.open(flex, device)
            os.pwrite(file.fileno(), block[position : position + 1], position)
    use(flex, device)


def test_a_flip_of_any_sampled_bit_of_the_chunks_is_refused(flex: Path, device: DeviceKey):
    size = flex.stat().st_size
    edges = [BLOCK_SIZE + i * STRIDE + d for i in (1, 2) for d in (-17, -16, -1, 0)]
    with flex.open("r+b", buffering=0) as file:
        for position in [
            BLOCK_SIZE,
            size - 1,
            size - 16,
            size - 17,
            *edges,
            *range(BLOCK_SIZE, size, 99_991),
        ]:
            byte = os.pread(file.fileno(), 1, position)
            os.pwrite(file.fileno(), bytes([byte[0] ^ (1 << position % 8)]), position)
            with pytest.raises(StoredDataError, match="damaged, forged"):
                use(flex, device)
            os.pwrite(file.fileno(), byte, position)
    use(flex, device)


def test_a_damaged_chunk_leaves_no_unauthenticated_bytes(flex: Path, device: DeviceKey):
    data = bytearray(flex.read_bytes())
    data[BLOCK_SIZE + STRIDE + 5] ^= 1
    flex.write_bytes(data)
    target = bytearray(b"?" * CHUNK)
    with SealedModel.open(flex, device) as model, pytest.raises(StoredDataError):
        model.read_into(CHUNK, memoryview(target))
    assert target == bytes(CHUNK)


@pytest.mark.parametrize(
    "length", [0, 1, 15, 16, 100, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + STRIDE, -1, -16]
)
def test_a_truncated_file_is_refused(flex: Path, device: DeviceKey, length: int):
    data = flex.read_bytes()
    flex.write_bytes(data[:length])
    with pytest.raises(StoredDataError):
        SealedModel.open(flex, device)


def test_a_file_that_shrinks_after_it_was_opened_is_refused(flex: Path, device: DeviceKey):
    with SealedModel.open(flex, device) as model:
        os.truncate(flex, BLOCK_SIZE + STRIDE)
        with pytest.raises(StoredDataError, match="ends early"):
            model.verify(quiet)


def test_an_appended_byte_is_refused(flex: Path, device: DeviceKey):
    flex.write_bytes(flex.read_bytes() + b"\0")
    with pytest.raises(StoredDataError, match="bytes"):
        SealedModel.open(flex, device)


@pytest.mark.parametrize(("target", "origin"), [(0, 1), (1, 0)])
def test_a_repeated_chunk_is_refused(flex: Path, device: DeviceKey, target: int, origin: int):
    data = bytearray(flex.read_bytes())
    data[chunk(data, target)] = data[chunk(data, origin)]
    flex.write_bytes(data)
    with pytest.raises(StoredDataError, match=f"Chunk {target}"):
        use(flex, device)


def test_swapped_chunks_are_refused(flex: Path, device: DeviceKey):
    data = bytearray(flex.read_bytes())
    data[chunk(data, 0)], data[chunk(data, 1)] = data[chunk(data, 1)], data[chunk(data, 0)]
    flex.write_bytes(data)
    with pytest.raises(StoredDataError):
        use(flex, device)


@pytest.mark.parametrize("part", ["block", "chunk"])
def test_parts_of_two_sealings_do_not_mix(
    source: Path, flex: Path, tmp_path: Path, device: DeviceKey, part: str
):
    seal(source, tmp_path / "other.flex", "model", device, quiet)
    data, other = bytearray(flex.read_bytes()), (tmp_path / "other.flex").read_bytes()
    where = slice(0, BLOCK_SIZE) if part == "block" else chunk(data, 1)
    data[where] = other[where]
    flex.write_bytes(data)
    with pytest.raises(StoredDataError):
        use(flex, device)


@pytest.mark.parametrize("version", [0, 2, 0xFFFF_FFFF])
def test_another_version_is_refused(flex: Path, device: DeviceKey, version: int):
    data = bytearray(flex.read_bytes())
    data[8:12] = version.to_bytes(4, "little")
    flex.write_bytes(data)
    with pytest.raises(StoredDataError, match=f"version {version}"):
        SealedModel.open(flex, device)


def test_another_version_is_refused_even_if_this_device_signed_it(flex: Path, device: DeviceKey):
    data = bytearray(flex.read_bytes())
    data[8:12] = (0).to_bytes(4, "little")
    data[BLOCK_SIZE - 64 : BLOCK_SIZE] = device.sign(bytes(data[: BLOCK_SIZE - 64]))
    flex.write_bytes(data)
    with pytest.raises(StoredDataError, match="version 0"):
        SealedModel.open(flex, device)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"size":', b'"size":-'),
        (b'"name":"model"', b'"name":"../el"'),
        (b'"chunk":1048576', b'"chunk":9999999'),
        (b'"chunk":', b'"chuck":'),
        (b"{", b"["),
    ],
)
def test_a_signed_manifest_out_of_its_bounds_is_refused(
    flex: Path, device: DeviceKey, old: bytes, new: bytes
):
    data = flex.read_bytes()
    length = int.from_bytes(data[12:16], "little") + len(new) - len(old)
    text = data[16 : BLOCK_SIZE - 64].rstrip(b"\0").replace(old, new, 1)
    signed = (data[:12] + length.to_bytes(4, "little") + text).ljust(BLOCK_SIZE - 64, b"\0")
    flex.write_bytes(signed + device.sign(signed) + data[BLOCK_SIZE:])
    with pytest.raises(StoredDataError):
        use(flex, device)


def test_a_model_of_another_device_is_named_as_such(flex: Path, tmp_path: Path):
    with pytest.raises(StoredDataError, match="another device key") as caught:
        SealedModel.open(flex, DeviceKey.load_or_create(tmp_path / "other" / "device.key"))
    assert caught.value.code == "other_device"


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_what_is_not_a_regular_file_is_refused_without_hanging(flex: Path, device: DeviceKey, kind: str):
    flex.rename(flex.with_suffix(".real"))
    match kind:
        case "folder":
            flex.mkdir()
        case "pipe":
            os.mkfifo(flex)
        case "link":
            flex.symlink_to(flex.with_suffix(".real"))
    with pytest.raises(StoredDataError):
        SealedModel.open(flex, device)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_mutation_of_a_file_is_accepted(
    tmp_path_factory: pytest.TempPathFactory, device: DeviceKey, data: st.DataObject
):
    folder = tmp_path_factory.getbasetemp() / "mutations"
    original = folder / f"{device.identity[:16]}.flex"
    if not original.exists():
        folder.mkdir(exist_ok=True)
        (folder / "s.gguf").write_bytes(gguf_bytes())
        seal(folder / "s.gguf", original, "s", device, quiet)
    good = original.read_bytes()
    bad = bytearray(good)
    at = data.draw(st.integers(0, len(good)) | st.integers(0, 64))
    match data.draw(st.sampled_from(["bytes", "number", "cut", "splice", "insert"])):
        case "bytes":
            new = data.draw(st.binary(min_size=1, max_size=40))
            bad[at : at + len(new)] = new
        case "number":
            bad[at : at + 4] = data.draw(st.integers(0, (1 << 32) - 1)).to_bytes(4, "little")
        case "cut":
            del bad[at : at + data.draw(st.integers(1, len(good)))]
        case "splice":
            start, length = data.draw(st.integers(0, len(good))), data.draw(st.integers(0, 2000))
            bad[at : at + length] = good[start : start + length]
        case "insert":
            bad[at:at] = data.draw(st.binary(min_size=1, max_size=40))
    if bad == good:
        return
    path = folder / "mutated.flex"
    path.write_bytes(bad)
    with pytest.raises(StoredDataError):
        use(path, device)


# ---- sealing that fails --------------------------------------------------------------------------


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "x.flex"


def test_a_file_that_is_no_gguf_is_the_callers_error(tmp_path: Path, target: Path, device: DeviceKey):
    (tmp_path / "x.gguf").write_bytes(b"hello")
    with pytest.raises(CallerError):
        seal(tmp_path / "x.gguf", target, "x", device, quiet)
    assert os.listdir(target.parent) == []


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "device"])
def test_a_source_that_is_no_file_is_the_callers_error(
    tmp_path: Path, target: Path, device: DeviceKey, kind: str
):
    path = tmp_path / "x.gguf"
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "device":
            path = Path("/dev/zero")
    with pytest.raises(CallerError):
        seal(path, target, "x", device, quiet)
    assert os.listdir(target.parent) == []


@pytest.mark.parametrize("change", ["grow", "shrink", "touch"])
def test_a_source_that_changes_meanwhile_is_refused(
    source: Path, target: Path, device: DeviceKey, change: str
):
    def meddle(done: int, total: int) -> None:
        match change:
            case "grow":
                source.write_bytes(source.read_bytes() + b"more")
            case "shrink":
                os.truncate(source, total - 100_000)
            case "touch":
                os.utime(source, ns=(1, 1))

    with pytest.raises(CallerError, match="changed while"):
        seal(source, target, "x", device, meddle)
    assert os.listdir(target.parent) == []


def test_an_existing_destination_is_never_overwritten(source: Path, target: Path, device: DeviceKey):
    def meddle(done: int, total: int) -> None:
        target.write_bytes(b"was here first")

    with pytest.raises(CallerError) as caught:
        seal(source, target, "x", device, meddle)
    assert caught.value.code == "model_exists"
    assert os.listdir(target.parent) == ["x.flex"]
    assert target.read_bytes() == b"was here first"


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, CallerError])
def test_an_interrupted_sealing_leaves_nothing(
    source: Path, target: Path, device: DeviceKey, error: Callable[[str], BaseException]
):
    def stop(done: int, total: int) -> None:
        raise error("stop")

    with pytest.raises(error):
        seal(source, target, "x", device, stop)
    assert os.listdir(target.parent) == []


def test_a_disk_known_to_be_too_small_is_refused_before_anything_is_written(
    source: Path, target: Path, device: DeviceKey, monkeypatch: pytest.MonkeyPatch
):
    stats = list(os.statvfs(target.parent))
    stats[4] = 10  # blocks available
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(stats))
    monkeypatch.setattr(container, "NewFile", None)
    with pytest.raises(NormalWorldError, match="disk is full") as caught:
        seal(source, target, "x", device, quiet)
    assert caught.value.code == "disk_full"
    assert "MiB" in caught.value.hint


@pytest.mark.parametrize("call", ["pwritev", "fsync", "fdatasync", "link"])
@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "disk_full"), (errno.EDQUOT, "disk_full"), (errno.EIO, "disk_failed")]
)
def test_a_disk_that_fails_meanwhile_is_named_and_nothing_is_left(
    source: Path,
    target: Path,
    device: DeviceKey,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    code: str,
):
    real = getattr(os, call)
    calls = 0

    def fail(*arguments: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2 or call != "pwritev":
            raise OSError(number, os.strerror(number))
        return real(*arguments, **named)

    monkeypatch.setattr(container, "_FLUSH_EVERY", 2)
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(NormalWorldError) as caught:
        seal(source, target, "x", device, quiet)
    assert caught.value.code == code
    assert os.listdir(target.parent) == []


def test_a_real_limit_on_the_file_size_is_a_full_disk(source: Path, target: Path, device: DeviceKey):
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (CHUNK + CHUNK // 2, CHUNK + CHUNK // 2))
            seal(source, target, "x", device, quiet)
        except NormalWorldError as error:
            os.write(writer, error.code.encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.wait()
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"disk_full"
    assert os.listdir(target.parent) == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_disk_that_is_really_full_leaves_nothing(
    source: Path, target: Path, device: DeviceKey, monkeypatch: pytest.MonkeyPatch
):
    folder = str(target.parent)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1536k", "tmpfs", folder], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(NormalWorldError) as caught:
            seal(source, target, "x", device, lambda done, total: pytest.fail("sealing began"))
        assert caught.value.code == "disk_full"
        # The same when the room is lost only after it was checked.
        monkeypatch.setattr(container, "require_room", lambda *arguments: None)
        with pytest.raises(NormalWorldError) as caught:
            seal(source, target, "x", device, quiet)
        assert caught.value.code == "disk_full"
        assert os.listdir(folder) == []
    finally:
        subprocess.run(["umount", folder], check=True)
