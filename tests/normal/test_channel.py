"""The normal world's end of the channel: order is law, waits are bounded, death is noticed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from flexserve.errors import (
    CallerError,
    CancelledError,
    PeerError,
    QueueFullError,
    StoredDataError,
    UnknownModelError,
)
from flexserve.normal import channel as channel_module
from flexserve.normal.answer import MAX_BACKLOG, Answer
from flexserve.normal.channel import WorldChannel, open_channel
from flexserve.protocol.answers import Delta, Failed, Finished, Started, Timings, Usage
from flexserve.protocol.framing import encode
from flexserve.protocol.memory import Grant, NeedMemory, Recalled, Returned, Spare, WantSpare
from flexserve.protocol.messages import Status
from flexserve.protocol.prompts import ChatMessage, ChatPrompt, TextPrompt
from flexserve.protocol.requests import Cancel, Generate
from flexserve.protocol.sampling import Sampling
from flexserve.protocol.statuses import Failure
from flexserve.testing.script import Behaviour, Script
from flexserve.testing.scripted_link import ScriptedLink

pytestmark = pytest.mark.anyio
PROMPT = TextPrompt("a prompt")
Until = Callable[[Callable[[], bool]], Awaitable[None]]


class AuditLog:
    """Grants everything, remembers everything."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def need(self, message: NeedMemory) -> Grant:
        self.said.append(message)
        return Grant(message.serial, message.size)

    def spare(self, message: WantSpare) -> Spare:
        self.said.append(message)
        return Spare(message.serial, message.size)

    def returned(self, message: Returned) -> None:
        self.said.append(message)

    def recalled(self, message: Recalled) -> None:
        self.said.append(message)


@pytest.fixture
async def channel(link: ScriptedLink) -> WorldChannel:
    await link.launch(AuditLog())
    assert link.channel is not None
    return link.channel


async def read(answer: Answer) -> list[Any]:
    async with answer:
        return [message async for message in answer]


async def test_an_answer_arrives_whole_and_in_order(channel: WorldChannel) -> None:
    messages = await read(await channel.generate("tiny", PROMPT, Sampling()))
    assert [type(message) for message in messages] == [Started, Delta, Delta, Delta, Delta, Finished]
    assert "".join(m.text for m in messages if isinstance(m, Delta)) == "Hello, world!"


async def test_answers_of_concurrent_requests_do_not_mix(channel: WorldChannel) -> None:
    names = ["tiny", "odd"] * 2
    answers = [await channel.generate(name, PROMPT, Sampling()) for name in names]
    texts = [
        "".join(m.text for m in ms if isinstance(m, Delta))
        for ms in await asyncio.gather(*map(read, answers))
    ]
    assert texts == ["Hello, world!", 'ключ🔑\n\n"}'] * 2


async def test_a_failure_is_raised_as_its_own_type(channel: WorldChannel) -> None:
    with pytest.raises(UnknownModelError):
        await read(await channel.generate("nobody", PROMPT, Sampling()))
    with pytest.raises(StoredDataError):
        await read(await channel.generate("forged", PROMPT, Sampling()))


async def test_leaving_an_answer_early_cancels_the_request(
    channel: WorldChannel, link: ScriptedLink, until: Until
) -> None:
    async with await channel.generate("slow", PROMPT, Sampling()) as answer:
        await anext(answer)
    await until(lambda: Cancel(answer.request) in link.scripted.received)
    await until(lambda: answer.ended)
    assert channel.error is None


async def test_leaving_a_finished_answer_cancels_nothing(channel: WorldChannel, link: ScriptedLink) -> None:
    await read(await channel.generate("tiny", PROMPT, Sampling()))
    await channel.query()
    assert not link.scripted.every(Cancel)


