"""A server as people start it, ended in the midst of its answers: its client, its emulator, its machine.

One request is sealed, one is not, and a conversation was sealed before. What is left is searched while the
server stands still. Then both requests have to end with an error, the server has to have another machine,
and the conversation goes on from what was sealed. Where a machine lost its power, another one starts with
the RAM that it left.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import random
import select
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import msgspec

from flexserve.attacks.attempt import Gained, Pointless
from flexserve.attacks.target import MODEL
from flexserve.attacks.trustzone.inside.dump import (
    Search,
    Secrets,
    anywhere_in_ram,
    by_secret,
    in_files,
    in_process,
    in_ram,
    states_of,
)
from flexserve.attacks.trustzone.inside.exposure import Exposed, Question, name_of
from flexserve.attacks.trustzone.inside.hands import ResetButton, agent_of
from flexserve.attacks.trustzone.scene import CPUS, RAM_BYTES
from flexserve.emulator.build import Images
from flexserve.emulator.devicetree import RING, RING_BYTES
from flexserve.emulator.machine import Machine
from flexserve.errors import FlexServeError
from flexserve.normal.remote_server import RemoteServer
from flexserve.normal.reports import States
from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.ram import BASE, PAGE, Ram
from flexserve.tee_client.messages import HEADER
from flexserve.tee_client.ring import ANSWERS_WRITTEN

_CLIENT = "tee_client.main"
# Longer than what is computed as fast as it is read; nobody else says it.
_KEPT = "Kato bime wurafo, zi lo mera. " * 8
_WORDS = "Kanarivogel pfeift und schweigt"
_FEW, _MANY = 8, 360  # tokens of an answer
_TRIES = 8  # to be in the midst of two answers
_MOMENT = 1.0  # seconds: somewhere in these it is ended
_SOON, _LONG = 30.0, 120.0  # seconds
_WRITTEN = 64 * ANSWERS_WRITTEN  # bytes from the start of the ring
# Status, bytes, number: of the first request, of none, of one to come; of no status; longer than any.
_FORGED = ((0, 0, 1), (0, 0, 0), (0, 0, (1 << 64) - 1), (99, 0, 1), (0, 1 << 31, 1))
_RESET, _OFF = "b", "o"  # as the kernel's SysRq has them: it makes PSCI's SYSTEM_RESET, SYSTEM_OFF


class _Refusal(msgspec.Struct, frozen=True):
    message: str
    hint: str = ""


class _Choice(msgspec.Struct, frozen=True):
    text: str = ""


class _Cached(msgspec.Struct, frozen=True):
    cached_tokens: int = 0


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    prompt_tokens_details: _Cached = _Cached()


class _Completion(msgspec.Struct, frozen=True):
    choices: list[_Choice] = msgspec.field(default_factory=list)
    usage: _Usage | None = None
    error: _Refusal | None = None


@dataclasses.dataclass(slots=True)
class Ended:
    """A server that is ended, what it keeps, and when it is: by dice of the seed that `seed` has."""

    exposed: Exposed
    images: Images
    button: ResetButton
    seed: int
    dice: random.Random
    kept: str = ""  # the answer of the conversation that is sealed

    @classmethod
    @contextlib.contextmanager
    def set(cls, images: Images, folder: Path, *, seed: int) -> Iterator[Ended]:
        """Serve a model with a canary, and have a conversation sealed. `images`: of its machine."""
        with (
            ResetButton.made() as button,
            Exposed.set(folder, "inside", programs=button.programs) as exposed,
        ):
            scene = cls(exposed, images, button, seed, random.Random(seed))  # noqa: S311  # of moments
            scene.kept, _ = scene.converse()
            yield scene

    # ---- requests ----------------------------------------------------------------------------------------

    def converse(self) -> tuple[str, int]:
        """Ask the conversation's question; return the answer, and how much of the prompt was not computed.

        Then have all sealed and given back. Raises Pointless when that cannot be.
        """
        deadline = time.monotonic() + _LONG
        body = {"model": MODEL, "prompt": _KEPT, "max_tokens": _FEW, "temperature": 0, "ignore_eos": True}
        url = self.exposed.served.url
        with httpx.Client(trust_env=False, timeout=_LONG) as http:
            while True:
                try:
                    answer = http.post(f"{url}/v1/completions", json=body)
                    said = msgspec.json.decode(answer.content, type=_Completion)
                except (httpx.HTTPError, msgspec.MsgspecError) as error:
                    raise Pointless(f"the server is gone, too: {error!r}") from error
                if said.error is None and said.usage is not None:
                    break
                if answer.status_code != 503 or time.monotonic() > deadline:
                    raise Pointless(f"the server does not answer any more: {answer.text[:200]}")
                time.sleep(0.2)  # it boots another machine, and says so
            recalled = http.post(f"{url}/recall", json={"bytes": None, "deadline_ms": 60_000})
            if recalled.is_error:
                raise Pointless(f"the server does not give its memory back: {recalled.text[:200]}")
        return said.choices[0].text, said.usage.prompt_tokens_details.cached_tokens

    async def in_the_midst(self, end: Callable[[Question], None]) -> None:
        """Have `end` end something in the midst of two answers; both must break off with an error."""
        for _ in range(_TRIES):
            server = RemoteServer(self.exposed.served.url)
            async with httpx.AsyncClient(trust_env=False, timeout=_LONG) as http:
                try:
                    if await self._ended(server, http, end):
                        return
                except (FlexServeError, httpx.HTTPError, TimeoutError) as error:
                    raise Pointless(f"the server does not answer, or never ends: {error!r}") from error
                finally:
                    await server.close()
        raise Pointless("no answer is long enough to be ended in its midst")

    async def _ended(
        self, server: RemoteServer, http: httpx.AsyncClient, end: Callable[[Question], None]
    ) -> bool:
        question = await self.exposed.question(server, _MANY)
        body = {"model": MODEL, "prompt": _WORDS, "max_tokens": _MANY, "temperature": 0, "ignore_eos": True}
        asked = http.stream("POST", f"{self.exposed.served.url}/v1/completions", json=body | {"stream": True})
        async with server.sealed(question.exchange.body) as pieces, asked as plain:
            lines = plain.aiter_lines()
            await anext(lines)
            if not await self.exposed.listen(question, pieces):
                return False
            await asyncio.sleep(self.dice.random() * _MOMENT)
            end(question)
            async with asyncio.timeout(_LONG):
                sealed, unsealed = await asyncio.gather(_end_of(question, pieces), _error_of(lines))
        if question.exchange.ended or unsealed is None:
            raise Pointless("an answer was whole before anything was ended")
        if not sealed or not unsealed.message or not unsealed.hint:
            raise Pointless(f"a request ended without a reason: {sealed!r}, {unsealed}")
        return True

    # ---- what is ended, and searched ---------------------------------------------------------------------

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """Have the server stand still inside the block: it starts nothing, and frees nothing."""
        os.kill(self.exposed.served.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.exposed.served.pid, signal.SIGCONT)

    def emulator(self) -> int:
        """Return the process that plays the machine."""
        _, emulators = self.exposed.processes()
        if len(emulators) != 1:
            raise Pointless(f"{len(emulators)} machines run")
        return emulators[0]

    def search(self, question: Question, ram: int, found_in: Search) -> None:
        """Raise Gained for a secret in RAM, as `found_in` looks, in the server's processes, or in a file."""
        pids, _ = self.exposed.processes()
        folder = self.exposed.target.root.parent
        files = [self.exposed.target.root, *(folder / name for name in ("config", "data", "log"))]
        secrets = self.exposed.secrets(question)
        in_clear: Secrets = {"a prompt that was not sealed": [_KEPT[:32].encode()]}
        places = [(name_of(pid), in_process(secrets, pid)) for pid in pids]
        places += [("RAM", found_in(secrets, ram)), ("a file", in_files({**secrets, **in_clear}, files))]
        for name, where in by_secret({**secrets, **in_clear}, places).items():
            if where:
                raise Gained(f"{name}: found in {', '.join(where)}")

    def start_with(self, question: Question, ram: int) -> None:
        """Start a machine with the RAM that one left; nothing may be there when its OS runs."""
        if not anywhere_in_ram({"the weights": [self.exposed.target.canary]}, ram):
            raise Pointless("the weights were not in RAM to begin with")
        secret = self.exposed.target.key.read_bytes()
        with (
            _copy_of(ram) as copy,  # the server's client maps the other one still
            Machine(self.images, ram_bytes=RAM_BYTES, cpus=CPUS, secret=secret, ram=copy),
        ):
            self.search(question, copy, anywhere_in_ram)

    def search_emulator(self, question: Question) -> None:
        """Raise Gained for a secret anywhere in what plays the machine: its secure RAM is there, too.

        Keys of the device are not looked for: the firmware's image has one.
        """
        found = in_process(self.exposed.secrets(question), self.emulator()) - {"a key of the device"}
        if found:
            raise Gained(f"{' and '.join(sorted(found))}: found in the machine, which has ended")

    def go_on(self) -> str:
        """See that it answers, and goes on from what was sealed; that memory is whole; return in words."""
        answer, cached = self.converse()
        if answer != self.kept:
            raise Gained("the conversation goes on with other words")
        if not cached:
            raise Pointless("the conversation is computed anew, though it was sealed")
        deadline = time.monotonic() + _SOON
        while (lost := self._lost()) and time.monotonic() < deadline:
            time.sleep(0.1)
        if lost:
            raise Gained(f"{lost} bytes are neither the kernel's nor the secure world's")
        return f"{cached} tokens of the sealed conversation were not computed again"

    def _lost(self) -> int:
        """Return by how much what the monitor has handed over differs from what the kernel counts."""
        counted = httpx.get(f"{self.exposed.served.url}/models", trust_env=False).content
        handed_over = msgspec.json.decode(counted, type=States).os.secure_rss
        with self.exposed.ram() as ram:
            states = states_of(ram)
        known = {state: states.count(state) for state in abi.PageState}
        if sum(known.values()) != RAM_BYTES // PAGE:
            return RAM_BYTES - sum(known.values()) * PAGE
        gone = (abi.PageState.GRANTED, abi.PageState.SECURE, abi.PageState.RECALLING)
        return abs(sum(known[state] for state in gone) * PAGE - handed_over)


