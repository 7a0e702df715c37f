from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import random
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_models import quiet

from flexserve.errors import FlexServeError, NormalWorldError, StoredDataError
from flexserve.trusted.store import (
    BufferSpec,
    DeviceKey,
    Image,
    ImageWriter,
    SealedModel,
    StaleImageError,
    seal_file,
)

CHUNK = 8192
BUFFERS = (BufferSpec("CPU", 3 * CHUNK + 100), BufferSpec("CPU_REPACK", 2 * CHUNK), BufferSpec("tiny", 1))
CONTENT = tuple(random.Random(i).randbytes(buffer.size) for i, buffer in enumerate(BUFFERS))
PLACES = [(b, i) for b, buffer in enumerate(BUFFERS) for i in range(-(-buffer.size // CHUNK))]
FINGERPRINT = "llama.cpp b1, avx512"


def piece(buffer: int, index: int) -> bytes:
    return CONTENT[buffer][index * CHUNK : (index + 1) * CHUNK]


def write(path: Path, sealed: SealedModel, fingerprint: str = FINGERPRINT, *, seed: int = 0) -> None:
    places = PLACES.copy()
    random.Random(seed).shuffle(places)
    with ImageWriter(path, sealed, fingerprint, BUFFERS, CHUNK, extra=b"layout") as writer:
        for buffer, index in places:
            writer.write(buffer, index, memoryview(piece(buffer, index)))
        writer.finish()


def restore_all(image: Image) -> None:
    for buffer, index in PLACES:
        target = bytearray(len(piece(buffer, index)))
        assert image.restore(buffer, index, memoryview(target)) >= 0
        assert target == piece(buffer, index)


@pytest.fixture
def path(tmp_path: Path, sealed: SealedModel) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    write(folder / "x.img", sealed)
    return folder / "x.img"


def test_what_was_written_in_any_order_is_restored(path: Path, sealed: SealedModel):
    with Image.open(path, sealed, FINGERPRINT) as image:
        assert image.buffers == BUFFERS
        assert (image.chunk, image.extra) == (CHUNK, b"layout")
        restore_all(image)
    assert os.listdir(path.parent) == ["x.img"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_ciphertext_lies_at_page_boundaries(path: Path, sealed: SealedModel, monkeypatch: pytest.MonkeyPatch):
    offsets = []
    real = os.preadv

    def spy(fd: int, parts: list[memoryview], offset: int) -> int:
        offsets.append(offset)
        return real(fd, parts, offset)

    with Image.open(path, sealed, FINGERPRINT) as image:
        monkeypatch.setattr(os, "preadv", spy)
        restore_all(image)
    assert len(set(offsets)) == len(PLACES)
    assert all(offset % 4096 == 0 for offset in offsets)


def test_memory_from_ctypes_can_be_written_from(tmp_path: Path, sealed: SealedModel):
    buffer = BufferSpec("CPU", CHUNK)
    content = (ctypes.c_ubyte * CHUNK).from_buffer_copy(piece(0, 0))
    with ImageWriter(tmp_path / "x.img", sealed, FINGERPRINT, [buffer], CHUNK) as writer:
        writer.write(0, 0, memoryview(content))
        writer.finish()
    target = bytearray(CHUNK)
    with Image.open(tmp_path / "x.img", sealed, FINGERPRINT) as image:
        image.restore(0, 0, memoryview(target))
    assert target == piece(0, 0)


def test_memory_from_ctypes_can_be_restored_into(path: Path, sealed: SealedModel):
    target = (ctypes.c_ubyte * CHUNK)()
    with Image.open(path, sealed, FINGERPRINT) as image:
        image.restore(1, 1, memoryview(target))
    assert bytes(target) == piece(1, 1)


def test_threads_may_restore_at_once(path: Path, sealed: SealedModel):
    targets = [bytearray(buffer.size) for buffer in BUFFERS]
    failures: list[BaseException] = []

    def restore(mine: int) -> None:
        try:
            for _ in range(30):
                for buffer, index in PLACES[mine::4]:
                    view = memoryview(targets[buffer])[index * CHUNK : (index + 1) * CHUNK]
                    image.prefetch(buffer, index, 2)
                    image.restore(buffer, index, view)
        except BaseException as error:
            failures.append(error)

    with Image.open(path, sealed, FINGERPRINT) as image:
        threads = [threading.Thread(target=restore, args=(mine,)) for mine in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert tuple(map(bytes, targets)) == CONTENT


def test_threads_may_write_at_once(tmp_path: Path, sealed: SealedModel):
    path = tmp_path / "t.img"
    with ImageWriter(path, sealed, FINGERPRINT, BUFFERS, CHUNK, extra=b"layout") as writer:

        def work(mine: int) -> None:
            for buffer, index in PLACES[mine::3]:
                writer.write(buffer, index, memoryview(piece(buffer, index)))

        threads = [threading.Thread(target=work, args=(mine,)) for mine in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        writer.finish()
    with Image.open(path, sealed, FINGERPRINT) as image:
        restore_all(image)


def test_writing_leaves_the_plaintext_as_it_was(tmp_path: Path, sealed: SealedModel):
    weights = bytearray(piece(1, 0))
    with ImageWriter(tmp_path / "x.img", sealed, FINGERPRINT, BUFFERS, CHUNK) as writer:
        writer.write(1, 0, memoryview(weights))
    assert weights == piece(1, 0)


def test_nothing_of_the_buffers_is_in_the_file_in_clear(path: Path):
    data = path.read_bytes()
    for content in CONTENT[:2]:
        assert all(content[i : i + 16] not in data for i in range(0, len(content) - 16, 509))
    for word in (b"CPU_REPACK", b"layout", b"avx512"):
        assert word not in data


# ---- stale: the caller rebuilds -------------------------------------------------------------------


def test_an_absent_image_is_stale(tmp_path: Path, sealed: SealedModel):
    with pytest.raises(StaleImageError):
        Image.open(tmp_path / "none.img", sealed, FINGERPRINT)


def test_an_image_for_another_cpu_or_engine_is_stale(path: Path, sealed: SealedModel):
    with pytest.raises(StaleImageError, match="another CPU"):
        Image.open(path, sealed, "llama.cpp b2, avx512")


@pytest.mark.parametrize("version", [0, 2])
def test_an_image_of_another_version_is_stale(path: Path, sealed: SealedModel, version: int):
    data = bytearray(path.read_bytes())
    data[8] = version
    path.write_bytes(data)
    with pytest.raises(StaleImageError, match="version"):
        Image.open(path, sealed, FINGERPRINT)


def test_a_stale_image_is_replaced_in_one_step(path: Path, sealed: SealedModel):
    write(path, sealed, "llama.cpp b2")
    with Image.open(path, sealed, "llama.cpp b2") as image:
        restore_all(image)
    assert os.listdir(path.parent) == ["x.img"]


# ---- hostile --------------------------------------------------------------------------------------


def use(path: Path, sealed: SealedModel) -> None:
    with Image.open(path, sealed, FINGERPRINT) as image:
        restore_all(image)


def test_an_image_of_another_model_is_refused(path: Path, source: Path, tmp_path: Path, device: DeviceKey):
    seal_file(source, tmp_path / "other.flex", "model", device, quiet)
    with SealedModel.open(tmp_path / "other.flex", device) as other, pytest.raises(StoredDataError) as caught:
        Image.open(path, other, FINGERPRINT)
    assert not isinstance(caught.value, StaleImageError)


def test_a_flip_of_any_byte_before_the_data_is_refused(path: Path, sealed: SealedModel):
    good = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for position in range(4096):
            os.pwrite(file.fileno(), bytes([good[position] ^ 1]), position)
            with pytest.raises(StoredDataError):
                Image.open(path, sealed, FINGERPRINT)
            os.pwrite(file.fileno(), good[position : position + 1], position)
    use(path, sealed)


def test_a_damaged_chunk_is_refused_and_leaves_zeros(path: Path, sealed: SealedModel):
    data = bytearray(path.read_bytes())
    data[4096 + CHUNK] ^= 1
    path.write_bytes(data)
    target = bytearray(b"?" * CHUNK)
    with Image.open(path, sealed, FINGERPRINT) as image:
        image.restore(0, 0, memoryview(target))
        with pytest.raises(StoredDataError, match="damaged, forged"):
            image.restore(0, 1, memoryview(target))
    assert target == bytes(CHUNK)


def test_swapped_chunks_are_refused(path: Path, sealed: SealedModel):
    data = bytearray(path.read_bytes())
    one, two = slice(4096, 4096 + CHUNK), slice(4096 + CHUNK, 4096 + 2 * CHUNK)
    data[one], data[two] = data[two], data[one]
    path.write_bytes(data)
    with pytest.raises(StoredDataError):
        use(path, sealed)


def test_data_of_an_older_image_of_the_same_model_does_not_mix(path: Path, sealed: SealedModel):
    old = path.read_bytes()
    write(path, sealed, seed=1)
    new = path.read_bytes()
    path.write_bytes(new[:4096] + old[4096:])
    with pytest.raises(StoredDataError):
        use(path, sealed)


@pytest.mark.parametrize("length", [0, 7, 67, 68, 100, 4095, 4096, 4097, -1])
def test_a_truncated_image_is_refused(path: Path, sealed: SealedModel, length: int):
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(StoredDataError):
        Image.open(path, sealed, FINGERPRINT)


@pytest.mark.parametrize("length", [1 << 20, 64 << 20, 1 << 32, 1 << 63, (1 << 64) - 1])
def test_an_absurd_index_length_is_refused(path: Path, sealed: SealedModel, length: int):
    data = bytearray(path.read_bytes())
    data[12:20] = length.to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(StoredDataError, match="index is longer"):
        Image.open(path, sealed, FINGERPRINT)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_mutated_image_restores_the_right_bytes_or_is_refused(
    path: Path, sealed: SealedModel, data: st.DataObject
):
    pristine = path.with_suffix(".good")
    if not pristine.exists():
        pristine.write_bytes(path.read_bytes())
    bad = bytearray(pristine.read_bytes())
    at = data.draw(st.integers(0, len(bad)) | st.integers(0, 80))
    match data.draw(st.sampled_from(["bytes", "cut", "splice", "insert"])):
        case "bytes":
            new = data.draw(st.binary(min_size=1, max_size=40))
            bad[at : at + len(new)] = new
        case "cut":
            del bad[at : at + data.draw(st.integers(1, len(bad)))]
        case "splice":
            start, length = data.draw(st.integers(0, len(bad))), data.draw(st.integers(0, 9000))
            bad[at : at + length] = bytes(bad[start : start + length])
        case "insert":
            bad[at:at] = data.draw(st.binary(min_size=1, max_size=40))
    path.write_bytes(bad)
    with contextlib.suppress(StoredDataError):
        use(path, sealed)  # asserts the bytes; only padding between buffers may differ


@pytest.mark.parametrize(
    ("number", "error", "code"),
    [
        (errno.EIO, StoredDataError, "image_damaged"),  # bad blocks
        (errno.ENODATA, StoredDataError, "image_damaged"),
        (errno.EBADMSG, StoredDataError, "image_damaged"),  # the file system's checksums do not match
        (errno.ENOMEM, NormalWorldError, "disk_failed"),
    ],
)
def test_what_a_disk_has_lost_is_damage_and_other_failures_of_it_are_not(
    path: Path,
    sealed: SealedModel,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    error: type[FlexServeError],
    code: str,
):
    def fail(*arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    with Image.open(path, sealed, FINGERPRINT) as image:
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(error) as caught:
            image.restore(0, 0, memoryview(bytearray(CHUNK)))
        assert caught.value.code == code
    with pytest.raises(error) as caught:
        Image.open(path, sealed, FINGERPRINT)
    assert caught.value.code == code


# ---- misuse and failure while writing -----------------------------------------------------------------


def test_an_image_with_a_missing_chunk_cannot_be_finished(tmp_path: Path, sealed: SealedModel):
    with ImageWriter(tmp_path / "x.img", sealed, FINGERPRINT, BUFFERS, CHUNK) as writer:
        for buffer, index in PLACES[1:]:
            writer.write(buffer, index, memoryview(piece(buffer, index)))
        with pytest.raises(ValueError, match="1 chunks"):
            writer.finish()
    assert not (tmp_path / "x.img").exists()


def test_a_chunk_cannot_be_written_twice(tmp_path: Path, sealed: SealedModel):
    with ImageWriter(tmp_path / "x.img", sealed, FINGERPRINT, BUFFERS, CHUNK) as writer:
        writer.write(2, 0, memoryview(b"x"))
        with pytest.raises(ValueError, match="already"):
            writer.write(2, 0, memoryview(b"x"))


@pytest.mark.parametrize(("buffer", "index"), [(-1, 0), (3, 0), (0, 4), (0, -1)])
def test_a_chunk_that_does_not_exist_is_refused(path: Path, sealed: SealedModel, buffer: int, index: int):
    with Image.open(path, sealed, FINGERPRINT) as image:
        with pytest.raises(IndexError):
            image.restore(buffer, index, memoryview(bytearray(CHUNK)))
        with pytest.raises(IndexError):
            image.prefetch(buffer, index, 1)


@pytest.mark.parametrize("length", [0, 99, 101, CHUNK])
def test_a_piece_of_the_wrong_length_is_refused(path: Path, tmp_path: Path, sealed: SealedModel, length: int):
    with Image.open(path, sealed, FINGERPRINT) as image, pytest.raises(ValueError, match="100 bytes"):
        image.restore(0, 3, memoryview(bytearray(length)))
    with (
        ImageWriter(tmp_path / "y.img", sealed, FINGERPRINT, BUFFERS, CHUNK) as writer,
        pytest.raises(ValueError, match="100 bytes"),
    ):
        writer.write(0, 3, memoryview(bytes(length)))


@pytest.mark.parametrize("chunk", [0, 100, 4097, 1 << 27])
def test_a_chunk_size_that_no_reader_accepts_is_refused_at_once(
    tmp_path: Path, sealed: SealedModel, chunk: int
):
    with pytest.raises(ValueError, match="chunk"):
        ImageWriter(tmp_path / "x.img", sealed, FINGERPRINT, BUFFERS, chunk)


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(
    path: Path, sealed: SealedModel, monkeypatch: pytest.MonkeyPatch
):
    def fail(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    with ImageWriter(path.parent / "y.img", sealed, FINGERPRINT, BUFFERS, CHUNK) as writer:
        writer.write(0, 0, memoryview(piece(0, 0)))
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwritev", fail)
            with pytest.raises(NormalWorldError) as caught:
                writer.write(0, 1, memoryview(piece(0, 1)))
        for buffer, index in PLACES[2:]:
            writer.write(buffer, index, memoryview(piece(buffer, index)))
        with pytest.raises(ValueError, match="failed"):
            writer.finish()
    assert caught.value.code == "disk_full"
    assert os.listdir(path.parent) == ["x.img"]
