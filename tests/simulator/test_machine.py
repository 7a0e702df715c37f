"""The modelled board gives back the published figures that its constants were taken from."""

from __future__ import annotations

import pytest

from flexserve.simulator.designs import Costs, designs
from flexserve.simulator.machine import LLAMA_3_1_8B, QWEN3_1_7B, RK3588
from flexserve.units import GIB

TABLE = 8 * GIB


def test_published_memory_figures_come_back():
    pages = TABLE / RK3588.page
    assert TABLE * RK3588.allocate == pytest.approx(pages * 271e-9, rel=1e-3)
    assert RK3588.contiguous_seconds(TABLE, 8 * GIB) == pytest.approx(6.44067)
    assert TABLE * RK3588.load == pytest.approx(3.265)
    assert TABLE * RK3588.decrypt == pytest.approx(1.319)
    assert TABLE * RK3588.protect == pytest.approx(0.43548)


def test_without_other_load_contiguous_memory_costs_what_pages_cost():
    assert RK3588.contiguous_seconds(TABLE, 0) == pytest.approx(TABLE * RK3588.allocate)


def test_published_prefill_speeds_come_back_and_scale_with_the_model():
    cpu = RK3588.prefill_speed(LLAMA_3_1_8B.parameters, npu=False)
    npu = RK3588.prefill_speed(LLAMA_3_1_8B.parameters, npu=True)
    assert cpu == pytest.approx(3.1, abs=0.05)
    assert npu == pytest.approx(39, abs=0.5)
    assert RK3588.prefill_speed(QWEN3_1_7B.parameters, npu=True) > 4 * npu


def test_the_npu_decodes_as_much_faster_as_published():
    weights = LLAMA_3_1_8B.weights
    ratio = RK3588.decode_seconds(weights, npu=False) / RK3588.decode_seconds(weights, npu=True)
    assert ratio == pytest.approx(1.3)


def test_only_what_tells_the_systems_apart_costs_them_differently():
    costs = {
        name: Costs.of(design, LLAMA_3_1_8B, RK3588, 8 * GIB) for name, design in designs(RK3588).items()
    }
    assert len({each.load for each in costs.values()}) == 1
    assert costs["nw_base"].decrypt == costs["nw_base"].protect == 0
    assert costs["flexserve"].decrypt == costs["strawman"].decrypt == costs["strawman_opt"].decrypt
    assert costs["flexserve"].prefill == costs["nw_base"].prefill == costs["strawman_opt"].prefill
    assert costs["strawman"].prefill == pytest.approx(12.5 * costs["flexserve"].prefill)
    assert costs["strawman"].allocate == costs["strawman_opt"].allocate > 10 * costs["flexserve"].allocate
