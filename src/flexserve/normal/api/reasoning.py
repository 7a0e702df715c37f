"""Whether, how long and how hard a model thinks before it answers: fields of a chat request."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator
from pydantic_core import PydanticCustomError

from flexserve.normal.api.tools import compact

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Budget = Annotated[int, Field(ge=-1, le=1 << 20)]
_OWN = frozenset({"messages", "tools", "bos_token", "eos_token", "add_generation_prompt"})


class ReasoningFields(BaseModel):
    """Fields of llama-server's API, and OpenAI's `reasoning_effort`; -1 is no limit."""

    enable_thinking: bool | None = Field(
        None, description="Whether to think; what the template says if left out"
    )
    reasoning_effort: Effort | None = Field(
        None, description="A variable of the template; none: do not think"
    )
    reasoning_budget_tokens: Budget | None = Field(
        None, description="Tokens of a thought, then its end is forced"
    )
    thinking_budget_tokens: Budget | None = Field(None, description="Another name of reasoning_budget_tokens")
    thinking_token_budget: Budget | None = Field(None, description="vLLM's name of reasoning_budget_tokens")
    reasoning_format: Literal["none", "auto", "deepseek", "deepseek-legacy"] | None = Field(
        None, description="none: thoughts stay in the content; else they are reasoning_content"
    )
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Variables of the chat template")

    @field_validator("chat_template_kwargs")
    @classmethod
    def _are_no_others(cls, values: dict[str, Any] | None) -> dict[str, Any] | None:
        for name in values or ():
            if name in _OWN:
                raise PydanticCustomError(
                    "unsupported", "The server itself says what {name} is", {"name": name}
                )
        return values

    def reasoning(self) -> dict[str, Any]:
        """Return these fields as those of a ChatPrompt. Raises PydanticCustomError."""
        values = dict(self.chat_template_kwargs or {})
        thinking = self.enable_thinking
        named = values.get("enable_thinking", values.get("thinking"))
        if thinking is None and isinstance(named, bool):
            thinking = named
        if self.reasoning_effort is not None:
            values["reasoning_effort"] = self.reasoning_effort
            if self.reasoning_effort == "none":
                thinking = False
                del values["reasoning_effort"]  # templates know words for how hard, none for not at all
        budgets = (self.reasoning_budget_tokens, self.thinking_budget_tokens, self.thinking_token_budget)
        budget = next((one for one in budgets if one is not None and one >= 0), None)
        return {
            "values": compact(values, "chat_template_kwargs") if values else None,
            "thinking": thinking,
            "thought_tokens": budget,
        }
