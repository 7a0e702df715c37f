"""A server as people start it, asked by a sealed request, and all that its host has of it, searched.

The machine is stopped in the midst of an answer. Then the memory of all processes of the server is searched,
and the guest's RAM but what is SECURE, the store, and what passed on the wire. The emulator alone is left
out: it plays the machine, and has what the machine has.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import os
import re
import secrets
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from flexserve.attacks.attempt import Gained, Pointless
from flexserve.attacks.target import MODEL, Target
from flexserve.attacks.trustzone.inside.dump import by_secret, in_files, in_process, in_ram
from flexserve.attestation.policy import Policy
from flexserve.attestation.verification import verify
from flexserve.errors import FlexServeError, PeerError
from flexserve.harness.served import Served, own_environment
from flexserve.normal.remote_server import RemoteServer
from flexserve.protocol.answers import Delta, Failed
from flexserve.protocol.failures import revive
from flexserve.protocol.framing import encode
from flexserve.protocol.prompts import TextPrompt
from flexserve.protocol.rendered import Rendered
from flexserve.protocol.requests import Generate
from flexserve.protocol.sampling import Sampling
from flexserve.protocol.sealed_exchange import Exchange, sealed_secret
from flexserve.tee_client.sampling import settings
from flexserve.trusted.store.container import read_manifest
from flexserve.trusted.store.keys import DeviceKey

SecureWorld = Literal["host", "inside"]
_TOKENS, _ENOUGH = 64, 16  # said; and bytes of an answer to know it by
_LONG = Sampling(temperature=1, ignore_eos=True)
_TRIES = 8  # to get one that is so long
_EMULATOR = "qemu-system"  # begins the name of its process
_RAM = "/memfd:ram "


@dataclasses.dataclass(slots=True)
class Question:
    """What a client asked, and heard so far. `wire`: what it sent and got."""

    words: str
    exchange: Exchange
    secret: bytes  # of its answer
    wire: bytearray
    heard: list[Delta] = dataclasses.field(default_factory=list)

    @property
    def answer(self) -> list[bytes]:
        """What the answer is in memory: its text, or a message that says a part of it."""
        longest = max(self.heard, key=lambda delta: len(delta.text), default=Delta(0, "", 0))
        text = "".join(delta.text for delta in self.heard).encode()
        return [text[:_ENOUGH], encode(longest)]


@dataclasses.dataclass(slots=True)
class Exposed:
    """A running server, and the target that it serves."""

    target: Target
    served: Served
    secure_world: SecureWorld

    @classmethod
    @contextlib.contextmanager
    def set(
        cls, folder: Path, secure_world: SecureWorld, *, programs: Path | None = None
    ) -> Iterator[Exposed]:
        """Seal a model with a canary into `folder`, and serve it on a machine that boots for that.

        `programs`: a folder whose programs are found before all others.
        """
        target = Target.make(folder)
        words = ["--models", str(target.root), "--device-key", str(target.key), "--platform", "trustzone"]
        words += ["--secure-world", secure_world, "--guest-memory", "512M", "--no-npu"]
        words += ["--threads", "1", "--context", "512", "--log-level", "error"]
        environment = own_environment(folder)
        if programs is not None:
            environment["PATH"] = f"{programs}:{environment['PATH']}"
        with Served(environment, folder / "log", words) as served:
            yield cls(target, served, secure_world)

    def processes(self) -> tuple[list[int], list[int]]:
        """Return the server's processes but the emulator, and that."""
        parents, names = dict[int, int](), dict[int, str]()
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
                pid = int(stat.parent.name)
                parents[pid], names[pid] = int(rest.split()[1]), name
        found = {self.served.pid}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        emulators = sorted(pid for pid in found if names.get(pid, "").startswith(_EMULATOR))
        return sorted(found.difference(emulators)), emulators

    def program(self, name: str) -> int:
        """Return the process of the server that runs a module of this name. Raises Pointless without one."""
        for pid in self.processes()[0]:
            if name_of(pid) == name:
                return pid
        raise Pointless(f"the server has no {name}")

    @contextlib.contextmanager
    def ram(self) -> Iterator[int]:
        """Open the machine's RAM for the length of the block."""
        for link in Path(f"/proc/{self.served.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(link).startswith(_RAM):
                    descriptor = os.open(link, os.O_RDWR)
                    try:
                        yield descriptor
                    finally:
                        os.close(descriptor)
                    return
        raise Pointless("the machine's RAM is not found")

    @contextlib.contextmanager
    def stopped(self) -> Iterator[list[int]]:
        """Have the machine and who relays stand still inside the block; return the processes to search."""
        searched, emulators = self.processes()
        for pid in (self.served.pid, *emulators):
            os.kill(pid, signal.SIGSTOP)
        try:
            yield searched
        finally:
            for pid in (*emulators, self.served.pid):
                os.kill(pid, signal.SIGCONT)

    def found(self) -> dict[str, list[str]]:
        """Ask, and stop it in the midst of the answer; return where each secret was found."""
        return asyncio.run(self._found())

    async def _found(self) -> dict[str, list[str]]:
        server = RemoteServer(self.served.url)
        try:
            for _ in range(_TRIES):
                question = await self.question(server)
                async with server.sealed(question.exchange.body) as pieces:
                    if not await self.listen(question, pieces):
                        continue
                    with self.stopped() as pids:
                        found = self._searched(question, pids)
                    with contextlib.suppress(PeerError):  # it stood still for longer than others wait for it
                        async for piece in pieces:
                            question.wire += piece
                            question.exchange.feed(piece)
                break
            else:
                raise Pointless("no answer is long enough to be known by")
        except FlexServeError as error:
            raise Pointless(f"the server did not answer: {error}") from error
        finally:
            await server.close()
        for name, secret in self.secrets(question).items():
            if any(each in question.wire for each in secret):
                found[name].append("the wire")
        return found

    async def question(self, server: RemoteServer, most: int = _TOKENS) -> Question:
        """Make a sealed request for so many tokens, to who was verified just now."""
        nonce, words = secrets.token_bytes(32), f"Kanarivogel schweigt {secrets.token_hex(16)}"
        said = await server.attestation(nonce)
        public = verify(said.chain, said.token, nonce, Policy(emulated="allow")).sealing.public
        asked: Rendered | Generate = Rendered(MODEL, (words,), settings(_LONG, lambda _text: ()), most)
        if self.secure_world == "host":
            asked = Generate(0, MODEL, TextPrompt(words), msgspec.structs.replace(_LONG, max_tokens=most))
        hashed, moment = hashlib.sha256(said.token).digest(), int(1000 * time.time())
        made = sealed_secret(MODEL, public, hashed)
        exchange = Exchange(asked, secrets.token_bytes(32), public, hashed, moment, secret=made)
        wire = bytearray(b"".join(said.chain) + said.token + exchange.body)
        return Question(words, exchange, made.secret, wire)

    @staticmethod
    async def listen(question: Question, pieces: AsyncIterator[bytes]) -> bool:
        """Hear enough of an answer to know it by; return whether it can be known by that."""
        async for piece in pieces:
            question.wire += piece
            for message in question.exchange.feed(piece):
                if isinstance(message, Failed):
                    raise revive(message.failure)
                if isinstance(message, Delta):
                    question.heard.append(message)
            text = question.answer[0]
            if len(text) == _ENOUGH:
                return len(set(text)) > _ENOUGH // 3 and text.isascii()
        return False

    def secrets(self, question: Question) -> dict[str, list[bytes]]:
        """Return what must be found nowhere, each as one or more texts."""
        key = DeviceKey.load(self.target.key)
        manifest = read_manifest(self.target.root / f"models/{MODEL}.flex", key)
        content_key = key.unwrap(manifest.id_bytes, bytes.fromhex(manifest.wrapped_key))
        return {
            "the weights": [self.target.canary],
            "the prompt": [question.words.encode()],
            "the answer": question.answer,
            "a key of the device": self.target.secrets(),
            "the key of the model": [content_key],
            "a secret of the request": [question.exchange.next, question.secret],
        }

    def _searched(self, question: Question, pids: list[int]) -> dict[str, list[str]]:
        secrets = self.secrets(question)
        with self.ram() as ram:
            places = [(name_of(pid), in_process(secrets, pid)) for pid in pids]
            places += [("RAM", in_ram(secrets, ram)), ("storage", in_files(secrets, [self.target.root]))]
        return by_secret(secrets, places)


def dump_a_server(scene: Exposed) -> str:
    """Stop a server in the midst of a sealed answer, and search all that its host has of it, and the wire."""
    found = scene.found()
    seen = {name: places for name, places in found.items() if places}
    if seen:
        raise Gained("; ".join(f"{name}: {', '.join(places)}" for name, places in seen.items()))
    return f"no trace of {', '.join(found)}, but inside the machine"


def name_of(pid: int) -> str:
    """Return what a process is, for people: the module that it runs."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    found = re.findall(r"flexserve\.([a-z_.]+)", words)
    return found[-1] if found else str(pid)
