"""Images, sounds, videos and files in requests: refused, in one sentence, by each API.

The engine's library is built without the part of llama.cpp that reads them (mtmd).
"""

from __future__ import annotations

from typing import Any

from pydantic_core import PydanticCustomError

# What a content can have beside text, in the words of OpenAI's and Anthropic's APIs and others.
_KINDS = {
    "image": "Images", "image_url": "Images", "input_image": "Images",
    "audio": "Sounds", "input_audio": "Sounds", "audio_url": "Sounds",
    "video": "Videos", "video_url": "Videos", "input_video": "Videos",
    "file": "Files", "input_file": "Files", "document": "Files",
}  # fmt: skip
_NESTED = ("content", "output")  # fields of a turn, an item or a part that have parts of their own


def refusal(kind: str, param: str | None) -> PydanticCustomError:
    """Return the error that says that `kind` ("Images") cannot be read here; `param`: what has them."""
    return PydanticCustomError(
        "unsupported",
        "{what} are not supported: this server's models read text. Leave them out, or put them into words.",
        {"what": kind, **({"param": param} if param else {})},
    )


def refuse_media(body: Any, *fields: str) -> None:
    """Raise PydanticCustomError for a part of `body`, in the lists under `fields`, that is no text.

    Whatever else may be wrong there is left to the schemas.
    """
    for field in fields:
        _look(body.get(field) if isinstance(body, dict) else None, field)


def _look(parts: Any, path: str) -> None:
    if not isinstance(parts, list):
        return
    for number, part in enumerate(parts):
        if not isinstance(part, dict):
            continue
        kind = part.get("type")
        if isinstance(kind, str) and kind in _KINDS:
            raise refusal(_KINDS[kind], path)
        if part.get("images"):
            raise refusal("Images", f"{path}[{number}].images")
        for nested in _NESTED:
            _look(part.get(nested), f"{path}[{number}].{nested}")
