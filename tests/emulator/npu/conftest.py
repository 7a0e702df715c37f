"""A board with a device whose driver has switched paging on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from boards import Board, Interrupted


@pytest.fixture
def board() -> Iterator[Board]:
    it = Board(device=Interrupted)
    it.enable_paging()
    yield it
    it.close()
