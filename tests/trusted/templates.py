"""Chat templates as a secure world has them, and the helper that renders them."""

from __future__ import annotations

import functools
from typing import Any

from flexserve.trusted.sidecar import start_helper
from flexserve.trusted.text.chat_template import ChatTemplate
from flexserve.trusted.text.rendering.renderer import Renderer


@functools.cache
def renderer() -> Renderer:
    """Return the helper of this run; a fixture of the folder ends it."""
    return Renderer(start_helper())


def template_of(source: str, vocabulary: Any) -> ChatTemplate:
    """Return `source` as the template of a model with that vocabulary."""
    return ChatTemplate(source, vocabulary, renderer())
