"""Keeping a secure world alive: noticed deaths, restarts, and giving up with a reason."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from flexserve.errors import CancelledError, FlexServeError, InternalError, MachineGoneError, PeerError
from flexserve.normal import supervisor as supervisor_module
from flexserve.normal.channel import MemoryCounter
from flexserve.normal.launcher import CUT_OFF, Launcher
from flexserve.normal.memory import MemoryBroker
from flexserve.normal.model_options import ModelChoices
from flexserve.normal.supervisor import Supervisor, WorldState
from flexserve.normal.world import World, supervised
from flexserve.protocol.answers import Finished
from flexserve.protocol.prompts import TextPrompt
from flexserve.protocol.sampling import Sampling
from flexserve.testing.script import Behaviour, Script
from flexserve.testing.scripted_link import AdjustableMemory, ScriptedLink, scripted_command

pytestmark = pytest.mark.anyio
Until = Callable[[Callable[[], bool]], Awaitable[None]]


async def ask(world: World, model: str) -> list[Any]:
    async with await world.generate(model, TextPrompt("x"), Sampling()) as answer:
        return [message async for message in answer]


async def test_a_killed_process_is_replaced_and_the_next_request_is_served(
    memory: AdjustableMemory, until: Until
) -> None:
    script = Script(models={"tiny": Behaviour(), "slow": Behaviour(tokens=["x"] * 999, token_delay=0.01)})
    async with supervised(Launcher(scripted_command(script)).launch, memory, drain=0) as world:
        async with await world.generate("slow", TextPrompt("x"), Sampling()) as answer:
            await anext(answer)
            world.kill()
            with pytest.raises(PeerError):
                async for _ in answer:
                    pass
        await until(lambda: world.restarts == 1)
        assert isinstance((await ask(world, "tiny"))[-1], Finished)
        assert world.failure is not None
        assert "SIGKILL" in world.failure.message


@pytest.mark.parametrize("model", ["garbage", "oversized", "unasked", "repeated"])
async def test_a_world_that_breaks_the_protocol_is_replaced(world: World, until: Until, model: str) -> None:
    with pytest.raises(PeerError):
        await ask(world, model)
    await until(lambda: world.restarts == 1 and world.state is WorldState.READY)
    assert isinstance((await ask(world, "tiny"))[-1], Finished)


class Dying:
    """A world whose channel has closed; its process ends by itself after a while, and says why."""

    pid = 1

    def __init__(self, seconds: float) -> None:
        self.channel: Any = self
        self.closed, self.error = asyncio.Event(), PeerError("it went away")
        self.closed.set()
        self._seconds, self._killed = seconds, asyncio.Event()

    async def wait(self) -> FlexServeError:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._seconds):
                await self._killed.wait()
                return PeerError("It was ended by SIGKILL.")
        return PeerError("It was cut off.", code=CUT_OFF)

    async def stop(self, *, drain: float) -> None:
        del drain

    def kill(self) -> None:
        self._killed.set()

    async def close(self) -> None:
        pass


@pytest.mark.parametrize(("seconds", "reason"), [(1.0, "It was cut off."), (60.0, "it went away")])
async def test_a_process_that_takes_its_time_to_end_is_heard_out(
    link: ScriptedLink, memory: AdjustableMemory, seconds: float, reason: str
) -> None:
    supervisor = Supervisor(link.launch, MemoryBroker(memory), ModelChoices())
    assert (await supervisor._outlive(Dying(seconds))).message == reason


async def test_while_it_is_down_requests_get_a_clear_error(
    link: ScriptedLink, memory: AdjustableMemory, until: Until
) -> None:
    gate = asyncio.Event()

    async def launch(counter: MemoryCounter) -> ScriptedLink:
        if link.launches:
            await gate.wait()
        return await link.launch(counter)

    async with supervised(launch, memory, drain=0) as world:
        world.kill()
        await until(lambda: world.state is WorldState.RESTARTING)
        with pytest.raises(PeerError, match="restarting"):
            await ask(world, "tiny")
        gate.set()
        await until(lambda: world.state is WorldState.READY)
        await ask(world, "tiny")


async def test_memory_of_a_dead_world_counts_as_returned(
    world: World, link: ScriptedLink, until: Until
) -> None:
    async with await world.generate("hungry", TextPrompt("x"), Sampling()) as answer:
        await anext(answer)
        await anext(answer)
        assert (await world.report()).granted > 0
        world.kill()
        await until(lambda: world.restarts == 1)
    assert (await world.report()).granted == 0


async def test_repeated_immediate_deaths_end_in_a_clear_failure(
    link: ScriptedLink, memory: AdjustableMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "_FIRST_WAIT", 0.001)

    async def launch(counter: MemoryCounter) -> ScriptedLink:
        if link.launches:
            link.launches += 1
            raise PeerError("The lock limit is too low.")
        return await link.launch(counter)

    async with supervised(launch, memory, drain=0) as world:
        world.kill()
        failure = await world.failed()
        assert "5 times" in failure.message
        assert "lock limit" in failure.message
        assert link.launches == supervisor_module.MAX_SHORT_LIVES
        with pytest.raises(PeerError, match="lock limit"):
            await ask(world, "tiny")


async def test_a_machine_that_is_gone_is_said_at_once_and_no_other_world_is_tried(
    link: ScriptedLink, memory: AdjustableMemory
) -> None:
    async def launch(counter: MemoryCounter) -> ScriptedLink:
        if link.launches:
            link.launches += 1
            raise MachineGoneError("The machine ended with status 0.")
        return await link.launch(counter)

    async with supervised(launch, memory, drain=0) as world:
        world.kill()
        failure = await world.failed()
        assert isinstance(failure, MachineGoneError)
        assert link.launches == 2
        with pytest.raises(PeerError, match="ended with status 0"):
            await ask(world, "tiny")


async def test_an_unforeseen_error_while_restarting_is_a_failure_and_not_a_silence(
    link: ScriptedLink, memory: AdjustableMemory
) -> None:
    async def launch(counter: MemoryCounter) -> ScriptedLink:
        if link.launches:
            raise RuntimeError("a very secret prompt")
        return await link.launch(counter)

    async with supervised(launch, memory, drain=0) as world:
        world.kill()
        failure = await world.failed()
        assert isinstance(failure, InternalError)
        assert "secret" not in str(failure)


async def test_lives_and_deaths_leave_no_descriptors_behind(memory: AdjustableMemory, until: Until) -> None:
    async with supervised(Launcher(scripted_command(Script())).launch, memory, drain=0) as world:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            life = world.restarts + 1
            world.kill()
            while world.restarts < life:
                await asyncio.sleep(0.005)
        await until(lambda: len(os.listdir("/proc/self/fd")) == before)


async def test_a_first_start_that_fails_is_raised_at_once(memory: AdjustableMemory) -> None:
    launcher = Launcher(scripted_command(Script(dies_at_start=True)))
    with pytest.raises(PeerError, match="status 9"):
        async with supervised(launcher.launch, memory):
            pytest.fail("it started")


async def test_draining_refuses_new_requests_and_finishes_running_ones(memory: AdjustableMemory) -> None:
    link = ScriptedLink(Script(models={"brief": Behaviour(token_delay=0.02)}))
    async with supervised(link.launch, memory, drain=0) as world:
        async with await world.generate("brief", TextPrompt("x"), Sampling()) as answer:
            await anext(answer)
            draining = asyncio.create_task(world.drain(60))
            await asyncio.sleep(0)
            with pytest.raises(CancelledError, match="shutting down"):
                await ask(world, "brief")
            assert isinstance([message async for message in answer][-1], Finished)
        await draining
        assert world.state is WorldState.STOPPED
        assert world.restarts == 0


async def test_stopping_between_two_lives_does_not_start_another(
    link: ScriptedLink, memory: AdjustableMemory, until: Until
) -> None:
    async def launch(counter: MemoryCounter) -> ScriptedLink:
        if link.launches:
            await asyncio.Event().wait()
        return await link.launch(counter)

    async with supervised(launch, memory, drain=0) as world:
        world.kill()
        await until(lambda: world.state is WorldState.RESTARTING)
    assert world.state is WorldState.STOPPED
    assert link.launches == 1


async def test_a_silent_request_is_cancelled_without_hurting_the_world(world: World) -> None:
    async with await world.generate("silent", TextPrompt("x"), Sampling()) as answer:
        for _ in range(5):
            await anext(answer)
    assert isinstance((await ask(world, "tiny"))[-1], Finished)
