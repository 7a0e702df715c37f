"""The file of API keys: its lines, read and written."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from flexserve.errors import CallerError
from flexserve.normal.api.keys import Key, Keys, Right, digest_of
from flexserve.normal.key_file import add_key, list_keys, read_keys, remove_key
from flexserve.normal.quota import Rate

DIGEST = digest_of(b"sk-of-alice")
ALICE = Key("alice", DIGEST, frozenset({Right.ASK}), Rate(60, "minute"), Rate(100_000, "day"))


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "keys"
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_a_line_says_whose_key_it_is_what_it_may_and_how_much(tmp_path: Path) -> None:
    line = f"alice sha256:{DIGEST.hex()} rights=ask requests=60/m tokens=100000/day"
    assert read_keys(written(tmp_path, f"# ours\n\n{line}\n")) == [ALICE]


def test_what_was_added_is_read_back_and_the_file_is_this_users_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "keys"
    add_key(path, ALICE)
    add_key(path, Key("root", digest_of(b"sk-of-root")))
    assert [key.name for key in read_keys(path)] == ["alice", "root"]
    assert read_keys(path)[0] == ALICE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "sk-of" not in path.read_text()


def test_a_removed_key_leaves_the_other_lines_as_they_are(tmp_path: Path) -> None:
    path = written(tmp_path, "# first\nsk-of-the-old-way")
    add_key(path, ALICE)
    before = path.read_text()
    add_key(path, Key("bob", digest_of(b"sk-of-bob")))
    remove_key(path, "bob")
    assert path.read_text() == before
    with pytest.raises(CallerError, match="no key of that name"):
        remove_key(path, "bob")


def test_a_name_is_given_once_and_is_a_name(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    add_key(path, ALICE)
    with pytest.raises(CallerError, match="alice"):
        add_key(path, ALICE)
    for name in ("", "a b", "#a", "-a", "a" * 65, "a\nb"):
        with pytest.raises(CallerError, match="name"):
            add_key(path, Key(name, DIGEST))
    assert len(read_keys(path)) == 1
    with pytest.raises(CallerError, match="alice"):
        Keys([ALICE, Key("alice", digest_of(b"another"))])


@pytest.mark.parametrize(
    "line",
    [
        "alice sk-a-key-in-clear",
        "alice sha256:abcd",
        f"alice sha256:{DIGEST.hex()} rights=everything",
        f"alice sha256:{DIGEST.hex()} requests=many",
        f"alice sha256:{DIGEST.hex()} colour=blue",
        f"alice sha256:{DIGEST.hex()} rights=ask rights=admin",
        f"a/b sha256:{DIGEST.hex()}",
    ],
)
def test_a_line_that_is_none_is_named_by_its_number_and_not_quoted(tmp_path: Path, line: str) -> None:
    with pytest.raises(CallerError, match="Line 2 of ") as refusal:
        read_keys(written(tmp_path, f"# ours\n{line}\n"))
    assert "sk-a-key" not in str(refusal.value)
    assert refusal.value.code == "bad_api_key"


def test_no_file_has_no_keys_to_list(tmp_path: Path) -> None:
    assert list_keys(tmp_path / "keys") == []
