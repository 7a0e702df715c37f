"""What is searched for secrets: of a file, all that was written to it, however large it says it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flexserve.attacks.trustzone.inside.dump import in_files
from flexserve.units import GIB


@pytest.mark.parametrize("place", [0, 40 * GIB, 64 * GIB - 6])
def test_a_sparse_file_is_searched_where_it_has_something(tmp_path: Path, place: int) -> None:
    with (tmp_path / "disk").open("wb") as file:
        os.truncate(file.fileno(), 64 * GIB)
        os.pwrite(file.fileno(), b"secret", place)
    (tmp_path / "empty").touch()
    assert in_files(b"secret", [tmp_path])
    assert not in_files(b"another", [tmp_path])