@contextlib.contextmanager
def _copy_of(ram: int) -> Iterator[int]:
    copy = os.memfd_create("copy", os.MFD_CLOEXEC)
    try:
        place, size = 0, os.fstat(ram).st_size
        while place < size:
            place += os.sendfile(copy, ram, place, size - place)
        yield copy
    finally:
        os.close(copy)


async def _end_of(question: Question, pieces: AsyncIterator[bytes]) -> str:
    """Hear a sealed answer to its end; return with what words it broke off, "" if it did not."""
    try:
        async for piece in pieces:
            question.exchange.feed(piece)
        question.exchange.end()
    except FlexServeError as error:
        return str(error)
    return ""


async def _error_of(lines: AsyncIterator[str]) -> _Refusal | None:
    """Read a stream to its end; return the error that it ends with."""
    error = None
    with contextlib.suppress(httpx.HTTPError):
        async for line in lines:
            if line.startswith("data: {"):
                error = msgspec.json.decode(line.removeprefix("data: "), type=_Completion).error or error
    return error


# ---- attacks ---------------------------------------------------------------------------------------------


def kill_the_client(scene: Ended) -> str:
    """Kill the process that drives the application, in the midst of answers."""

    def end(question: Question) -> None:
        with scene.exposed.ram() as ram, scene.still():
            _kill(scene.exposed.program(_CLIENT))
            scene.search(question, ram, in_ram)

    asyncio.run(scene.in_the_midst(end))
    return f"the application waits for messages, in SECURE pages; {scene.go_on()}"