@pytest.mark.parametrize("model", ["garbage", "oversized", "unasked", "repeated"])
async def test_a_broken_protocol_closes_the_channel_and_fails_every_request(
    channel: WorldChannel, model: str
) -> None:
    bystander = await channel.generate("stuck", PROMPT, Sampling())
    with pytest.raises(PeerError):
        await read(await channel.generate(model, PROMPT, Sampling()))
    assert channel.closed.is_set()
    with pytest.raises(PeerError):
        await read(bystander)
    with pytest.raises(PeerError):
        await channel.generate("tiny", PROMPT, Sampling())


STARTED, DELTA, FINISHED = Started(1, 7), Delta(1, "x", 1), Finished(1, "stop", Usage(1, 1), Timings())
FAILED = Failed(1, Failure("caller", "cancelled", "Cancelled."))


@pytest.mark.parametrize(
    "messages",
    [
        [DELTA],
        [FINISHED],
        [STARTED, STARTED],
        [STARTED, FINISHED, DELTA],
        [FAILED, FAILED],
        [STARTED, Failed(1, Failure("nobody", "x", "y"))],
    ],
    ids=["text first", "end first", "two starts", "text after the end", "two ends", "unknown blame"],
)
async def test_messages_out_of_order_are_peer_errors(messages: list[Any]) -> None:
    answer = Answer(1, cancel=lambda _: None)
    *legal, last = messages
    for message in legal:
        answer.push(message)
    with pytest.raises(PeerError):
        answer.push(last)


@pytest.mark.parametrize(
    "message", [Status, Recalled, "welcome"], ids=["status", "recalled", "second welcome"]
)
async def test_answers_that_nobody_asked_for_close_the_channel(
    channel: WorldChannel, link: ScriptedLink, message: Any
) -> None:
    status = await channel.query()
    match message:
        case "welcome":
            link.scripted.say(channel.welcome)
        case _ if message is Status:
            link.scripted.say(status)
        case _:
            link.scripted.say(Recalled(99, 0, 0, 0, 0, 0, []))
    await channel.closed.wait()
    assert isinstance(channel.error, PeerError)


async def test_the_death_of_the_secure_world_fails_all_that_waits(
    channel: WorldChannel, link: ScriptedLink
) -> None:
    answer = await channel.generate("stuck", PROMPT, Sampling())
    link.kill()
    with pytest.raises(PeerError, match="gone"):
        await read(answer)
    with pytest.raises(PeerError):
        await channel.query()


async def test_demands_for_memory_are_answered_and_returns_are_counted(link: ScriptedLink) -> None:
    audit_log = AuditLog()
    await link.launch(audit_log)
    assert link.channel is not None
    answer = await link.channel.generate("hungry", PROMPT, Sampling(max_tokens=2))
    await read(answer)
    assert [type(message) for message in audit_log.said] == [NeedMemory, Returned]


