"""A secure world as its normal world sees it: queue, cancels, shutdown, refusals, hostile bytes."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from library import CONTEXT, PROMPTS, SLOW, Library, has_secret_memory

from flexserve import interpreter
from flexserve.errors import CallerError, CancelledError, QueueFullError, UnknownModelError
from flexserve.harness.worlds import DrivenWorld
from flexserve.normal.process import environment
from flexserve.protocol.framing import MAX_FRAME, encode
from flexserve.protocol.launch import EXIT_CANNOT_START, SECURE_WORLD
from flexserve.protocol.messages import PROTOCOL_VERSION, Hello
from flexserve.protocol.prompts import TextPrompt
from flexserve.protocol.statuses import Failure
from flexserve.units import MIB

pytestmark = pytest.mark.engine

PROMPT, TOKENS = PROMPTS[1], 6
LONG = CONTEXT - 16  # tokens: still running when something happens to it


@pytest.fixture(scope="module")
def slow(library: Library) -> str:
    return library.add(library.file(SLOW, "q8_0"), "slow")


@pytest.fixture(scope="module")
def quick(library: Library) -> str:
    return library.add(library.file("small-qwen2", "q8_0"), "quick")


@pytest.fixture(scope="module")
def answer(library: Library) -> str:
    """What the quick model says."""
    return library.answer(library.file("small-qwen2", "q8_0"), PROMPT, TOKENS)


def ask(world: DrivenWorld, model: str, tokens: int = TOKENS) -> int:
    return world.submit(model, TextPrompt(PROMPT), tokens)


def begun(world: DrivenWorld, model: str, tokens: int = LONG) -> int:
    """Start a long request; return its number once it runs."""
    number = ask(world, model, tokens)
    while (status := world.status()).queued or not status.running:
        pass
    return number


def test_a_full_queue_refuses_the_next_request_and_serves_the_others(
    library: Library, slow: str, quick: str, answer: str
):
    with library.open(max_queue=2) as world:
        running = begun(world, slow)
        waiting = [ask(world, quick), ask(world, quick)]
        with pytest.raises(QueueFullError):
            world.result(ask(world, quick))
        world.cancel(running)
        with pytest.raises(CancelledError):
            world.result(running)
        assert [world.result(number).text for number in waiting] == [answer, answer]
        assert world.generate(quick, PROMPT, TOKENS).text == answer


def test_a_prompt_of_several_requests_is_computed_once(library: Library, world: DrivenWorld, quick: str):
    prompt, expected = PROMPTS[0], library.answer(library.file("small-qwen2", "q8_0"), PROMPTS[0], TOKENS)
    numbers = [world.submit(quick, TextPrompt(prompt), TOKENS, reuse=True, owner="several") for _ in range(3)]
    answers = [world.result(number) for number in numbers]
    assert [one.text for one in answers] == [expected] * 3
    usages = [one.finished.usage for one in answers]
    assert sum(one.prompt_tokens - one.cached_tokens for one in usages) == usages[0].prompt_tokens + 2


def test_cancelled_requests_end_whether_they_wait_or_run(
    world: DrivenWorld, slow: str, quick: str, answer: str
):
    running = begun(world, slow)
    waiting, untouched = ask(world, quick), ask(world, quick)
    for number in (waiting, running):
        world.cancel(number)
    for number in (waiting, running):
        with pytest.raises(CancelledError):
            world.result(number)
    assert world.result(untouched).text == answer


def test_the_model_of_a_cancelled_request_answers_the_next_one_right(
    library: Library, world: DrivenWorld, slow: str
):
    running = begun(world, slow)
    world.cancel(running)
    with pytest.raises(CancelledError):
        world.result(running)
    expected = library.answer(library.file(SLOW, "q8_0"), PROMPTS[0], TOKENS)
    assert world.generate(slow, PROMPTS[0], TOKENS).text == expected


def test_cancelling_what_is_over_or_never_was_does_nothing(world: DrivenWorld, quick: str, answer: str):
    number = ask(world, quick)
    assert world.result(number).text == answer
    world.cancel(number)
    world.cancel(1 << 40)
    assert world.generate(quick, PROMPT, TOKENS).text == answer


def test_shutdown_lets_what_runs_end_and_refuses_the_rest(library: Library, slow: str, quick: str):
    with library.open() as world:
        running = begun(world, slow, 256)
        waiting = ask(world, quick)
        world.shut_down(drain=240)
        late = ask(world, quick)
        for number in (waiting, late):
            with pytest.raises(CancelledError):
                world.result(number)
        assert world.result(running).text == library.answer(library.file(SLOW, "q8_0"), PROMPT, 256)
        assert world.wait() == 0


def test_shutdown_stops_what_runs_beyond_its_time(library: Library, slow: str):
    with library.open() as world:
        running = begun(world, slow)
        world.shut_down(drain=0)
        with pytest.raises(CancelledError):
            world.result(running)
        assert world.wait() == 0


def test_the_demo_model_says_the_same_before_and_after_a_recall_of_everything(world: DrivenWorld, tiny: str):
    first = world.chat(tiny, "What is Flex-Mem?", 80)
    assert "recallable secure memory" in first.text
    assert first.finished.reason == "stop"
    assert world.recall(None).returned > 0
    again = world.chat(tiny, "What is Flex-Mem?", 80)
    assert again.text == first.text
    assert again.finished.timings.restored_bytes > 0


def test_a_prompt_longer_than_the_context_is_the_callers_mistake(world: DrivenWorld, quick: str, answer: str):
    with pytest.raises(CallerError) as caught:
        world.generate(quick, PROMPTS[0] * 40, TOKENS)
    assert caught.value.code == "context_length_exceeded"
    assert "Kato" not in str(caught.value)
    assert world.generate(quick, PROMPT, TOKENS).text == answer


def test_a_model_that_is_not_there_is_the_callers_mistake(world: DrivenWorld, quick: str, answer: str):
    with pytest.raises(UnknownModelError):
        world.generate("nobody", PROMPT, TOKENS)
    assert world.generate(quick, PROMPT, TOKENS).text == answer


class BareWorld:
    """A secure world process at the other end of a socket, with nobody who knows the protocol at ours."""

    def __init__(self, library: Library, prefix: tuple[str, ...] = (), **more: Any) -> None:
        self.socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [
                    *(*prefix, *interpreter.command(SECURE_WORLD)),
                    *library.options(channel_fd=theirs.fileno(), **more).words(),
                ],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=(theirs.fileno(),),
                env=environment(),
            )

    def end(self) -> tuple[int, str]:
        """Return its exit status and what it said, once it has ended by itself."""
        _, said = self.process.communicate(timeout=240)
        return self.process.returncode, said

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.socket.close()


@pytest.fixture
def bare(library: Library) -> Iterator[BareWorld]:
    world = BareWorld(library)
    yield world
    world.close()


def frame(value: object) -> bytes:
    body = msgspec.msgpack.encode(value)
    return struct.pack("<I", len(body)) + body


MALFORMED = {
    "a frame larger than any": struct.pack("<I", MAX_FRAME + 1),
    "no message at all": struct.pack("<I", 4) + b"\xc1\xff\x00\x00",
    "an unknown message": frame({"type": "OpenSesame"}),
    "an unknown field": frame({"type": "Query", "serial": 1, "secret": "Kato bime"}),
    "a number out of bounds": frame({"type": "Cancel", "request": -1}),
    "a second handshake": encode(Hello(PROTOCOL_VERSION)),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_frame_ends_the_world_with_one_clear_line(bare: BareWorld, data: bytes):
    bare.socket.sendall(encode(Hello(PROTOCOL_VERSION)))
    assert bare.socket.recv(65536), "no Welcome"
    bare.socket.sendall(data)
    status, said = bare.end()
    assert status == 1
    assert len(said.splitlines()) == 1
    assert "Restart" in said
    assert "Traceback" not in said
    assert "Kato" not in said


def test_a_normal_world_of_another_version_is_told_so(bare: BareWorld):
    bare.socket.sendall(encode(Hello(PROTOCOL_VERSION + 1)))
    status, said = bare.end()
    assert status == EXIT_CANNOT_START
    assert msgspec.json.decode(said, type=Failure).code == "peer_failed"


def test_a_normal_world_that_leaves_takes_the_secure_world_with_it(bare: BareWorld):
    bare.socket.sendall(encode(Hello(PROTOCOL_VERSION)))
    assert bare.socket.recv(65536), "no Welcome"
    bare.socket.close()
    assert bare.end() == (0, "")


def test_too_little_lockable_memory_is_said_before_anything_is_served(library: Library):
    if not has_secret_memory():
        pytest.skip("this machine has no secret memory to begin with")
    prefix: tuple[str, ...] = ("prlimit", f"--memlock={MIB}:{MIB}")
    if os.geteuid() == 0:  # root has CAP_IPC_LOCK, which knows no limit
        prefix += ("setpriv", "--inh-caps=-ipc_lock", "--bounding-set=-ipc_lock")
    if any(shutil.which(command) is None for command in ("prlimit", "setpriv")):
        pytest.skip("needs prlimit and setpriv of util-linux")
    world = BareWorld(library, prefix, memory="secret")
    try:
        status, said = world.end()
    finally:
        world.close()
    assert status == EXIT_CANNOT_START
    reason = msgspec.json.decode(said, type=Failure)
    assert reason.code == "locked_memory_limit"
    assert reason.blame == "normal_world"
    assert "prlimit --pid $$" in reason.hint
