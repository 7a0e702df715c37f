"""What confines the answer to a request: a grammar, and where it is a thought, that thought's end."""

from __future__ import annotations

from flexserve.protocol.prompts import ChatPrompt
from flexserve.protocol.requests import Generate
from flexserve.trusted.text.chat_template import ChatTemplate
from flexserve.trusted.text.constraint import constraint
from flexserve.trusted.text.grammar import Confinement
from flexserve.trusted.text.prompt import Prompt
from flexserve.trusted.text.rendering.renderer import Renderer
from flexserve.trusted.text.thoughts import Thoughts, thought_end
from flexserve.trusted.text.tokenizer import Tokenizer


def confinement(
    request: Generate, prompt: Prompt, template: ChatTemplate, vocabulary: Tokenizer, renderer: Renderer
) -> Confinement | None:
    """Return what confines the answer to `request`; None: anything goes. Takes up to some tenths of a second.

    Raises CallerError for what cannot be enforced.
    """
    grammar = constraint(request, template, renderer.translate, prompt.begun)
    if grammar is None:
        return None
    renderer.compile(grammar.text)
    return Confinement(vocabulary.tree(template.shown if grammar.shown else {}), grammar.text)


def thoughts(request: Generate, prompt: Prompt, vocabulary: Tokenizer, *, must_end: bool) -> Thoughts:
    """Return what follows the answer to `request` in and out of thoughts.

    `must_end`: it may not end inside of one.
    """
    notation = prompt.notation
    end = [] if notation is None else vocabulary.encode(thought_end(notation), special=True, start=False)
    most = request.prompt.thought_tokens if isinstance(request.prompt, ChatPrompt) else None
    return Thoughts(notation, prompt.begun, end, most=most, must_end=must_end)
