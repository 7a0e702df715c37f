"""What is told of models, and requests that name none."""

from __future__ import annotations

import httpx
import pytest

pytestmark = pytest.mark.anyio


async def test_a_card_says_what_a_model_can_do_and_how_much_it_takes_in(client: httpx.AsyncClient) -> None:
    body = (await client.get("/v1/models")).json()
    assert body["object"] == "list"
    card = next(card for card in body["data"] if card["id"] == "tiny")
    assert (card["object"], card["type"], card["owned_by"]) == ("model", "model", "flexserve")
    assert (card["context_length"], card["created"]) == (4096, 1_700_000_000)
    assert card["capabilities"] == ["completion", "tools", "embedding", "rerank"]
    assert card["created_at"] == "2023-11-14T22:13:20Z"
    assert body["has_more"] is False
    assert body["first_id"] == body["data"][0]["id"]


async def test_a_request_that_names_no_model_of_several_is_told_to(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/completions", json={"prompt": "Hi"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "model_not_named")
    assert "/v1/models" in response.json()["error"]["message"]
