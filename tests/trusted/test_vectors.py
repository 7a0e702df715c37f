"""Vectors of every encoder, and of pooled generators, are those of plain llama.cpp, and no longer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
from families import Families
from llama_cpp import llama_cpp as lib

from flexserve.errors import CallerError
from flexserve.testing.architectures import ENCODERS
from flexserve.testing.architectures.parameters import Parameters

pytestmark = pytest.mark.engine

_MEAN, _CLS, _LAST = lib.LLAMA_POOLING_TYPE_MEAN, lib.LLAMA_POOLING_TYPE_CLS, lib.LLAMA_POOLING_TYPE_LAST


@dataclasses.dataclass(frozen=True)
class Kind:
    """A model that makes vectors."""

    family: str
    variant: str = ""
    parameters: Parameters | None = None
    pooling: int = _MEAN
    width: int = 64


_ENCODERS = [Kind(name, pooling=_CLS if name == "bert" else _MEAN) for name in ENCODERS]
# Some files leave out what llama.cpp does not need: that attention sees the whole text.
_UNSAID = [
    Kind(name, "-without-a-word-on-attention", {"attention.causal": None}, _CLS if name == "bert" else _MEAN)
    for name in ("bert", "nomic-bert", "jina-bert-v2", "modern-bert")
]
_GENERATORS = [
    Kind("llama"),
    Kind("qwen3", "-of-the-last-token", {"pooling_type": _LAST}, _LAST),
    Kind("llama", "-of-the-first-token", {"pooling_type": _CLS}, _CLS),
    Kind("llama", "-that-sees-ahead", {"attention.causal": False, "pooling_type": _MEAN}),
    Kind("lfm2", "-with-short-vectors", {"embedding_length_out": 16, "pooling_type": _MEAN}, width=16),
    Kind("gemma3"),
    Kind("mamba"),
    Kind("llada"),
]
_KINDS = [*_ENCODERS, *_UNSAID, *_GENERATORS]
TEXT = "bade fo ge, lami su? " * 30


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Families]:
    plain = sorted({kind.family for kind in _KINDS if not kind.parameters})
    with Families(tmp_path_factory.mktemp("vectors"), plain) as found:
        yield found


@pytest.mark.parametrize("kind", _KINDS, ids=[kind.family + kind.variant for kind in _KINDS])
def test_vectors_are_those_of_plain_llama_cpp(families: Families, kind: Kind) -> None:
    families.open(kind.family, kind.variant, kind.parameters)
    long = families.tokens(TEXT)
    assert len(long) > 128, "it has to be longer than what is computed at once of a text read forwards"
    start = long[5:25]
    first, again, short = families.vectors([long, long, start])
    assert first.shape == (kind.width,)
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-5)
    assert np.array_equal(first, again)
    assert float(first @ families.plain_vector(long, kind.pooling)) >= 0.9999
    assert float(short @ families.plain_vector(start, kind.pooling)) >= 0.9999
    assert float(first @ short) < 0.9999, "a vector that is the same for all texts would prove nothing"


def test_a_model_that_turns_texts_into_texts_makes_no_vectors(families: Families) -> None:
    families.open("t5", sequences=1)  # llama.cpp's graphs for it take one at a time
    with pytest.raises(CallerError, match="makes no vectors"):
        families.vectors([[300, 301, 302]])
