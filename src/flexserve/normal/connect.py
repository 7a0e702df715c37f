"""`flexserve connect`: the APIs on this machine, answered by a secure world elsewhere that was verified.

Requests leave this machine sealed to that secure world, and nothing leaves it before the verification.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from flexserve.attestation.described import described
from flexserve.attestation.policy import Policy
from flexserve.attestation.verification import Verified, verify
from flexserve.errors import CallerError
from flexserve.normal import journal
from flexserve.normal.api import verification
from flexserve.normal.api.admission import Admission
from flexserve.normal.api.app import FOR_MODELS, create_app
from flexserve.normal.api.keys import Key, Keys
from flexserve.normal.known_roots import KnownRoots
from flexserve.normal.main import address_of, http_server, stop_on_signals, tcp_socket
from flexserve.normal.receipts import Receipts
from flexserve.normal.remote_server import RemoteServer
from flexserve.normal.remote_world import Evidence, RemoteWorld, Rendering, Trust
from flexserve.platforms.ports import Protection
from flexserve.protocol.rendered import cannot_seal

PORT = 7078
INSIDE = "application"  # the last layer of a secure world inside the machine, which renders no prompts


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectOptions:
    """What to connect to, and where to serve it. `policy`: what a good secure world is."""

    url: str
    known_roots: Path  # file of the roots that were pinned at first use
    policy: Policy = dataclasses.field(default_factory=Policy)
    key: str = dataclasses.field(default="", repr=False)  # that the server wants
    host: str = "127.0.0.1"
    port: int = PORT  # 0: any free one, told in the banner
    api_keys: Sequence[Key] = ()  # that clients of this machine send
    receipts: Path | None = None  # folder to keep them in
    rounding: int = 1  # tokens: the secure world computes answers to a multiple of them
    rendering: Callable[[], Rendering] | None = (
        None  # makes what renders prompts, if the secure world does not
    )
    drain_seconds: float = 10.0
    log_level: str = "info"


class Verifier:
    """Verifies the secure world behind `url` by a policy. See remote_world.Verify.

    Where the policy names no root, the first one that this address shows is pinned in `roots`.
    """

    def __init__(self, url: str, policy: Policy, roots: KnownRoots) -> None:
        self._url, self._policy, self._roots = url, policy, roots

    def __call__(self, chain: list[bytes], token: bytes, nonce: bytes) -> Trust:
        """Return whom `chain` and `token` prove. Raises AttestationRefusedError, which names the field."""
        verified = verify(chain, token, nonce, self._policy)
        if not self._policy.roots:
            self._roots.require(self._url, verified.root)
        return Trust(
            public=verified.sealing.public,
            token_hash=hashlib.sha256(token).digest(),
            ends=verified.sealing.end * 1000,
            engine=f"FlexServe {verified.version}",
            protection=_protection(verified),
            shown={
                "verified": True,
                "token_sha256": hashlib.sha256(token).hexdigest(),
                **described(verified),
            },
            evidence=Evidence(chain, token, nonce.hex()),
            renders=verified.layers[-1].name != INSIDE,
        )


def connect(options: ConnectOptions) -> int:
    """Serve until told to stop; return the exit status: 0 after draining.

    Raises CallerError for an address that cannot be bound or is none, PeerError when the server cannot be
    asked, AttestationRefusedError when its secure world is not what the policy calls good.
    """
    journal.configure(level=options.log_level)
    _check_url(options.url)
    try:
        return asyncio.run(_connect(options))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


async def _connect(options: ConnectOptions) -> int:
    receipts = Receipts(options.receipts)
    world = RemoteWorld(
        RemoteServer(options.url, options.key),
        Verifier(options.url, options.policy, KnownRoots(options.known_roots)),
        receipts.keep,
        rounding=options.rounding,
        rendering=options.rendering,
    )
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(world.close)
        trust = await world.trust()
        if not trust.renders and options.rounding != 1:
            raise cannot_seal("round the length of an answer")
        sock = stack.enter_context(tcp_socket(options.host, options.port))
        app = create_app(world, Admission(keys=Keys(options.api_keys)), facades=(*FOR_MODELS, verification))
        app.state.receipts = receipts
        closing = stop_on_signals(lambda: None)
        server = http_server(app, closing, options.drain_seconds)
        _show_banner(options, trust, address_of(sock))
        await server.serve(sockets=[sock])
    return 0


def _show_banner(options: ConnectOptions, trust: Trust, address: str) -> None:
    lines = [
        f"FlexServe listens on {address}",
        f"protection: {trust.protection.name}: {trust.protection.summary}",
        f"verified: the secure world behind {options.url}, and requests are sealed to it",
    ]
    unchecked = trust.shown["unchecked"]
    if unchecked:
        lines.append(f"not checked, since the policy does not name it: {', '.join(unchecked)}")
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.path in ("", "/")
    except ValueError:
        good = False
    if not good:
        raise CallerError(
            f"{url} is not the address of a server.", hint="Give it as in http://server.example:7077."
        )


def _protection(verified: Verified) -> Protection:
    said = verified.platform
    return Protection(
        said.get("memory", "unknown"), said.get("protected") == "yes", said.get("label", "It says nothing.")
    )
