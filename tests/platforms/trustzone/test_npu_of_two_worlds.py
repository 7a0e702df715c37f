"""Both worlds at one NPU, at random. Longer: python -m flexserve.testing.npu_walk --steps 100000"""

from __future__ import annotations

import pytest

from flexserve.testing.npu_walk import walk

STEPS = 1500


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_they_do_no_product_is_wrong_and_nothing_leaks_or_hangs(seed: int):
    done = walk(STEPS, seed, lambda _line: None)
    for deed in ("computed", "computed for the OS", "lost", "stopped"):
        assert done[deed] > 0, f"in this walk nothing was {deed}"
