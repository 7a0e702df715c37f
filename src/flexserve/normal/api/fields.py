"""Fields that other servers' APIs have and this one has not: refused by name, or known to change nothing.

A field that changes an answer is never ignored in silence: whoever sent it would believe that it was
obeyed. What is in neither table below is refused, too; it may be a slip of the pen. docs/api-fields.md is
made of these tables and of the requests' own fields (flexserve.testing.api_fields).
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import AliasChoices, BaseModel
from pydantic_core import PydanticCustomError


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """A field that is not implemented: whose it is, which values ask for nothing, what to do instead."""

    whose: str
    harmless: tuple[Any, ...] = ()
    instead: str = "Leave it out"


_USE_FORMAT = "Use `response_format`"
_USE_GRAMMAR = "Use `grammar` or `response_format`"
_USE_TOOLS = "Use `tools` and `tool_choice`"

REFUSED: Mapping[str, Refused] = {
    # OpenAI
    "audio": Refused("OpenAI"),
    "best_of": Refused("OpenAI, vLLM", (1,), "Use /v1/completions"),
    "dimensions": Refused("OpenAI, ollama", (), "Use /v1/embeddings"),
    "echo": Refused("OpenAI, vLLM", (False,)),
    "encoding_format": Refused("OpenAI", ("float",), "Use /v1/embeddings"),
    "function_call": Refused("OpenAI", ("none", "auto"), _USE_TOOLS),
    "functions": Refused("OpenAI", ([],), _USE_TOOLS),
    "modalities": Refused("OpenAI", (["text"],)),
    "moderation": Refused("OpenAI"),
    "n": Refused("OpenAI", (1,), "Send several requests"),
    "prediction": Refused("OpenAI"),
    "reasoning_effort": Refused("OpenAI, llama-server"),
    "suffix": Refused("OpenAI, ollama", ("",), "Use /v1/completions"),
    "tool_choice": Refused("OpenAI", ("none", "auto"), "Use /v1/chat/completions"),
    "tools": Refused("OpenAI", ([],), "Use /v1/chat/completions"),
    "verbosity": Refused("OpenAI", ("medium",)),
    "web_search_options": Refused("OpenAI"),
    # llama-server
    "adaptive_decay": Refused("llama-server"),
    "adaptive_target": Refused("llama-server", (-1, -1.0)),
    "add_generation_prompt": Refused("llama-server, vLLM", (True,), "Use /v1/chat/completions"),
    "chat_format": Refused("llama-server"),
    "chat_parser": Refused("llama-server"),
    "chat_template_kwargs": Refused("llama-server, vLLM", ({},)),
    "embd_normalize": Refused("llama-server", (2,)),
    "generation_prompt": Refused("llama-server", ("",)),
    "grammar_lazy": Refused("llama-server", (False,)),
    "grammar_triggers": Refused("llama-server", ([],)),
    "image_data": Refused("llama-server", ([],)),
    "input_extra": Refused("llama-server", ([],)),
    "input_prefix": Refused("llama-server", ("",)),
    "input_suffix": Refused("llama-server", ("",)),
    "lora": Refused("llama-server", ([],), "Add the adapter to the store, and ask for it as `model`"),
    "multimodal_data": Refused("llama-server", ([],)),
    "n_cache_reuse": Refused("llama-server", (0,)),
    "n_cmpl": Refused("llama-server", (1,), "Send several requests"),
    "n_indent": Refused("llama-server", (0,)),
    "n_probs": Refused("llama-server", (0,), "Use `logprobs`"),
    "parse_tool_calls": Refused("llama-server"),
    "penalize_nl": Refused("llama-server", (False,), "Use `logit_bias`"),
    "post_sampling_probs": Refused("llama-server", (False,)),
    "preserved_tokens": Refused("llama-server", ([],)),
    "reasoning_budget_end_tag": Refused("llama-server"),
    "reasoning_budget_end_tags": Refused("llama-server", ([],)),
    "reasoning_budget_message": Refused("llama-server", ("",)),
    "reasoning_budget_start_tag": Refused("llama-server"),
    "reasoning_budget_tokens": Refused("llama-server", (-1,)),
    "reasoning_control": Refused("llama-server", (False,)),
    "reasoning_format": Refused("llama-server"),
    "response_fields": Refused("llama-server", ([],)),
    "return_progress": Refused("llama-server", (False,)),
    "return_tokens": Refused("llama-server", (False,)),
    "t_max_prompt_ms": Refused("llama-server", (-1, 0)),
    "t_max_predict_ms": Refused("llama-server", (-1, 0), "Use `max_tokens`"),
    "tfs_z": Refused("llama-server, ollama", (1, 1.0), "Use `min_p`"),
    "thinking_budget_tokens": Refused("llama-server", (-1,)),
    "thinking_forced_open": Refused("llama-server", (False,)),
    "timings_per_token": Refused("llama-server", (False,)),
    # vLLM
    "add_special_tokens": Refused("vLLM", (), "Send the prompt as tokens"),
    "allowed_token_ids": Refused("vLLM", (), "Use `logit_bias` or `grammar`"),
    "bad_words": Refused("vLLM", ([],), "Use `logit_bias`"),
    "cache_salt": Refused("vLLM", (), "Use `user`: KV is shared between requests of one user only"),
    "chat_template": Refused("vLLM"),
    "continue_final_message": Refused("vLLM", (False,), "Use /v1/chat/completions"),
    "documents": Refused("vLLM", ([],), "Use `chat_template_kwargs`"),
    "ec_transfer_params": Refused("vLLM"),
    "guided_choice": Refused("vLLM", (), _USE_GRAMMAR),
    "guided_decoding_backend": Refused("vLLM"),
    "guided_grammar": Refused("vLLM", (), _USE_GRAMMAR),
    "guided_json": Refused("vLLM", (), _USE_FORMAT),
    "guided_regex": Refused("vLLM", (), _USE_GRAMMAR),
    "guided_whitespace_pattern": Refused("vLLM", (), _USE_GRAMMAR),
    "include_reasoning": Refused("vLLM", (True,)),
    "include_stop_str_in_output": Refused("vLLM", (False,)),
    "kv_transfer_params": Refused("vLLM"),
    "length_penalty": Refused("vLLM", (1, 1.0)),
    "logprob_token_ids": Refused("vLLM", (), "Use `top_logprobs`"),
    "logits_processors": Refused("vLLM", ([],)),
    "max_repetition_pattern_size": Refused("vLLM", (0,)),
    "media_io_kwargs": Refused("vLLM", ({},)),
    "min_repetition_pattern_size": Refused("vLLM", (0,)),
    "mm_processor_kwargs": Refused("vLLM", ({},)),
    "normalize": Refused("vLLM", (True,)),
    "prompt_embeds": Refused("vLLM"),
    "prompt_logprobs": Refused("vLLM", (), "Use `echo` with `logprobs`, of /v1/completions"),
    "repetition_detection": Refused("vLLM"),
    "repetition_min_count": Refused("vLLM", (0,)),
    "return_mm_kwargs": Refused("vLLM", (True,)),
    "return_prompt_text": Refused("vLLM", (False,), "Use `verbose`"),
    "return_token_ids": Refused("vLLM", (False,)),
    "return_token_offsets": Refused("vLLM", (False,)),
    "return_token_strs": Refused("vLLM", (False,), "Use `with_pieces`"),
    "return_tokens_as_token_ids": Refused("vLLM", (False,)),
    "routed_experts_prompt_start": Refused("vLLM", (0,)),
    "skip_special_tokens": Refused("vLLM", (True,)),
    "spaces_between_special_tokens": Refused("vLLM", (True,)),
    "structural_tag": Refused("vLLM", (), _USE_GRAMMAR),
    "structured_outputs": Refused("vLLM", (), _USE_GRAMMAR),
    "thinking_token_budget": Refused("vLLM", (-1,)),
    "truncate_prompt_tokens": Refused("vLLM"),
    "truncation_side": Refused("vLLM"),
    "use_beam_search": Refused("vLLM", (False,)),
    "vllm_xargs": Refused("vLLM", ({},)),
    "watermarking": Refused("vLLM", (False,)),
    # ollama
    "context": Refused("ollama", ([],), "Send the conversation"),
    "format": Refused("ollama", ("",), _USE_FORMAT),
    "images": Refused("ollama", ([],)),
    "num_ctx": Refused("ollama", (), "flexserve set MODEL context"),
    "num_keep": Refused("ollama", (), "Use `n_keep`"),
    "num_predict": Refused("ollama", (), "Use `max_tokens`"),
    "options": Refused("ollama", ({},), "Write its fields beside `model`"),
    "penalize_newline": Refused("ollama", (False,), "Use `logit_bias`"),
    "raw": Refused("ollama", (False,), "Use /v1/completions"),
    "shift": Refused("ollama", (False,)),
    "system": Refused("ollama", ("",), "Use a message of role `system`"),
    "template": Refused("ollama", ("",)),
    "think": Refused("ollama"),
    "truncate": Refused("ollama", (False,)),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Harmless:
    """A field that is ignored: whose it is, and why no answer depends on it."""

    whose: str
    why: str


_HARDWARE = "how this server computes is its operator's choice, and no answer's content"
_SLOT = "which place in memory a request gets changes how fast it is answered"

HARMLESS: Mapping[str, Harmless] = {
    "metadata": Harmless("OpenAI", "a label for the operator of OpenAI's service"),
    "prompt_cache_key": Harmless("OpenAI", "KV is found by the prompt's own tokens"),
    "prompt_cache_options": Harmless("OpenAI", "how long KV is kept changes how fast an answer comes"),
    "prompt_cache_retention": Harmless("OpenAI", "how long KV is kept changes how fast an answer comes"),
    "safety_identifier": Harmless("OpenAI", "a label for the operator of OpenAI's service"),
    "service_tier": Harmless("OpenAI", "there is one"),
    "store": Harmless("OpenAI", "nothing is stored"),
    "backend_sampling": Harmless("llama-server", _HARDWARE),
    "id_slot": Harmless("llama-server", _SLOT),
    "slot_id": Harmless("llama-server", _SLOT),
    "speculative.n_max": Harmless("llama-server", _HARDWARE),
    "speculative.n_min": Harmless("llama-server", _HARDWARE),
    "speculative.ngram_min_hits": Harmless("llama-server", _HARDWARE),
    "speculative.ngram_size_m": Harmless("llama-server", _HARDWARE),
    "speculative.ngram_size_n": Harmless("llama-server", _HARDWARE),
    "speculative.p_min": Harmless("llama-server", _HARDWARE),
    "speculative.type": Harmless("llama-server", _HARDWARE),
    "sse_ping_interval": Harmless("llama-server", "a stream has its signs of life in any case"),
    "priority": Harmless("vLLM", "whose turn it is changes when an answer comes; see `flexserve.priority`"),
    "request_id": Harmless("vLLM", "answers have ids of the server's own"),
    "session_id": Harmless("vLLM", "KV is found by the prompt's own tokens"),
    "stream_interval": Harmless("vLLM", "how many tokens come in one piece of a stream"),
    **{
        name: Harmless("ollama", _HARDWARE)
        for name in (
            "low_vram",
            "main_gpu",
            "num_batch",
            "num_gpu",
            "num_thread",
            "numa",
            "use_mlock",
            "use_mmap",
        )
    },
}


def names_of(request: type[BaseModel]) -> set[str]:
    """Return the names by which the fields of a request may be sent."""
    names = set(request.model_fields)
    for field in request.model_fields.values():
        if isinstance(field.validation_alias, AliasChoices):
            names.update(one for one in field.validation_alias.choices if isinstance(one, str))
    return names


def refuse_others(body: Any, known: Collection[str]) -> None:
    """Raise PydanticCustomError for a field of `body` that is neither `known` nor ignored for a reason.

    Null is as good as nothing.
    """
    if not isinstance(body, dict):
        return
    for name, value in body.items():
        if value is None or name in known or name in HARMLESS:
            continue
        refused = REFUSED.get(name)
        if refused is None:
            close = difflib.get_close_matches(name[:64], known, 1) if isinstance(name, str) else []
            instead = f"Is {close[0]!r} meant?" if close else "Leave it out."
            raise PydanticCustomError(
                "unknown", "There is no such field. {instead}", {"param": name[:64], "instead": instead}
            )
        if not any(value == one and type(value) is type(one) for one in refused.harmless):
            raise PydanticCustomError(
                "unsupported",
                "This server does not support {param}. {instead}.",
                {"param": name, "instead": refused.instead},
            )
