"""What the rules of headers say of a header that a test makes up."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import pytest

from flexserve.errors import CallerError
from flexserve.trusted.store.architecture import check_architecture

Values = Mapping[str, object]
F32 = 0


@dataclasses.dataclass(frozen=True)
class Tensor:
    name: str
    type: int = F32
    shape: tuple[int, ...] = (32,)


def check(
    architecture: str,
    values: Values,
    tensors: Sequence[Tensor] = (),
    vocabulary: Values = MappingProxyType({}),
) -> None:
    """Check a header of `values` under the architecture's name, and `vocabulary` under the tokenizer's."""
    metadata = {f"{architecture}.{key}": value for key, value in values.items()}
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in vocabulary.items()}
    check_architecture(architecture, metadata, tensors)


def complaint(
    architecture: str,
    values: Values,
    tensors: Sequence[Tensor] = (),
    vocabulary: Values = MappingProxyType({}),
) -> str:
    """Return what is said of a header that is refused."""
    with pytest.raises(CallerError) as caught:
        check(architecture, values, tensors, vocabulary)
    assert caught.value.code == "bad_gguf"
    assert caught.value.hint
    return caught.value.message
