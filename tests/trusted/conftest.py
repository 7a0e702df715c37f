from __future__ import annotations

from collections.abc import Iterator

import pytest
from templates import renderer


@pytest.fixture(scope="session", autouse=True)
def _the_helper_ends_with_the_tests() -> Iterator[None]:
    yield
    if renderer.cache_info().currsize:
        renderer().close()
