"""How single models are served: chosen by a person, kept in a file, told to every secure world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexserve.errors import CallerError, NormalWorldError
from flexserve.normal.model_options import ModelChoices, parse_context
from flexserve.normal.world import supervised
from flexserve.protocol.messages import Configure
from flexserve.protocol.model_options import MAX_CONTEXT, ModelOptions
from flexserve.testing import scripted_world
from flexserve.testing.scripted_link import AdjustableMemory, ScriptedLink

ROUTE = "/models/tiny/options"


def told(link: ScriptedLink) -> list[dict[str, ModelOptions]]:
    """Return what the secure world was told of how to serve models."""
    return [message.models for message in link.scripted.received if isinstance(message, Configure)]


@pytest.mark.parametrize(
    ("text", "tokens"), [("32k", 32768), ("32K", 32768), ("32768", 32768), ("1024k", 1 << 20)]
)
def test_a_context_is_written_as_people_write_it(text: str, tokens: int) -> None:
    assert parse_context(text) == tokens
    assert parse_context("model") == "model"


@pytest.mark.parametrize("text", ["", "0", "-1", "32m", "1025k", "much", "3.5k", "9" * 99])
def test_what_is_no_context_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="32k"):
        parse_context(text)


def test_options_are_read_back_and_set_back(tmp_path: Path) -> None:
    path = tmp_path / "config" / "models.json"
    assert ModelChoices(path).of("a") == ModelOptions()
    ModelChoices(path).replace("a", ModelOptions("model", "q8_0"), trained=8192)
    assert ModelChoices(path).all == {"a": ModelOptions("model", "q8_0")}
    ModelChoices(path).replace("a", ModelOptions(), trained=8192)
    assert ModelChoices(path).all == {}


def test_a_context_beyond_the_trained_one_changes_nothing(tmp_path: Path) -> None:
    choices = ModelChoices(tmp_path / "models.json")
    choices.replace("a", ModelOptions(context=8192), trained=8192)
    with pytest.raises(CallerError, match="trained for 8192") as caught:
        choices.replace("a", ModelOptions(context=8193), trained=8192)
    assert caught.value.code == "context_too_long"
    assert choices.of("a") == ModelChoices(tmp_path / "models.json").of("a") == ModelOptions(context=8192)
    choices.replace("b", ModelOptions(context=1 << 20), trained=0)  # it does not say


def test_options_that_cannot_be_written_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    choices = ModelChoices()
    choices._path = tmp_path / "file" / "models.json"
    with pytest.raises(NormalWorldError, match="cannot be written"):
        choices.replace("a", ModelOptions(kv="q4_0"), trained=0)
    assert choices.all == {}


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=200) | st.sampled_from([b"{}", b'{"a": {"context": 0}}', b'{"a": {"x": 1}}'])
)
def test_any_file_holds_options_or_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "models.json"
    path.write_bytes(content)
    try:
        names = ModelChoices(path).all
    except CallerError:
        return
    assert all(0 < len(name) <= 128 for name in names)


@pytest.mark.anyio
async def test_options_reach_the_secure_world_and_show_among_the_models(
    client: httpx.AsyncClient, link: ScriptedLink
) -> None:
    answer = await client.put(ROUTE, json={"context": "8k", "kv": "q8_0", "shift": True})
    assert answer.json() == {
        "model": "tiny",
        "options": {"context": 8192, "kv": "q8_0", "shift": True, "draft": None},
    }
    states = {state["name"]: state for state in (await client.get("/models")).json()["models"]}
    assert states["tiny"]["options"] == {"context": 8192, "kv": "q8_0", "shift": True, "draft": None}
    assert states["slow"]["options"] == {"context": None, "kv": None, "shift": None, "draft": None}
    await client.put(ROUTE, json={})
    await client.get("/models")  # answered by the secure world, after what it was told
    assert told(link) == [{"tiny": ModelOptions(8192, "q8_0", shift=True)}, {}]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"context": "much"}, "32k"),
        ({"context": 0}, "context"),
        ({"context": MAX_CONTEXT + 1}, "context"),
        ({"context": "16k"}, "trained for 8192"),
        ({"context": True}, "context"),
        ({"kv": "q5_1"}, "q8_0"),
        ({"shift": "on"}, "shift"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_options_that_cannot_be_met_are_a_400_that_says_why(
    client: httpx.AsyncClient, link: ScriptedLink, body: dict[str, Any], words: str
) -> None:
    answer = await client.put(ROUTE, json=body)
    assert answer.status_code == 400
    assert words in answer.text
    assert told(link) == []


@pytest.mark.anyio
async def test_a_model_that_is_not_there_has_no_options(client: httpx.AsyncClient) -> None:
    assert (await client.put("/models/nobody/options", json={"kv": "q8_0"})).status_code == 404


@pytest.mark.anyio
async def test_every_secure_world_is_told_first(link: ScriptedLink, memory: AdjustableMemory) -> None:
    choices = ModelChoices()
    choices.replace("tiny", ModelOptions(kv="q4_0"), trained=0)
    async with supervised(link.launch, memory, drain=0, choices=choices) as world:
        await world.models()
        assert told(link) == [{"tiny": ModelOptions(kv="q4_0")}]


@pytest.mark.anyio
async def test_clients_are_told_of_context_type_of_kv_shift_and_draft(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafted = msgspec.structs.replace(scripted_world.DESCRIPTION, draft="small")
    monkeypatch.setattr(scripted_world, "DESCRIPTION", drafted)
    state = (await client.get("/models")).json()["models"][0]
    assert (state["context"], state["kv_type"]) == (4096, "f16")
    card = (await client.get("/v1/models/tiny")).json()
    assert (card["context_length"], card["meta"]["kv_type"]) == (4096, "f16")
    assert (card["meta"]["context_shift"], card["meta"]["draft"], state["draft"]) == (False, "small", "small")
    props = (await client.get("/props?model=tiny")).json()
    assert (props["default_generation_settings"]["n_ctx"], props["kv_type"]) == (4096, "f16")
    shown = (await client.post("/api/show", json={"model": "tiny"})).json()["model_info"]
    assert (shown["flexserve.context_length"], shown["flexserve.kv_type"]) == (4096, "f16")
    assert (shown["flexserve.context_shift"], shown["flexserve.draft"]) == (False, "small")
    running = (await client.get("/api/ps")).json()["models"][0]
    assert (running["context_length"], running["kv_type"]) == (4096, "f16")
