"""The engine thread between requests."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from flexserve.serving.scheduler import Scheduler


class Household:
    """A shelf and a cache that want to be looked after again in so many seconds."""

    def __init__(self, pause: float | None, rearranged: float | None) -> None:
        self.lock = threading.Lock()
        self.looked = threading.Semaphore(0)
        self._pause, self._rearranged = pause, rearranged

    def tidy(self) -> float | None:
        self.looked.release()
        return self._pause

    def rearrange(self) -> float | None:
        return self._rearranged

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("pause", "rearranged"), [(0.01, 3600), (3600, 0.01), (0.01, None), (None, 0.01)])
def test_the_house_is_looked_after_at_the_earlier_of_two_deadlines(
    pause: float | None, rearranged: float | None
) -> None:
    house: Any = Household(pause, rearranged)
    scheduler = Scheduler(house, house, house, lambda _message: None, limit=1)
    try:
        for _ in range(3):
            assert house.looked.acquire(timeout=30)
    finally:
        scheduler.drain(0)
