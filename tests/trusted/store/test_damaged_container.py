from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_models import gguf_bytes, quiet
from sealed_files import STRIDE, chunk, use

from flexserve.errors import StoredDataError
from flexserve.trusted.store import DeviceKey, SealedModel, seal_file
from flexserve.trusted.store.manifest import BLOCK_SIZE, CHUNK


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


def test_a_file_that_the_disk_has_lost_is_an_error_that_blames_the_disk(
    flex: Path, device: DeviceKey, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_arguments: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with SealedModel.open(flex, device) as model:
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(StoredDataError, match="disk cannot read chunk 0 of model") as caught:
            model.verify(quiet)
    assert caught.value.code == "disk_unreadable"
    assert "dmesg" in caught.value.hint
    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(StoredDataError) as caught:
        SealedModel.open(flex, device)
    assert caught.value.code == "disk_unreadable"


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
    seal_file(source, tmp_path / "other.flex", "model", device, quiet)
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
        seal_file(folder / "s.gguf", original, "s", device, quiet)
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