def kill_the_emulator(scene: Ended) -> str:
    """Have the machine lose its power in the midst of answers, and start another one with its RAM."""

    def end(question: Question) -> None:
        with scene.exposed.ram() as ram, scene.still():
            _kill(scene.emulator())
            scene.search(question, ram, in_ram)
            scene.start_with(question, ram)

    asyncio.run(scene.in_the_midst(end))
    return f"EL3 overwrites RAM before the OS runs; {scene.go_on()}"


def reset_by_the_kernel(scene: Ended) -> str:
    """Have the OS reset the machine (SYSTEM_RESET) in the midst of answers."""
    return _ended_by_the_kernel(scene, _RESET)


def switch_off_by_the_kernel(scene: Ended) -> str:
    """Have the OS switch the machine off (SYSTEM_OFF) in the midst of answers."""
    return _ended_by_the_kernel(scene, _OFF)


def press_reset(scene: Ended) -> str:
    """Reset the machine as a watchdog does, which asks nobody; start another one with its RAM."""

    def end(question: Question) -> None:
        with scene.exposed.ram() as ram, scene.still():
            scene.button.press()
            scene.button.await_end()
            scene.button.let_go()
            scene.search(question, ram, in_ram)
            scene.start_with(question, ram)

    asyncio.run(scene.in_the_midst(end))
    return f"EL3 overwrites RAM before the OS runs; {scene.go_on()}"


