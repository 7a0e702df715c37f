"""A model that ends secure worlds is set aside; the server, and the other models, go on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from flexserve.errors import PeerError
from flexserve.normal import supervisor as supervisor_module
from flexserve.normal.launcher import Launcher
from flexserve.normal.set_aside import SetAside, SetAsideError
from flexserve.normal.supervisor import WorldState
from flexserve.normal.world import World, supervised
from flexserve.protocol.answers import Finished
from flexserve.protocol.prompts import TextPrompt
from flexserve.protocol.requests import Terms
from flexserve.protocol.sampling import Sampling
from flexserve.protocol.statuses import ModelStatus
from flexserve.testing.script import Behaviour, Fault, Script
from flexserve.testing.scripted_link import AdjustableMemory, scripted_command

Until = Callable[[Callable[[], bool]], Awaitable[None]]
DEATH = PeerError("The secure world was ended by SIGABRT.")


async def ask(world: World, model: str, terms: Terms | None = None) -> list[Any]:
    async with await world.generate(model, TextPrompt("x"), Sampling(), terms or Terms()) as answer:
        return [message async for message in answer]


@pytest.mark.anyio
async def test_more_deadly_models_than_lives_leave_a_server_that_serves(
    memory: AdjustableMemory, until: Until
) -> None:
    deadly = [f"deadly-{n}" for n in range(supervisor_module.MAX_SHORT_LIVES + 1)]
    models = {"tiny": Behaviour(), **{name: Behaviour(fault=Fault.DIE) for name in deadly}}
    launch = Launcher(scripted_command(Script(models=models))).launch
    async with supervised(launch, memory, drain=0) as world:
        for number, name in enumerate(deadly, 1):
            with pytest.raises(PeerError):
                await ask(world, name)
            await until(lambda: world.restarts == number and world.state is WorldState.READY)  # noqa: B023
            with pytest.raises(SetAsideError, match=f"flexserve verify {name}"):
                await ask(world, name)
        assert isinstance((await ask(world, "tiny", Terms(next_model=deadly[0])))[-1], Finished)
        assert set(world.set_aside) == set(deadly)
        assert world.state is WorldState.READY


def test_a_crash_is_enough() -> None:
    aside = SetAside()
    aside.crashed("crashed", DEATH)
    with pytest.raises(SetAsideError, match="SIGABRT"):
        aside.check("crashed")


def test_a_kill_needs_a_second_one_soon() -> None:
    now = [0.0]
    aside = SetAside(clock=lambda: now[0])
    for moment in (0, 10_000):  # long after the first
        now[0] = moment
        aside.killed("killed", DEATH, alone=True)
        aside.check("killed")
    now[0] += 1
    aside.killed("killed", DEATH, alone=True)
    with pytest.raises(SetAsideError):
        aside.check("killed")


def test_where_other_models_were_busy_it_takes_four_kills() -> None:
    aside = SetAside()
    for _ in range(3):
        aside.killed("killed", DEATH, alone=False)
        aside.check("killed")
    aside.killed("killed", DEATH, alone=False)
    with pytest.raises(SetAsideError):
        aside.check("killed")


def test_a_model_that_is_answered_for_between_kills_is_never_set_aside_for_them() -> None:
    aside = SetAside()
    for _ in range(10):
        aside.killed("busy", DEATH, alone=True)
        aside.answered(["busy", "other"])
    aside.check("busy")


SLOW = Behaviour(tokens=["x"] * 999, token_delay=0.01)


async def killed_while_it_answers(world: World, until: Until, model: str) -> None:
    before = world.restarts
    async with await world.generate(model, TextPrompt("x"), Sampling()) as answer:
        await anext(answer)
        world.kill()
        with pytest.raises(PeerError):
            async for _ in answer:
                pass
    await until(lambda: world.restarts == before + 1 and world.state is WorldState.READY)


@pytest.mark.anyio
async def test_a_server_whose_operator_kills_its_world_again_and_again_still_serves(
    memory: AdjustableMemory, until: Until
) -> None:
    script = Script(models={"tiny": Behaviour(token_delay=0.05)})
    async with supervised(Launcher(scripted_command(script)).launch, memory, drain=0) as world:
        for _ in range(3):
            await ask(world, "tiny")
            await killed_while_it_answers(world, until, "tiny")
        assert world.set_aside == {}


@pytest.mark.anyio
async def test_that_a_client_is_cut_off_while_a_model_computes_counts_as_a_kill(
    memory: AdjustableMemory, until: Until
) -> None:
    launch = Launcher(scripted_command(Script(models={"cut": Behaviour(fault=Fault.CUT_OFF)}))).launch
    async with supervised(launch, memory, drain=0) as world:
        for number in range(1, 3):
            assert world.set_aside == {}
            with pytest.raises(PeerError):
                await ask(world, "cut")
            await until(lambda: world.restarts == number and world.state is WorldState.READY)  # noqa: B023
        assert set(world.set_aside) == {"cut"}


@pytest.mark.anyio
async def test_a_model_whose_every_request_ends_in_a_kill_is_set_aside(
    memory: AdjustableMemory, until: Until
) -> None:
    launch = Launcher(scripted_command(Script(models={"slow": SLOW}))).launch
    async with supervised(launch, memory, drain=0) as world:
        for _ in range(2):
            assert world.set_aside == {}
            await killed_while_it_answers(world, until, "slow")
        assert set(world.set_aside) == {"slow"}


def test_a_model_that_was_tried_since_is_taken_back() -> None:
    aside = SetAside()
    aside.crashed("odd", DEATH)
    status = ModelStatus("odd", "unloaded", 1, 0, 0, 0, running=False, trial=99)
    for _ in range(2):
        aside.forgive([status])
        assert "odd" in aside.models
    aside.forgive([ModelStatus("odd", "unloaded", 1, 0, 0, 0, running=False, trial=7)])
    aside.check("odd")
