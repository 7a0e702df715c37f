"""Secure worlds that serve nobody: for the first try of a model, and to say who this device is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from flexserve.errors import CallerError, FlexServeError, PeerError, StoredDataError

if TYPE_CHECKING:
    from flexserve.protocol.evidence import Attested
    from flexserve.protocol.launch import SecureOptions
    from flexserve.settings import Settings
    from flexserve.trusted.store import Store

_PATIENCE = 60.0  # seconds, and as many more as a slow disk takes to read the model twice
_SLOW_DISK = 50 << 20  # bytes a second
_LAST_WORDS = 30  # tenths of a second
_CONTEXT = 64  # tokens: enough for a try


def try_model(settings: Settings, store: Store, name: str) -> str:
    """Open model `name` and compute once with it; return why that could not be tried ("": it was).

    What the model can do is in the store's record of it then. Raises CallerError (code "model_unusable")
    for a model that a secure world dies of, hangs with, or can do nothing with.
    """
    manifest = store.manifest(name)
    options = msgspec.structs.replace(settings.secure_options(), context=_CONTEXT, parallel=1)
    before = store.derived.record(manifest)
    try:
        death = asyncio.run(_try(options, name, _PATIENCE + 2 * manifest.size / _SLOW_DISK))
    except (StoredDataError, CallerError) as error:
        if manifest.vendor is not None and error.code != "model_unusable":
            raise  # of the licence, mostly, and not of what is licensed
        raise _unusable(name, error.message, error.hint) from None
    except TimeoutError:
        raise _unusable(name, "it did not end in time") from None
    except FlexServeError as error:
        return str(error)
    if death is None:
        return ""
    # It died. What it had found out before that holds: it makes text, and dies of making vectors.
    record = store.derived.record(manifest)
    if record is None or record == before or not record.abilities.text:
        raise _unusable(name, death.message)
    return ""


def attest(settings: Settings, nonce: bytes) -> Attested:
    """Return who a secure world of this device is, started for the question. Raises what keeps it from it."""
    return asyncio.run(_attest(settings.secure_options(), nonce))


async def _attest(options: SecureOptions, nonce: bytes) -> Attested:
    from flexserve.normal.world import running_world

    async with running_world(options, drain=0) as world, asyncio.timeout(_PATIENCE):
        return await world.attest(nonce)


async def _try(options: SecureOptions, name: str, patience: float) -> PeerError | None:
    """Try in a secure world; return how that died, or None. Raises what kept it from being tried."""
    from flexserve.normal.world import running_world

    async with running_world(options, drain=0) as world:
        try:
            async with asyncio.timeout(patience):
                await world.try_model(name)
        except PeerError as error:
            for _ in range(_LAST_WORDS):  # until it is known what the process died of
                if world.failure is not None:
                    break
                await asyncio.sleep(0.1)
            return world.failure if isinstance(world.failure, PeerError) else error
    return None


def _unusable(name: str, why: str, hint: str = "") -> CallerError:
    return CallerError(
        f"llama.cpp cannot run {name}: {why.rstrip('.')}.",
        hint=hint or "Convert the model again, with a version of llama.cpp that knows it.",
        code="model_unusable",
    )
