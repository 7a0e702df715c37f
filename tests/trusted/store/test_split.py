"""The parts of a split model are sealed as the one file that they were."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
from sample_models import PAIRS, U32, gguf_bytes, pair, quiet, tensor

from flexserve.errors import CallerError
from flexserve.trusted.store import Store, parse_gguf
from flexserve.trusted.store.source import FileSource, reader
from flexserve.trusted.store.split import JoinedSource, part_names, whole_name

U16 = 2
FIRST, SECOND, THIRD = b"first " * 24, b"second" * 22, b"third " * 12  # 144, 132 and 72 bytes
LAST = b"last__" * 2


def numbers(part: int, parts: int, kind: int = U16) -> tuple[bytes, ...]:
    code = {U16: "<H", U32: "<I"}[kind]
    return (
        pair("split.no", kind, struct.pack(code, part)),
        pair("split.count", kind, struct.pack(code, parts)),
    )


def part(number: int, parts: int, *data: bytes, pairs: tuple[bytes, ...] = (), kind: int = U16) -> bytes:
    """A part whose tensors are named after what is in them, as numbers of 4 bytes (F32)."""
    tensors, body = [], b""
    for text in data:
        tensors.append(tensor(f"blk.0.{text[:6].decode().strip()}", (len(text) // 4,), 0, len(body)))
        body += text + bytes(-len(text) % 32)
    body = body[: len(body) - -len(data[-1]) % 32] if data else b""  # the last one is not padded
    return gguf_bytes(pairs=(*pairs, *numbers(number, parts, kind)), tensors=tuple(tensors), data=body)


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    return write(tmp_path, part(0, 3, FIRST, pairs=PAIRS), part(1, 3, SECOND, THIRD), part(2, 3, LAST))


def write(folder: Path, *contents: bytes) -> list[Path]:
    paths = [folder / f"m-0000{number}-of-0000{len(contents)}.gguf" for number in range(1, len(contents) + 1)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def test_names_of_parts_lead_to_each_other() -> None:
    both = ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"]
    assert part_names(both[0]) == part_names(both[1]) == both
    assert whole_name(both[1]) == "a.gguf"
    assert part_names("a.gguf") == ["a.gguf"]
    with pytest.raises(CallerError, match="not in 1"):
        part_names("a-00001-of-99999.gguf")


def test_joined_parts_are_a_sound_gguf_with_all_tensors(parts: list[Path]) -> None:
    source = JoinedSource([FileSource(path) for path in parts])
    read = reader(source)
    header = parse_gguf(read, source.size)
    assert header.chat_template == "{{ messages }}"
    assert header.metadata["split.count"] == 0
    found = {tensor.name: read(tensor.offset, tensor.size) for tensor in header.tensors}
    assert found == {
        "blk.0.first": FIRST, "blk.0.second": SECOND, "blk.0.third": THIRD, "blk.0.last__": LAST
    }  # fmt: skip
    whole = read(0, source.size)
    assert all(read(at, 7) == whole[at : at + 7] for at in range(source.size))


def test_adding_one_part_seals_the_whole_model(parts: list[Path], store: Store) -> None:
    manifest = store.add(parts[1], None, quiet)
    source = JoinedSource([FileSource(path) for path in parts])
    assert manifest.name == "m"
    assert manifest.digest == hashlib.sha256(reader(source)(0, source.size)).hexdigest()
    store.verify("m", quiet)


def test_a_part_with_another_digest_is_refused(parts: list[Path], store: Store) -> None:
    right = [hashlib.sha256(path.read_bytes()).hexdigest() for path in parts]
    for wrong in range(len(parts)):
        digests = [("0" * 64 if number == wrong else one) for number, one in enumerate(right)]
        sources = [FileSource(path, digest) for path, digest in zip(parts, digests, strict=True)]
        with pytest.raises(CallerError, match=f"0000{wrong + 1}-of.*is not what it should be"):
            store.receive(JoinedSource(sources), "m", quiet)
    sources = [FileSource(path, digest) for path, digest in zip(parts, right, strict=True)]
    store.receive(JoinedSource(sources), "m", quiet)


def test_a_missing_part_is_named(parts: list[Path], store: Store) -> None:
    parts[2].unlink()
    with pytest.raises(CallerError, match=r"00003-of-00003\.gguf cannot be read"):
        store.add(parts[0], None, quiet)


def test_parts_of_other_models_are_refused(tmp_path: Path, store: Store) -> None:
    one, _ = write(tmp_path, part(0, 2, FIRST, pairs=PAIRS), part(0, 2, SECOND))
    with pytest.raises(CallerError, match="Part 2 of 2 says that it is number 0 of 2"):
        store.add(one, None, quiet)


def test_a_tensor_that_two_parts_have_is_refused(tmp_path: Path, store: Store) -> None:
    one, _ = write(tmp_path, part(0, 2, FIRST, pairs=PAIRS), part(1, 2, FIRST))
    with pytest.raises(CallerError, match="appears twice"):
        store.add(one, None, quiet)


def test_a_text_that_looks_like_the_count_of_parts_hides_none(tmp_path: Path, store: Store) -> None:
    decoy = pair("general.description", 8, struct.pack("<Q", 25) + numbers(0, 2)[1])
    one, _ = write(tmp_path, part(0, 2, FIRST, pairs=(decoy, *PAIRS)), part(1, 2, SECOND))
    with pytest.raises(CallerError, match="one of the 2 parts"):
        store.add(one, None, quiet)


def test_a_part_under_a_name_of_its_own_is_refused_with_what_to_do(parts: list[Path], store: Store) -> None:
    renamed = parts[0].rename(parts[0].with_name("renamed.gguf"))
    with pytest.raises(CallerError, match="one of the 3 parts") as refused:
        store.add(renamed, None, quiet)
    assert "00001-of-00003" in refused.value.hint
