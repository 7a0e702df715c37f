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
from flexserve.protocol.messages import Finished, Terms, TextPrompt
from flexserve.protocol.sampling import Sampling
from flexserve.protocol.statuses import ModelStatus
from flexserve.testing.scripted_link import AdjustableMemory, scripted_command
from flexserve.testing.scripted_world import Behaviour, Fault, Script

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


def test_a_kill_needs_a_second_one_and_a_crash_does_not() -> None:
    now = [0.0]
    aside = SetAside(clock=lambda: now[0])
    aside.blame("killed", DEATH, killed=True)
    aside.check("killed")
    now[0] = 10_000
    aside.blame("killed", DEATH, killed=True)  # long after the first
    aside.check("killed")
    now[0] += 1
    aside.blame("killed", DEATH, killed=True)
    aside.blame("crashed", DEATH, killed=False)
    for model in ("killed", "crashed"):
        with pytest.raises(SetAsideError, match="SIGABRT"):
            aside.check(model)


def test_a_model_that_was_tried_since_is_taken_back() -> None:
    aside = SetAside()
    aside.blame("odd", DEATH, killed=False)
    status = ModelStatus("odd", "unloaded", 1, 0, 0, 0, running=False, trial=99)
    for _ in range(2):
        aside.forgive([status])
        assert "odd" in aside.models
    aside.forgive([ModelStatus("odd", "unloaded", 1, 0, 0, 0, running=False, trial=7)])
    aside.check("odd")
