"""The tokens of a gap to fill, as models that were trained for it expect them."""

from __future__ import annotations

from flexserve.errors import CallerError
from flexserve.protocol.prompts import InfillPrompt
from flexserve.trusted.text.tokenizer import Gap, Tokenizer


def infill_tokens(prompt: InfillPrompt, vocabulary: Tokenizer) -> list[int]:
    """Return the tokens of `prompt`: other texts of its project, what is before the gap, what is behind it.

    Raises CallerError (code "infill_unsupported") for a model that knows no gaps.
    """
    gap = vocabulary.gap
    if gap is None:
        raise CallerError(
            "This model was not trained to fill gaps.",
            hint="Use a model for code that has tokens for it, or ask for a completion.",
            code="infill_unsupported",
        )

    def plain(text: str) -> list[int]:
        return vocabulary.encode(text, special=False, start=False)

    before = [gap.prefix, *plain(prompt.prefix), *plain(prompt.start)]
    behind = [gap.suffix, *plain(prompt.suffix)]
    tokens = vocabulary.encode("", special=False)  # what begins a sequence, where the model has one
    return [*_snippets(prompt, gap, vocabulary), *tokens, *before, *behind, gap.middle]


def _snippets(prompt: InfillPrompt, gap: Gap, vocabulary: Tokenizer) -> list[int]:
    tokens: list[int] = []
    for snippet in prompt.snippets:
        heading = f"{snippet.name}\n" if gap.file is not None else "\n\n--- snippet ---\n\n"
        tokens += [gap.file] if gap.file is not None else []
        for text in (heading, snippet.text):  # apart, as llama-server does: some tokenizers join them
            tokens += vocabulary.encode(text, special=False, start=False)
    return tokens
