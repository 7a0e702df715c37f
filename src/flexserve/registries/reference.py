"""What people write to name a published model.

hf:ORG/REPO[:QUANT]              a repository of Hugging Face: the file of that quantisation
hf:ORG/REPO/FILE.gguf            one file of it; both also with @REVISION at the end
ollama:[NAMESPACE/]NAME[:TAG]    a model of the ollama library
https://HOST/PATH/FILE.gguf      any file
"""

from __future__ import annotations

import dataclasses
import re

from flexserve.errors import CallerError

_HUB = re.compile(
    r"hf:(?P<repo>[\w.-]+/[\w.-]+)(/(?P<file>[\w./-]+\.gguf))?(:(?P<quant>[\w.-]+))?(@(?P<revision>[\w./-]+))?"
)
_OLLAMA = re.compile(r"ollama:((?P<space>[\w.-]+)/)?(?P<name>[\w.-]+)(:(?P<tag>[\w.-]+))?")
_URL = re.compile(r"https?://[^\s/]+/\S*")
_FORMS = "Write hf:ORG/REPO[:QUANT], ollama:NAME[:TAG], or the URL of a GGUF file."


@dataclasses.dataclass(frozen=True, slots=True)
class HubReference:
    """A GGUF of a Hugging Face repository; `quant` and `file` may be empty."""

    repo: str
    quant: str
    file: str
    revision: str


@dataclasses.dataclass(frozen=True, slots=True)
class OllamaReference:
    """A model of the ollama registry."""

    space: str
    name: str
    tag: str


@dataclasses.dataclass(frozen=True, slots=True)
class UrlReference:
    """A GGUF file at a URL."""

    url: str


Reference = HubReference | OllamaReference | UrlReference


def parse_reference(text: str) -> Reference:
    """Return what `text` names. Raises CallerError (code "bad_reference") that says the forms there are."""
    if (found := _HUB.fullmatch(text)) and not (found["file"] and found["quant"]):
        return HubReference(
            found["repo"], found["quant"] or "", found["file"] or "", found["revision"] or "main"
        )
    if found := _OLLAMA.fullmatch(text):
        return OllamaReference(found["space"] or "library", found["name"], found["tag"] or "latest")
    if _URL.fullmatch(text):
        return UrlReference(text)
    raise CallerError(f"{text[:200]!r} names no published model.", hint=_FORMS, code="bad_reference")
