"""An engine that really hangs: it is seen, its request fails, it is started again, and others go on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import httpx
import pytest
from conversations import MODEL
from library import Library, has_secret_memory

from flexserve.normal.api.app import create_app
from flexserve.normal.world import running_world
from flexserve.protocol.launch import SecureOptions
from flexserve.testing import hanging_engine

pytestmark = pytest.mark.engine


@contextlib.asynccontextmanager
async def server(store: Path, key: Path) -> AsyncIterator[httpx.AsyncClient]:
    memory: Literal["secret", "plain"] = "secret" if has_secret_memory() else "plain"
    options = SecureOptions(store, key, memory=memory, threads=1, context=256, step_seconds=2)
    async with running_world(options, drain=0, program=hanging_engine.__name__) as world:
        transport = httpx.ASGITransport(create_app(world))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=120) as client:
            yield client


async def ask(client: httpx.AsyncClient, model: str) -> httpx.Response:
    body = {"model": model, "prompt": "Once", "max_tokens": 3, "temperature": 0}
    return await client.post("/v1/completions", json=body)


async def hang(store: Path, key: Path) -> tuple[str, list[httpx.Response]]:
    """Return what /health said while the engine hung, and the answers before, of it, and after."""
    async with server(store, key) as client:
        answers = [await ask(client, "sound")]
        hanging = asyncio.create_task(ask(client, "hangs"))
        while (health := await client.get("/health")).status_code == 200:
            await asyncio.sleep(0.02)
        answers.append(await hanging)
        while (await client.get("/health")).status_code != 200:
            await asyncio.sleep(0.05)
        answers += [await ask(client, "sound"), await ask(client, "hangs")]
    return health.json()["error"]["code"], answers


def test_it_is_seen_and_started_again_and_other_models_go_on(own_library: Library) -> None:
    own_library.add(MODEL, "sound")
    own_library.add(own_library.file("small-phi3", "q4_0"), "hangs")
    seen, (before, failed, after, refused) = asyncio.run(hang(own_library.root, own_library.key))
    assert seen == "engine_still"
    assert failed.status_code == 503
    assert (before.status_code, after.status_code) == (200, 200)
    assert before.json()["choices"] == after.json()["choices"]
    assert refused.json()["error"]["code"] == "model_set_aside"
