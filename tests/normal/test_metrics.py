"""GET /metrics: true, bounded, and harmless."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from flexserve import __version__
from flexserve.normal.world import World
from flexserve.protocol.memory import Recall
from flexserve.protocol.messages import Query
from flexserve.protocol.requests import Generate, Warm
from flexserve.testing.scripted_link import ScriptedLink
from flexserve.testing.scripted_world import COMPUTED

pytestmark = pytest.mark.anyio
PROMPT = [{"role": "user", "content": "a very secret prompt"}]


async def samples(client: httpx.AsyncClient) -> dict[tuple[str, str], float]:
    """Return the values by name and model ("" where there is none)."""
    response = await client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, sample.labels.get("model_name", "")): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
        if "le" not in sample.labels
    }


async def chat(client: httpx.AsyncClient, model: str = "tiny") -> int:
    body = {"model": model, "messages": PROMPT}
    return (await client.post("/v1/chat/completions", json=body)).status_code


async def test_what_requests_did_is_summed_up(client: httpx.AsyncClient) -> None:
    for _ in range(3):
        assert await chat(client) == 200
    found = await samples(client)
    for name, value in {
        "prompt_tokens_total": 21,
        "prompt_tokens_cached_total": 9,
        "generation_tokens_total": 12,
        "time_to_first_token_seconds_count": 3,
        "inter_token_latency_seconds_count": 9,
        "e2e_request_latency_seconds_count": 3,
        "request_queue_time_seconds_count": 3,
        "requests_total": 3,
        "num_requests_running": 0,
        "num_requests_waiting": 0,
        "weights_resident_bytes": 250,
        "weights_bytes": 1000,
    }.items():
        assert found[f"flexserve_{name}", "tiny"] == value, name
    assert found["flexserve_secure_world_up", ""] == 1
    assert found["flexserve_secure_restarts_total", ""] == 0
    assert found["flexserve_kv_sequences_total", ""] == 0
    assert found["flexserve_budget_bytes", ""] > 0


async def test_they_say_what_serves_and_what_its_processes_take(client: httpx.AsyncClient) -> None:
    text = (await client.get("/metrics")).text
    assert 'flexserve_build_info{engine="' in text
    assert f'version="{__version__}"}} 1.0' in text
    found = {name: value for (name, _), value in (await samples(client)).items()}
    for prefix in ("", "flexserve_secure_"):
        assert found[f"{prefix}process_resident_memory_bytes"] > 0
        assert found[f"{prefix}process_cpu_seconds_total"] > 0


async def test_they_have_llama_servers_names_too(client: httpx.AsyncClient) -> None:
    for _ in range(3):
        assert await chat(client) == 200
    found = {name: value for (name, _), value in (await samples(client)).items()}
    for name, value in {
        "prompt_tokens_total": 12,
        "prompt_tokens_cached_total": 9,
        "tokens_predicted_total": 12,
        "prompt_seconds_total": 3 * 0.0025,
        "predicted_tokens_seconds": 12 / (3 * 0.0035),
        "n_decode_total": COMPUTED.graphs,
        "n_busy_slots_per_decode": COMPUTED.requests / COMPUTED.graphs,
        "spec_decode_num_drafts_total": COMPUTED.checks,
        "requests_processing": 0,
        "requests_deferred": 0,
    }.items():
        assert found[f"llamacpp:{name}"] == pytest.approx(value), name
    response = await client.get("/metrics")
    assert int(response.headers["Process-Start-Time-Unix"]) > 0
    assert "# TYPE llamacpp:n_tokens_max counter\nllamacpp:n_tokens_max 11\n" in response.text
    assert "llamacpp:predicted_tokens_seconds 0.0\n" in response.text, "nothing since it was read last"


async def test_recalls_are_summed_up(client: httpx.AsyncClient) -> None:
    await client.post("/recall", json={})
    assert (await samples(client))["flexserve_recall_seconds_count", ""] == 1


async def test_clients_cannot_make_labels_up_nor_read_prompts_there(client: httpx.AsyncClient) -> None:
    assert await chat(client, "no-such-model") == 404
    assert await chat(client) == 200
    text = (await client.get("/metrics")).text
    assert "no-such-model" not in text
    assert "secret" not in text.replace("memfd_secret", "")


async def test_requests_in_flight_are_counted_until_they_end(client: httpx.AsyncClient, world: World) -> None:
    record = world.metrics.follow("tiny")
    assert (await samples(client))["flexserve_num_requests_waiting", "tiny"] == 1
    record.lost()
    record.lost()
    assert (await samples(client))["flexserve_num_requests_waiting", "tiny"] == 0
    for _ in range(50):
        world.metrics.follow("invented").lost()
    assert not world.metrics.waiting


async def test_a_model_that_left_the_store_is_no_label_any_more(
    client: httpx.AsyncClient, world: World
) -> None:
    assert await chat(client) == 200
    world.metrics.forget({"other"})
    assert ("flexserve_prompt_tokens_total", "tiny") not in await samples(client)


async def test_looking_wakes_no_model(client: httpx.AsyncClient, link: ScriptedLink) -> None:
    for path in ("/health", "/metrics", "/models", "/v1/models"):
        assert (await client.get(path)).status_code == 200
    asked = link.scripted.every(Generate | Warm | Recall)
    assert not asked
    assert link.scripted.every(Query)
