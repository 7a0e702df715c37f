"""The framework on the simulated board: what it keeps, what it waits for, and that no memory is lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexserve.errors import GrantRefusedError
from flexserve.simulator.designs import designs
from flexserve.simulator.dram import Dram
from flexserve.simulator.machine import LLAMA_3_1_8B, LLAMA_3_2_3B, PAPER_MODELS, QWEN3_1_7B, RK3588
from flexserve.simulator.rig import Rig
from flexserve.units import GIB, MIB

DESIGNS = designs(RK3588)
COARSE = 64 * MIB


def rig(system="flexserve", models=(QWEN3_1_7B,), budget=16 * GIB, **options):
    return Rig(DESIGNS[system], models, budget=budget, chunk=options.pop("chunk", COARSE), **options)


@pytest.mark.parametrize("system", DESIGNS)
@pytest.mark.parametrize("model", PAPER_MODELS)
def test_every_system_answers_with_every_model_beside_the_papers_load(system, model):
    board = rig(system, [model], budget=0, chunk=8 * MIB)
    ticket = board.ask(model.name, 32, 4)
    assert not ticket.refused
    assert ticket.parts.bound <= ticket.ttft <= ticket.parts.work * 1.001
    board.server.residence.check()


def test_without_a_pipeline_every_step_is_waited_for_and_with_one_most_are_hidden():
    plain = rig("strawman", [LLAMA_3_1_8B], budget=0).ask(LLAMA_3_1_8B.name, 128)
    piped = rig("flexserve", [LLAMA_3_1_8B], budget=0, chunk=8 * MIB).ask(LLAMA_3_1_8B.name, 128)
    assert plain.ttft == pytest.approx(plain.parts.work)
    assert piped.ttft < 1.1 * piped.parts.bound < 0.6 * piped.parts.work


def test_what_is_kept_is_not_restored_again():
    board = rig()
    cold, warm = board.ask(QWEN3_1_7B.name, 32), board.ask(QWEN3_1_7B.name, 32)
    assert cold.parts.load > 0
    assert warm.parts.load == warm.parts.decrypt == warm.parts.prepare == 0
    assert warm.ttft < cold.ttft / 2


def test_a_system_that_keeps_nothing_returns_all_memory():
    board = rig("strawman_opt", budget=0)
    board.ask(QWEN3_1_7B.name, 32, 8)
    assert board.dram.secure == 0


def test_a_hidden_tail_costs_nothing_and_an_exposed_head_does():
    full = rig()
    full.ask(QWEN3_1_7B.name, 512)
    weights = full.server.residence.weights[QWEN3_1_7B.name]
    warm = full.ask(QWEN3_1_7B.name, 512).ttft
    weights.drop(weights.resident // 2)
    assert full.ask(QWEN3_1_7B.name, 512).ttft < 1.05 * warm
    warm = full.ask(QWEN3_1_7B.name, 32).ttft
    weights.drop(weights.resident)
    assert full.ask(QWEN3_1_7B.name, 32).ttft > 2 * warm


def test_pressure_takes_idle_weights_from_the_tail_and_nothing_it_need_not():
    board = rig(models=[LLAMA_3_2_3B])
    board.ask(LLAMA_3_2_3B.name, 32)
    weights = board.server.residence.weights[LLAMA_3_2_3B.name]
    board.press(11 * GIB)
    assert weights.resident_fraction == 1.0
    board.press(14 * GIB)
    assert 0 < weights.resident_fraction < 1
    kept = round(weights.resident_fraction * weights.count)
    assert all(weights.is_resident(chunk) for chunk in range(kept))
    board.press(16 * GIB)
    assert weights.resident_fraction == 0.0


def test_the_expected_next_model_is_brought_in_while_the_current_one_decodes():
    board = rig(models=[QWEN3_1_7B, LLAMA_3_1_8B], budget=2 * GIB, background=4 * GIB, chunk=8 * MIB)
    cold = board.ask(QWEN3_1_7B.name, 32, 64)
    board.ask(LLAMA_3_1_8B.name, 32, 64)
    for _ in range(3):
        board.ask(QWEN3_1_7B.name, 32, 64)
        board.ask(LLAMA_3_1_8B.name, 32, 64)
    ticket = board.ask(QWEN3_1_7B.name, 32, 64)
    assert ticket.parts.load < 1.1 * ticket.parts.compute, "only what hides behind the prompt is missing"
    assert ticket.ttft < cold.ttft / 2


def test_a_request_that_no_memory_is_left_for_is_refused_and_the_next_one_is_served():
    board = rig(models=[QWEN3_1_7B, LLAMA_3_1_8B], background=12 * GIB)
    assert board.ask(LLAMA_3_1_8B.name, 32).refused
    assert not board.ask(QWEN3_1_7B.name, 32).refused
    board.server.residence.check()


@given(
    calls=st.lists(
        st.tuples(
            st.sampled_from(PAPER_MODELS),
            st.sampled_from([1, 32, 512]),
            st.integers(1, 20),
            st.floats(0, 20),
            st.integers(0, 16),
        ),
        min_size=1,
        max_size=12,
    ),
    system=st.sampled_from(sorted(DESIGNS)),
    budget=st.sampled_from([0, 1, 4, 16]),
)
@settings(max_examples=30, deadline=None)
def test_whatever_is_asked_and_however_memory_wanders_all_ends_and_nothing_is_lost(calls, system, budget):
    board = rig(system, PAPER_MODELS, budget=budget * GIB, chunk=256 * MIB)
    tickets = []
    for model, prompt, answer, pause, others in calls:
        tickets.append(board.server.submit(model.name, prompt, answer))
        board.simulation.run(board.simulation.now + pause)
        board.dram.background = others * GIB
        board.server.residence.pressed(board.simulation.now)
    board.simulation.run(board.simulation.now + 1e5)
    board.server.residence.check()
    assert board.server.residence.running == set()
    for ticket in tickets:
        assert ticket.ended is not None
        assert ticket.refused or (ticket.asked < ticket.first <= ticket.ended)
        assert ticket.refused or ticket.produced == ticket.answer


def test_memory_that_is_not_there_is_refused_and_nothing_changes():
    dram = Dram(4 * GIB, background=3 * GIB, chunk=256 * MIB)
    with pytest.raises(GrantRefusedError):
        dram.take(5)
    assert dram.secure == 0
    pages = dram.take(4)
    assert (dram.secure, dram.available) == (GIB, 0)
    dram.give(pages)
    dram.check()
    assert dram.available == GIB


def test_two_resident_models_are_served_at_once():
    board = rig(models=[QWEN3_1_7B, LLAMA_3_2_3B])
    for model in (QWEN3_1_7B, LLAMA_3_2_3B):
        board.ask(model.name, 32)
    first = board.server.submit(QWEN3_1_7B.name, 32, 64)
    second = board.server.submit(LLAMA_3_2_3B.name, 32, 64)
    board.simulation.run(board.simulation.now + 600.0)
    assert second.first < first.ended
    assert first.first < second.ended


def test_a_model_that_must_be_restored_waits_a_little_for_one_that_is_busy_but_not_for_its_end():
    board = rig(models=[QWEN3_1_7B, LLAMA_3_2_3B])
    board.ask(QWEN3_1_7B.name, 32)
    busy = board.server.submit(QWEN3_1_7B.name, 32, 200)
    board.simulation.run(board.simulation.now + 1.0)
    other = board.server.submit(LLAMA_3_2_3B.name, 32, 8)
    board.simulation.run(board.simulation.now + 600.0)
    assert other.ttft > 2.0, "the patience of flexserve.policy.schedule"
    assert other.ended < busy.ended
