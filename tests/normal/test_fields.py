"""Every field that a client may know works, is refused by name, or is known to change nothing."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import httpx
import pytest

from flexserve.normal.api.fields import HARMLESS, REFUSED
from flexserve.protocol.prompts import ChatPrompt
from flexserve.protocol.requests import Generate
from flexserve.protocol.sampling import SAMPLERS, LogitBias, Sampling
from flexserve.testing import api_fields
from flexserve.testing.scripted_link import ScriptedLink

DOCUMENT = Path(__file__).parents[2] / "docs" / "api-fields.md"
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION: dict[str, Any] = {"model": "tiny", "prompt": "hi"}
EMBEDDINGS: dict[str, Any] = {"model": "tiny", "input": "hi"}
BODIES = {"chat/completions": CHAT, "completions": COMPLETION, "embeddings": EMBEDDINGS}

# What the documents of other servers name.
LLAMA_SERVER = (
    *("prompt", "temperature", "dynatemp_range", "dynatemp_exponent", "top_k", "top_p", "min_p"),
    *("n_predict", "n_indent", "n_keep", "n_cmpl", "n", "stream", "stop", "typical_p", "repeat_penalty"),
    *("repeat_last_n", "presence_penalty", "frequency_penalty", "dry_multiplier", "dry_base"),
    *("dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers", "xtc_probability"),
    *("xtc_threshold", "mirostat", "mirostat_tau", "mirostat_eta", "grammar", "json_schema", "seed"),
    *("ignore_eos", "logit_bias", "n_probs", "min_keep", "t_max_predict_ms", "id_slot", "cache_prompt"),
    *("return_tokens", "samplers", "timings_per_token", "return_progress", "post_sampling_probs"),
    *("response_fields", "lora", "top_n_sigma", "adaptive_target", "adaptive_decay", "max_tokens"),
    *("chat_template_kwargs", "reasoning_format", "thinking_forced_open", "parse_tool_calls"),
    *("grammar_lazy", "grammar_triggers", "preserved_tokens", "n_discard", "n_cache_reuse"),
    *("backend_sampling", "speculative.n_max", "speculative.n_min", "speculative.p_min"),
    *("speculative.type", "speculative.ngram_size_n", "speculative.ngram_size_m"),
    *("speculative.ngram_min_hits", "reasoning_control", "reasoning_budget_message", "chat_parser"),
    *("reasoning_budget_start_tag", "reasoning_budget_end_tag", "reasoning_budget_end_tags"),
    *("multimodal_data", "image_data", "input_prefix", "input_suffix", "input_extra", "embd_normalize"),
    *("add_generation_prompt", "response_format", "logprobs", "verbose", "sse_ping_interval", "echo"),
    *("chat_format", "generation_prompt", "reasoning_budget_tokens", "continue_final_message"),
)
VLLM = (
    *("use_beam_search", "top_k", "min_p", "repetition_penalty", "length_penalty", "stop_token_ids"),
    *("include_stop_str_in_output", "ignore_eos", "min_tokens", "skip_special_tokens"),
    *("spaces_between_special_tokens", "truncate_prompt_tokens", "prompt_logprobs", "allowed_token_ids"),
    *("bad_words", "echo", "add_generation_prompt", "continue_final_message", "add_special_tokens"),
    *("documents", "chat_template", "chat_template_kwargs", "mm_processor_kwargs", "structured_outputs"),
    *("priority", "request_id", "return_tokens_as_token_ids", "return_token_ids", "cache_salt"),
    *("kv_transfer_params", "vllm_xargs", "guided_json", "guided_regex", "guided_choice"),
    *("guided_grammar", "guided_decoding_backend", "guided_whitespace_pattern", "include_reasoning"),
    *("watermarking", "truncation_side", "logprob_token_ids", "session_id", "routed_experts_prompt_start"),
    *("return_token_offsets", "return_prompt_text", "return_mm_kwargs", "ec_transfer_params"),
    *("stream_interval", "return_token_strs"),
    *("media_io_kwargs", "prompt_embeds", "logits_processors", "thinking_token_budget"),
    *("repetition_detection", "best_of"),
    *("max_repetition_pattern_size", "min_repetition_pattern_size", "repetition_min_count"),
)
OLLAMA = (
    *("model", "prompt", "suffix", "images", "think", "format", "options", "system", "stream", "raw"),
    *("keep_alive", "context", "template", "messages", "tools", "truncate", "dimensions", "input"),
    *("logprobs", "top_logprobs", "num_keep", "seed", "num_predict", "top_k", "top_p", "min_p"),
    *("typical_p", "repeat_last_n", "temperature", "repeat_penalty", "presence_penalty"),
    *("frequency_penalty", "penalize_newline", "stop", "numa", "num_ctx", "num_batch", "num_gpu"),
    *("main_gpu", "use_mmap", "num_thread", "tfs_z", "shift"),
)
# The forms that clients' own libraries send. Importing these takes seconds, so only the tests of them do.
OPENAI = (
    "openai.types.chat.completion_create_params.CompletionCreateParamsBase",
    "openai.types.completion_create_params.CompletionCreateParamsBase",
    "openai.types.embedding_create_params.EmbeddingCreateParams",
)
CLIENTS = {
    "/v1/messages": "anthropic.types.message_create_params.MessageCreateParamsBase",
    "/v1/messages/count_tokens": "anthropic.types.message_count_tokens_params.MessageCountTokensParams",
    "/v1/responses": "openai.types.responses.response_create_params.ResponseCreateParamsBase",
    "/api/chat": "ollama._types.ChatRequest",
    "/api/generate": "ollama._types.GenerateRequest",
    "/api/embed": "ollama._types.EmbedRequest",
}


def fields_of(form: str) -> set[str]:
    """Return the names of a form's fields."""
    module, _, name = form.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    return {*getattr(found, "model_fields", found.__annotations__)}


