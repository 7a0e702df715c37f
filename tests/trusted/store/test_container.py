from __future__ import annotations

import ctypes
import hashlib
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_models import CANARY, METADATA_CANARY, gguf_bytes, quiet
from sealed_files import chunk, use

from flexserve.trusted.store import DeviceKey, SealedModel, parse_gguf, seal_file
from flexserve.trusted.store.manifest import CHUNK


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
    manifest = seal_file(source, tmp_path / "x.flex", "x", device, lambda *step: seen.append(step))
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
    seal_file(tmp_path / "s.gguf", tmp_path / "s.flex", "s", device, quiet)
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
    assert (
        seal_file(source, one, "m", device, quiet).model_id
        != seal_file(source, two, "m", device, quiet).model_id
    )
    first, second = one.read_bytes(), two.read_bytes()
    assert all(first[chunk(first, i)][:64] != second[chunk(second, i)][:64] for i in range(3))