async def test_a_client_that_does_not_read_loses_its_request_not_our_memory(
    link: ScriptedLink, channel: WorldChannel, until: Until
) -> None:
    answer = await channel.generate("stuck", PROMPT, Sampling())
    link.scripted.say(Started(answer.request, 7))
    for _ in range(9):
        link.scripted.say(Delta(answer.request, "x" * (MAX_BACKLOG // 8), 1))
    await until(lambda: Cancel(answer.request) in link.scripted.received)
    with pytest.raises(CallerError) as caught:
        await read(answer)
    assert caught.value.code == "client_too_slow"
    assert channel.error is None


@pytest.mark.parametrize(
    "prompt",
    [
        TextPrompt("x" * ((1 << 20) + 1)),
        TextPrompt("\ud800"),
        ChatPrompt([]),
        ChatPrompt([ChatMessage("user", "ж" * (1 << 20))] * 3),
    ],
    ids=["too long", "no unicode", "no message", "too large for a frame"],
)
async def test_a_callers_mistake_does_not_cost_the_others_their_channel(
    channel: WorldChannel, prompt: TextPrompt | ChatPrompt
) -> None:
    with pytest.raises(CallerError):
        await channel.generate("tiny", prompt, Sampling())
    assert len(await read(await channel.generate("tiny", PROMPT, Sampling()))) == 6


async def test_too_many_requests_in_flight_are_refused(
    channel: WorldChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "MAX_REQUESTS", 1)
    await channel.generate("stuck", PROMPT, Sampling())
    with pytest.raises(QueueFullError):
        await channel.generate("tiny", PROMPT, Sampling())


async def test_many_who_ask_for_attestation_at_once_do_not_cost_the_others_their_channel(
    channel: WorldChannel,
) -> None:
    answers = await asyncio.gather(*(channel.attest(b"n" * 32) for _ in range(300)), return_exceptions=True)
    refused = [each for each in answers if isinstance(each, QueueFullError)]
    assert 0 < len(refused) < len(answers)
    assert len(await read(await channel.generate("tiny", PROMPT, Sampling()))) == 6


async def test_a_query_without_an_answer_times_out_and_a_late_answer_is_accepted() -> None:
    ours, theirs = socket.socketpair()
    link = ScriptedLink(Script())
    await link.launch(AuditLog())
    assert link.channel is not None
    welcome, status = link.channel.welcome, await link.channel.query()
    opening = asyncio.create_task(open_channel(ours, AuditLog(), timeout=5))
    loop = asyncio.get_running_loop()
    theirs.setblocking(False)
    await loop.sock_sendall(theirs, encode(welcome))
    mute = await opening
    with pytest.raises(PeerError, match="no Status"):
        await mute.query(timeout=0.01)
    await loop.sock_sendall(theirs, encode(msgspec.structs.replace(status, serial=1)))
    next_query = asyncio.create_task(mute.query(timeout=5))
    await asyncio.sleep(0)
    await loop.sock_sendall(theirs, encode(msgspec.structs.replace(status, serial=2)))
    assert (await next_query).serial == 2


async def test_a_wrong_version_is_refused_with_both_numbers() -> None:
    with pytest.raises(PeerError, match="protocol 99"):
        await ScriptedLink(Script(version=99)).launch(AuditLog())


@pytest.mark.parametrize("first", [encode(STARTED), b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
async def test_whoever_does_not_begin_with_welcome_is_refused(first: bytes, until: Until) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(first)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(PeerError):
        await open_channel(ours, AuditLog(), timeout=5)
    await until(lambda: ours.fileno() == -1)


async def test_a_silent_peer_is_refused_in_bounded_time() -> None:
    ours, _theirs = socket.socketpair()
    with pytest.raises(PeerError, match="did not answer"):
        await open_channel(ours, AuditLog(), timeout=0.01)


async def test_shutdown_lets_running_requests_finish() -> None:
    link = ScriptedLink(Script(models={"brief": Behaviour(token_delay=0.01)}))
    await link.launch(AuditLog())
    assert link.channel is not None
    answer = await link.channel.generate("brief", PROMPT, Sampling())
    await anext(answer)
    link.channel.shut_down(drain=60)
    assert isinstance((await read(answer))[-1], Finished)


async def test_shutdown_cancels_what_does_not_finish_in_time(channel: WorldChannel) -> None:
    answer = await channel.generate("stuck", PROMPT, Sampling())
    channel.shut_down(drain=0)
    with pytest.raises((CancelledError, PeerError)):
        await read(answer)


async def test_every_generate_decodes_at_the_other_end(channel: WorldChannel, link: ScriptedLink) -> None:
    sampling = Sampling(max_tokens=3, temperature=0, top_p=0.5, seed=(1 << 63) - 1, stop=["\n"], logprobs=2)
    answer = await channel.generate("tiny", ChatPrompt([ChatMessage("user", "ключ")]), sampling)
    messages = await read(answer)
    assert [len(m.choices[0].top) for m in messages if isinstance(m, Delta)] == [2, 2, 2]
    sent = link.scripted.every(Generate)
    assert sent[0].sampling == sampling