# For each field of Sampling: how clients ask for it, and what of it reaches the secure world.
ASKED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"max_tokens": 5}, {"max_tokens": 5}),
    ({"max_tokens": 0}, {"max_tokens": 0}),
    ({"max_tokens": -1}, {"max_tokens": None}),
    ({"n_predict": 5}, {"max_tokens": 5}),
    ({"n_predict": -2}, {"max_tokens": None}),
    ({"min_tokens": 3}, {"min_tokens": 3}),
    ({"ignore_eos": True}, {"ignore_eos": True}),
    ({"stop": "x"}, {"stop": ["x"]}),
    ({"stop": ["x", "y"]}, {"stop": ["x", "y"]}),
    ({"stop_token_ids": [1, 2]}, {"stop_token_ids": [1, 2]}),
    ({"seed": 3}, {"seed": 3}),
    ({"seed": -1}, {"seed": None}),
    ({"samplers": ["top_k", "temperature"]}, {"samplers": ["top_k", "temperature"]}),
    ({"samplers": []}, {"samplers": []}),
    ({"samplers": "edskypmxt"}, {"samplers": list(SAMPLERS)}),
    ({"temperature": 0}, {"temperature": 0}),
    ({"dynatemp_range": 0.5}, {"dynatemp_range": 0.5}),
    ({"dynatemp_exponent": 2}, {"dynatemp_exponent": 2}),
    ({"top_k": 7}, {"top_k": 7}),
    ({"top_k": -1}, {"top_k": 0}),
    ({"top_p": 0.5}, {"top_p": 0.5}),
    ({"min_p": 0}, {"min_p": 0}),
    ({"typical_p": 0.5}, {"typical_p": 0.5}),
    ({"typ_p": 0.5}, {"typical_p": 0.5}),
    ({"top_n_sigma": 1.5}, {"top_n_sigma": 1.5}),
    ({"n_keep": -1}, {"n_keep": -1}),
    ({"n_discard": 7}, {"n_discard": 7}),
    ({"min_keep": 3}, {"min_keep": 3}),
    ({"xtc_probability": 0.5}, {"xtc_probability": 0.5}),
    ({"xtc_threshold": 0.2}, {"xtc_threshold": 0.2}),
    ({"repeat_last_n": -1}, {"repeat_last_n": -1}),
    ({"repeat_penalty": 1.5}, {"repeat_penalty": 1.5}),
    ({"repetition_penalty": 1.5}, {"repeat_penalty": 1.5}),
    ({"frequency_penalty": 1}, {"frequency_penalty": 1}),
    ({"presence_penalty": -1}, {"presence_penalty": -1}),
    ({"dry_multiplier": 0.8}, {"dry_multiplier": 0.8}),
    ({"dry_base": 2}, {"dry_base": 2}),
    ({"dry_allowed_length": 3}, {"dry_allowed_length": 3}),
    ({"dry_penalty_last_n": 9}, {"dry_penalty_last_n": 9}),
    ({"dry_sequence_breakers": ["."]}, {"dry_sequence_breakers": ["."]}),
    ({"mirostat": 2}, {"mirostat": 2}),
    ({"mirostat_tau": 3}, {"mirostat_tau": 3}),
    ({"mirostat_eta": 0.3}, {"mirostat_eta": 0.3}),
    ({"logit_bias": {"5": -100, " no": False}}, {"logit_bias": [LogitBias(5, -100), LogitBias(" no", None)]}),
    ({"logit_bias": [[5, 1.5], ["no", False]]}, {"logit_bias": [LogitBias(5, 1.5), LogitBias("no", None)]}),
    ({"grammar": 'root ::= "a"'}, {"grammar": 'root ::= "a"'}),
    ({"json_schema": {"type": "array"}}, {"schema": '{"type":"array"}'}),
    ({"response_format": {"type": "json_object"}}, {"schema": "{}"}),
]


async def post(client: httpx.AsyncClient, route: str, **more: Any) -> httpx.Response:
    return await client.post(f"/v1/{route}", json=BODIES[route] | more)