def answer_in_its_place(scene: Ended) -> str:
    """Write answers into the ring, as the kernel can: to what nobody asked, or answered again, or none."""

    def end(question: Question) -> None:
        client = os.pidfd_open(scene.exposed.program(_CLIENT))
        with scene.exposed.ram() as ram:
            kind = scene.dice.choice(_FORGED)
            deadline = time.monotonic() + _SOON
            while not select.select([client], [], [], 0.001)[0]:
                if time.monotonic() > deadline:
                    raise Gained(f"its client lives with answers that nobody gave ({kind})")
                _forge(ram, HEADER.pack(*kind, *[0] * 5))
            with scene.still():
                scene.search(question, ram, in_ram)
        os.close(client)

    asyncio.run(scene.in_the_midst(end))
    return f"who waits for an answer ends at one that cannot be; {scene.go_on()}"


def _forge(ram: int, answer: bytes) -> None:
    """Put an answer behind those that the application wrote."""
    area = 1 << ((RING_BYTES - PAGE) // 2).bit_length() - 1
    with Ram(ram).window(RING - BASE, RING_BYTES) as ring:
        written = int.from_bytes(ring[_WRITTEN : _WRITTEN + 4], "little")
        for place, byte in enumerate(answer, written):
            ring[PAGE + area + place % area] = byte
        ring[_WRITTEN : _WRITTEN + 4] = ((written + len(answer)) % (1 << 32)).to_bytes(4, "little")


ATTACKS = (
    answer_in_its_place,
    kill_the_client,
    kill_the_emulator,
    reset_by_the_kernel,
    switch_off_by_the_kernel,
    press_reset,
)


def _ended_by_the_kernel(scene: Ended, key: str) -> str:
    def end(question: Question) -> None:
        with scene.exposed.ram() as ram, scene.still():
            with agent_of(scene.exposed.served.pid, scene.emulator()) as agent:
                agent.sendall(f"write /proc/sysrq-trigger {key}\n".encode())
            scene.button.await_end()
            scene.search(question, ram, anywhere_in_ram)
            scene.search_emulator(question)
            scene.button.let_go()

    asyncio.run(scene.in_the_midst(end))
    return f"the secure world ends on all CPUs, and what was SECURE is overwritten, before; {scene.go_on()}"


def _kill(pid: int) -> None:
    process = os.pidfd_open(pid)
    signal.pidfd_send_signal(process, signal.SIGKILL)
    ended, _, _ = select.select([process], [], [], _SOON)
    os.close(process)
    if not ended:
        raise Pointless("it does not end")
