"""The secure world behind a relay: verified before anything is sent, and not fooled by the relay."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import msgspec
import pytest

from flexserve.attestation.kept_receipt import KeptReceipt, verify_receipt
from flexserve.attestation.policy import Policy
from flexserve.attestation.verification import AttestationRefusedError
from flexserve.errors import CallerError, FlexServeError, PeerError, UnknownModelError
from flexserve.normal import remote_world
from flexserve.normal.api import verification
from flexserve.normal.api.app import FOR_MODELS, create_app
from flexserve.normal.connect import Verifier
from flexserve.normal.known_roots import KnownRoots
from flexserve.normal.receipts import Receipts
from flexserve.normal.remote_server import Attestation, RemoteServer
from flexserve.normal.remote_world import RemoteWorld
from flexserve.normal.world import World
from flexserve.protocol.answers import Delta
from flexserve.protocol.prompts import TextPrompt
from flexserve.protocol.requests import Generate
from flexserve.protocol.sampling import Sampling
from flexserve.protocol.sealed_messages import Sealed, SealedPart
from flexserve.protocol.sealed_request import CONTINUED, MAGIC, SEALED_SECRET, header_of
from flexserve.testing.scripted_link import ScriptedLink

pytestmark = pytest.mark.anyio
ALLOWED = Policy(emulated="allow")
QUESTION = {"model": "tiny", "messages": [{"role": "user", "content": "Who reads this?"}]}


class Relay(RemoteServer):
    """A relay in this event loop. `change` is what it does to the pieces of an answer."""

    def __init__(self, world: World) -> None:
        super().__init__("http://relay.example")
        self._world = world
        self.change: Callable[[list[bytes]], list[bytes]] = lambda pieces: pieces
        self.bodies: list[bytes] = []
        self.asked = 0
        self.refuses = 0  # so many requests, as one whose key is gone
        self.silent = False

    async def attestation(self, nonce: bytes) -> Attestation:
        self.asked += 1
        said = await self._world.attest(nonce)
        return Attestation(said.chain, said.token)

    async def check(self) -> None:
        if self.silent:
            raise PeerError("No server answers.", code="server_unreachable")

    @contextlib.asynccontextmanager
    async def sealed(self, body: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
        self.bodies.append(body)
        if self.refuses:
            self.refuses -= 1
            raise CallerError("refused", code="sealed_refused")
        answer = await self._world.sealed(header_of(body).model, body)
        async with answer:
            yield self._pieces([part.data async for part in answer if isinstance(part, SealedPart)])

    async def _pieces(self, pieces: list[bytes]) -> AsyncIterator[bytes]:
        nonce, rest = pieces[0], b"".join(pieces[1:])
        for piece in self.change([nonce, *(rest[at : at + 1024] for at in range(0, len(rest), 1024))]):
            yield piece


@pytest.fixture
def relay(world: World) -> Relay:
    return Relay(world)


@pytest.fixture
async def remote(relay: Relay, tmp_path: Path) -> AsyncIterator[RemoteWorld]:
    verify = Verifier("relay", ALLOWED, KnownRoots(tmp_path / "roots"))
    receipts = Receipts(tmp_path)
    world = RemoteWorld(relay, verify, receipts.keep)
    world.kept = receipts  # type: ignore[attr-defined]
    yield world
    await world.close()


@pytest.fixture
async def connected(remote: RemoteWorld) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(remote, facades=(*FOR_MODELS, verification))
    app.state.receipts = remote.kept  # type: ignore[attr-defined]
    await remote.trust()
    transport = httpx.ASGITransport(app, raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield client


async def said(remote: RemoteWorld, text: str = "x", model: str = "tiny") -> str:
    async with await remote.generate(model, TextPrompt(text), Sampling()) as answer:
        return "".join([message.text async for message in answer if isinstance(message, Delta)])


async def test_the_apis_answer_as_they_do_without_a_seal(
    connected: httpx.AsyncClient, client: httpx.AsyncClient
):
    for path, body in {
        "/v1/chat/completions": QUESTION,
        "/v1/completions": {"model": "tiny", "prompt": "x", "logprobs": 2},
        "/v1/embeddings": {"model": "tiny", "input": ["one", "two"]},
        "/v1/messages": {**QUESTION, "max_tokens": 9},
        "/v1/messages/count_tokens": QUESTION,
        "/tokenize": {"model": "tiny", "content": "abc"},
        "/api/chat": {**QUESTION, "stream": False},
    }.items():
        sealed, openly = await connected.post(path, json=body), await client.post(path, json=body)
        assert (sealed.status_code, sealed.json().keys()) == (200, openly.json().keys()), path
    assert (await connected.get("/v1/models")).json() == (await client.get("/v1/models")).json()


async def test_the_relay_gets_no_word_of_it(connected: httpx.AsyncClient, relay: Relay, link: ScriptedLink):
    answer = await connected.post("/v1/chat/completions", json=QUESTION)
    assert answer.json()["choices"][0]["message"]["content"] == "Hello, world!"
    assert b"Who reads this?" not in b"".join(relay.bodies)
    assert not any(isinstance(message, Generate) for message in link.scripted.received)
    assert any(isinstance(message, Sealed) for message in link.scripted.received)


async def test_nothing_is_sent_to_a_world_that_the_policy_refuses(relay: Relay, tmp_path: Path):
    remote = RemoteWorld(
        relay, Verifier("relay", Policy(), KnownRoots(tmp_path / "roots")), Receipts(None).keep
    )
    with pytest.raises(AttestationRefusedError, match="debug status"):
        await said(remote)
    assert relay.bodies == []


async def test_another_root_than_at_first_is_refused(remote: RemoteWorld, relay: Relay, tmp_path: Path):
    (tmp_path / "roots").write_text(f"relay {'00' * 32}\n")
    with pytest.raises(AttestationRefusedError, match="root"):
        await said(remote)
    assert relay.bodies == []


async def test_a_world_is_verified_once_and_again_when_its_key_is_gone(remote: RemoteWorld, relay: Relay):
    assert [await said(remote), await said(remote)] == ["Hello, world!"] * 2
    assert relay.asked == 1
    relay.refuses = 1
    assert await said(remote) == "Hello, world!"
    assert relay.asked == 2
    relay.refuses = 2
    with pytest.raises(CallerError):
        await said(remote)


async def test_no_two_requests_share_a_secret_whatever_was_prepared_for_them(
    remote: RemoteWorld, relay: Relay
):
    for _ in range(3):
        await said(remote)
        await asyncio.sleep(0)
    await asyncio.gather(said(remote), said(remote))
    secrets = {body[: len(header_of(body).encoded()) + SEALED_SECRET] for body in relay.bodies}
    assert len(secrets) == len(relay.bodies) == 5
    forms = [header_of(body).magic for body in relay.bodies]
    assert forms == [MAGIC, CONTINUED, CONTINUED, CONTINUED, MAGIC], "one secret is known, two ask at once"


async def test_what_was_prepared_for_an_earlier_key_is_not_used(remote: RemoteWorld, relay: Relay):
    await said(remote)
    relay.refuses = 1
    assert await said(remote) == "Hello, world!"
    assert [header_of(body).magic for body in relay.bodies] == [MAGIC, CONTINUED, MAGIC]


async def test_a_secret_that_the_world_may_have_forgotten_is_not_named(
    remote: RemoteWorld, relay: Relay, monkeypatch: pytest.MonkeyPatch
):
    await said(remote)
    now = remote_world._now()
    monkeypatch.setattr(remote_world, "_now", lambda: now + 240_001)
    await said(remote)
    assert [header_of(body).magic for body in relay.bodies] == [MAGIC, MAGIC]


CHANGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "cut off": lambda pieces: pieces[:-1],
    "empty": lambda _: [],
    "reordered": lambda pieces: [pieces[0], *reversed(pieces[1:])],
    "repeated": lambda pieces: [*pieces[:2], *pieces[1:]],
    "changed": lambda pieces: [pieces[0], bytes(len(pieces[1])), *pieces[2:]],
    "continued": lambda pieces: [*pieces, pieces[-1]],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
async def test_an_answer_that_the_relay_changed_is_an_error(
    remote: RemoteWorld, relay: Relay, change: Callable[[list[bytes]], list[bytes]]
):
    await remote.trust()
    relay.change = change
    with pytest.raises(PeerError) as caught:
        await said(remote)
    assert caught.value.code in {"answer_cut_off", "answer_forged"}


async def test_errors_of_the_secure_world_keep_their_type(remote: RemoteWorld):
    with pytest.raises(UnknownModelError):
        await said(remote, model="nowhere")
    with pytest.raises(FlexServeError) as caught:
        await said(remote, model="forged")
    assert caught.value.code == "stored_data_bad"


async def test_a_request_out_of_bounds_is_refused_before_it_is_sealed(remote: RemoteWorld, relay: Relay):
    with pytest.raises(CallerError, match="out of bounds"):
        await said(remote, text="x" * ((1 << 20) + 1))
    assert relay.bodies == []


async def test_each_answer_has_a_receipt_that_can_be_verified(connected: httpx.AsyncClient, tmp_path: Path):
    body = {**QUESTION, "n": 2}
    answer = await connected.post("/v1/chat/completions", json=body)
    name = answer.headers["x-request-id"]
    kept = (await connected.get(f"/receipts/{name}")).json()["data"]
    assert len(kept) == 2
    files = sorted(tmp_path.glob("*.receipt"))
    assert [file.name for file in files] == [f"{name}-2.receipt", f"{name}.receipt"]
    receipt, _ = verify_receipt(msgspec.json.decode(files[1].read_bytes(), type=KeptReceipt), ALLOWED)
    assert (receipt.model, receipt.answer_tokens) == ("tiny", 4)


async def test_what_was_verified_is_shown(connected: httpx.AsyncClient):
    shown = (await connected.get("/verification")).json()
    assert (shown["verified"], shown["hardware"]) == (True, "script")
    assert (await connected.get("/health")).json()["status"] == "ok"
    assert (await connected.get("/receipts/req-unknown")).json()["error"]["code"] == "receipt_not_found"


async def test_it_is_well_only_while_the_server_is(connected: httpx.AsyncClient, relay: Relay):
    assert (await connected.get("/health")).json()["status"] == "ok"
    relay.silent = True
    refused = await connected.get("/health")
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "server_unreachable"


async def test_a_client_that_goes_away_ends_its_request(remote: RemoteWorld, relay: Relay):
    answer = await remote.generate("tiny", TextPrompt("x"), Sampling())
    answer.abandon()
    await asyncio.sleep(0)
    assert await said(remote) == "Hello, world!"
