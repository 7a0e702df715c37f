"""Which of llama.cpp's server tests do not apply to FlexServe, and why: by file, or by file and test."""

from __future__ import annotations

ROUTER = "router mode: one process for each model, chosen and started by a request"
PAGES = "llama-server's web page, and the tools and MCP servers that it runs for it"
IMAGES = "images, sound and video"
FILES = "requests that read or write the server's files: slots saved, media paths"
LORA = "LoRA adapters of a server's command line"
DRAFT = "draft models of a server's command line, made synthetic ones among them"
CLOUD = "the form of one cloud's prediction service"
TOKENIZER = "a GGUF in parts, which is joined before it is added"
FLAGS = "switches of llama-server's command line that turn routes or memory on and off"
ORIGINS = "pages of any origin are let in; FlexServe lets in those of --allow-origin"

LEFT_OUT = {
    "test_router": ROUTER,
    "test_stream": ROUTER,
    "test_mcp_servers": PAGES,
    "test_proxy": PAGES,
    "test_tools_builtin": PAGES,
    "test_basic::test_no_ui": PAGES,
    "test_security::test_access_static_assets_without_api_key": PAGES,
    "test_security::test_cors_proxy_only_forwards_explicit_proxy_headers": PAGES,
    "test_security::test_cors_origins_defaults_to_localhost_with_tools_enabled": PAGES,
    "test_security::test_cors_options": ORIGINS,
    "test_security::test_cors_origins_localhost_reflects": ORIGINS,
    "test_security::test_cors_origins_localhost_rejects": ORIGINS,
    "test_security::test_local_media_file": IMAGES,
    "test_vision_api": IMAGES,
    "test_compat_anthropic::test_anthropic_vision_base64_with_multimodal_model": IMAGES,
    "test_slot_save": FILES,
    "test_lora": LORA,
    "test_speculative": DRAFT,
    "test_compat_gcp": CLOUD,
    "test_basic::test_load_split_model": TOKENIZER,
    "test_basic::test_server_slots": FLAGS,
    "test_basic::test_server_model_aliases_and_tags": FLAGS,
    "test_basic::test_server_multiple_addresses": FLAGS,
    "test_metrics::test_metrics_disabled": FLAGS,
    "test_kv_keep_only_active": FLAGS,
}


def reason_of(node: str) -> str | None:
    """Return why the test of pytest's `node` does not apply; None when it may."""
    file, _, rest = node.rpartition("/")[2].partition(".py::")
    return LEFT_OUT.get(file) or LEFT_OUT.get(f"{file}::{rest.partition('[')[0]}")


_STATUS = "images are the client's mistake here (400), not the server's (500)"
_NO_WEIGHTS = "text becomes tokens without weights: it wakes no model"

# Tests that apply, and that FlexServe does not pass.
UNMET = {
    "test_compat_oai_responses::test_responses_stream_with_llama_telemetry": "an answer that its limit ends "
    "is `response.incomplete`, as at OpenAI",
    "test_chat_completion::test_chat_template_assistant_prefill": "the texts of a message are joined by one "
    "line end, of a turn that is gone on with, too; llama-server joins those by two",
    "test_compat_anthropic::test_anthropic_tool_result_with_image": _STATUS,
    "test_compat_anthropic::test_anthropic_vision_format_accepted": _STATUS,
    "test_compat_anthropic::test_anthropic_empty_messages": "a conversation without messages is refused",
    "test_basic::test_server_props": "a default seed of the server's command line: FlexServe has none",
    "test_sleep::test_server_sleep_read_only_endpoints": "/metrics tells of memory, too, which changes when "
    "a model sleeps",
    "test_sleep::test_server_sleep_metrics_buckets": _NO_WEIGHTS,
    "test_sleep::test_server_sleep_token_counting_wake": _NO_WEIGHTS,
    "test_ignore_eos::test_ignore_eos_populates_logit_bias": "the tokens that end an answer are not told",
    "test_completion::test_completion_response_fields": "prompts are given back as they were sent",
    "test_embedding::test_embedding_pooling_none": "vectors of single tokens are not made",
    "test_embedding::test_embedding_pooling_none_oai": "vectors of single tokens are not made",
}


def unmet_reason(test: str) -> str:
    """Return why FlexServe does not pass a test."""
    return UNMET.get(test, "not looked into yet")
