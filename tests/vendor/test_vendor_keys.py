"""A vendor's public key is said by its digits, or by the file that holds them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flexserve.errors import CallerError
from flexserve.vendor.keys import VendorKeys, parse_public


def test_a_key_is_its_digits_or_a_file_however_long_its_name(tmp_path: Path):
    keys = VendorKeys.make(tmp_path / "keys")
    public = keys.public
    assert parse_public(public.upper()) == public
    assert parse_public(str(tmp_path / "keys" / "vendor.pub")) == public
    folder = tmp_path / "a"
    folder.mkdir()
    for length in range(len(str(folder)) + 2, 140):
        path = Path(f"{folder}/{'k' * (length - len(str(folder)) - 1)}")
        path.write_text(f"{public}\n")
        assert parse_public(str(path)) == public, f"a name of {length} characters"


@pytest.mark.parametrize("said", ["", "ab", "g" * 64, "ab" * 31, "/nowhere", "a\0b"])
def test_what_is_neither_is_refused(said: str):
    with pytest.raises(CallerError, match=re.escape("is no vendor's key")):
        parse_public(said)