@pytest.mark.anyio
@pytest.mark.parametrize(("asked", "meant"), ASKED, ids=str)
async def test_a_field_is_what_the_secure_world_is_asked_for(
    client: httpx.AsyncClient, link: ScriptedLink, asked: dict[str, Any], meant: dict[str, Any]
) -> None:
    for route in ("chat/completions", "completions"):
        response = await post(client, route, **asked)
        assert response.status_code == 200, response.text
        sampling = link.scripted.last(Generate).sampling
        for name in Sampling.__struct_fields__:
            usual = 16 if name == "max_tokens" and route == "completions" else getattr(Sampling(), name)
            assert getattr(sampling, name) == meant.get(name, usual), name


def test_every_field_of_the_request_inside_can_be_asked_for() -> None:
    of_routes = {"logprobs", "echo", "after_samplers", "shift"}
    assert {name for _, meant in ASKED for name in meant} | of_routes == set(Sampling.__struct_fields__)


@pytest.mark.anyio
async def test_echo_and_the_cache_are_the_clients_choice(
    client: httpx.AsyncClient, link: ScriptedLink
) -> None:
    await post(client, "completions", echo=True, logprobs=1, max_tokens=0)
    crossed = link.scripted.last(Generate)
    assert (crossed.sampling.echo, crossed.sampling.logprobs, crossed.reuse) == (True, 1, True)
    await post(client, "chat/completions", cache_prompt=False)
    assert not link.scripted.last(Generate).reuse


@pytest.mark.anyio
@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_not_implemented_is_refused_by_name(client: httpx.AsyncClient, name: str) -> None:
    for route in BODIES:
        model = api_fields.ROUTES[route.partition("/")[0]]
        if name in model.model_fields:
            continue
        response = await post(client, route, **{name: "something else"})
        assert response.status_code == 400
        error = response.json()["error"]
        assert (error["param"], error["code"]) == (name, "unsupported_parameter")
        assert name in error["message"]
        for value in (None, *REFUSED[name].harmless):
            assert (await post(client, route, **{name: value})).status_code == 200


@pytest.mark.anyio
async def test_what_changes_nothing_is_ignored(client: httpx.AsyncClient) -> None:
    for route in BODIES:
        assert (await post(client, route, **dict.fromkeys(HARMLESS, 1))).status_code == 200


@pytest.mark.anyio
async def test_what_nobody_knows_may_be_a_slip_of_the_pen(client: httpx.AsyncClient) -> None:
    response = await post(client, "chat/completions", temprature=0)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == ("temprature", "unknown_parameter")
    assert "'temperature'" in error["message"]
    assert (await post(client, "embeddings", nonsense=0)).json()["error"]["code"] == "unknown_parameter"


def test_every_field_that_others_document_is_in_a_table() -> None:
    works = {name for model in api_fields.ROUTES.values() for name in model.model_fields}
    openai = set().union(*map(fields_of, OPENAI))
    assert "model" in openai
    assert {*openai, *LLAMA_SERVER, *VLLM, *OLLAMA} <= {*works, *REFUSED, *HARMLESS}


@pytest.mark.parametrize(("route", "form"), CLIENTS.items(), ids=list(CLIENTS))
def test_every_field_that_a_vendors_own_client_sends_is_in_a_table(route: str, form: str) -> None:
    refused, ignored = next((own for path, own in api_fields.OWN.items() if route.startswith(path)), ((), ()))
    known = {*api_fields.OTHERS[route].model_fields, *refused, *ignored}
    sent = fields_of(form)
    assert "model" in sent
    assert sent <= {*known, *REFUSED, *HARMLESS}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options"),
        ({"flexserve": {"reuze": False}}, "flexserve"),
        ({"messages": [{"role": "assistant", "content": "", "function_call": {"name": "f"}}]}, "messages[0]"),
        ({"messages": [{"role": "assistant", "content": "", "audio": {"id": "a"}}]}, "messages[0]"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0]"),
    ],
)
async def test_a_part_of_a_field_is_not_ignored_in_silence(
    client: httpx.AsyncClient, wrong: dict[str, Any], param: str
) -> None:
    response = await post(client, "chat/completions", **wrong)
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith(param)


@pytest.mark.anyio
async def test_what_others_call_reasoning_is_a_thought_of_the_assistant(
    client: httpx.AsyncClient, link: ScriptedLink
) -> None:
    said = {"role": "assistant", "content": "Yes.", "reasoning": "Hm."}
    await post(client, "chat/completions", messages=[*CHAT["messages"], said, *CHAT["messages"]])
    prompt = link.scripted.last(Generate).prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.messages[1].thought == "Hm."


def test_the_document_of_fields_is_up_to_date() -> None:
    assert DOCUMENT.read_text() == api_fields.document(), (
        "run python -m flexserve.testing.api_fields docs/api-fields.md"
    )
