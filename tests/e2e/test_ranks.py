"""Ranks of a real secure world: those of plain llama.cpp, by a reranker of random weights."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from library import Library
from llama_cpp import llama_cpp as lib

from flexserve.errors import CallerError
from flexserve.harness.worlds import DrivenWorld
from flexserve.testing.architectures import make_model

pytestmark = pytest.mark.engine

QUERY = "bade fo ge"
TEXTS = ["lami su bade", "ge", "fo fo fo lami su bade ge fo lami su", "bade fo ge"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks") / "reranker.gguf"
    make_model("bert", path, parameters={"pooling_type": lib.LLAMA_POOLING_TYPE_RANK}, quantised=False)
    return path


class Plain:
    """Plain llama.cpp with a reranker."""

    def __init__(self, path: Path) -> None:
        self._model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        self._vocabulary = lib.llama_model_get_vocab(self._model)
        settings = lib.llama_context_default_params()
        settings.embeddings, settings.pooling_type = True, lib.LLAMA_POOLING_TYPE_RANK
        settings.n_ctx = settings.n_batch = settings.n_ubatch = 256
        settings.n_threads = settings.n_threads_batch = 1
        self._context = lib.llama_init_from_model(self._model, settings)

    def close(self) -> None:
        lib.llama_free(self._context)
        lib.llama_model_free(self._model)

    def rank(self, query: str, text: str) -> float:
        """Return the rank of a text in the form in which llama-server asks such a model."""
        parting = [int(lib.llama_vocab_sep(self._vocabulary))]
        begin = [int(lib.llama_vocab_bos(self._vocabulary))]
        tokens = [*begin, *self._tokens(query), *parting, *self._tokens(text)]
        array = (lib.llama_token * len(tokens))(*tokens)
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        assert lib.llama_encode(self._context, lib.llama_batch_get_one(array, len(tokens))) == 0
        return float(lib.llama_get_embeddings_seq(self._context, 0)[0])

    def _tokens(self, text: str) -> list[int]:
        array, data = (lib.llama_token * 64)(), text.encode()
        count = lib.llama_tokenize(self._vocabulary, data, len(data), array, 64, False, False)
        return [int(array[at]) for at in range(count)]


def ranks(world: DrivenWorld, model: str, query: str, texts: list[str]) -> list[float]:
    found = world.vectors(world.start_embedding(model, texts, query))
    return [ctypes.c_float.from_buffer_copy(rank).value for rank in found]


def test_ranks_are_those_of_plain_llama_cpp_before_and_after_a_recall(library: Library, file: Path) -> None:
    model = library.add(file, "reranker")
    plain = Plain(file)
    expected = [plain.rank(QUERY, text) for text in TEXTS]
    plain.close()
    assert len(set(expected)) == len(TEXTS)
    with library.open(context=256) as world:
        world.try_model(model)
        (status,) = [one for one in world.status().models if one.name == model]
        assert status.abilities is not None
        can = status.abilities
        assert (can.ranks, can.vectors, can.text) == (True, False, False)
        first = ranks(world, model, QUERY, TEXTS)
        assert np.allclose(first, expected, atol=2e-3)
        world.recall(None)
        assert ranks(world, model, QUERY, TEXTS) == first
        with pytest.raises(CallerError, match="makes no vectors"):
            world.vectors(world.start_embedding(model, TEXTS))


def test_a_model_that_generates_ranks_nothing(world: DrivenWorld, tiny: str) -> None:
    with pytest.raises(CallerError, match="does not rank"):
        ranks(world, tiny, QUERY, TEXTS)


def test_a_text_may_be_tokens(world: DrivenWorld, tiny: str) -> None:
    text, tokens = world.vectors(world.start_embedding(tiny, ["Once", [12, 13, "Once"]]))
    assert len(text) == len(tokens)
    assert text != tokens
    with pytest.raises(CallerError, match="no token of this model"):
        world.vectors(world.start_embedding(tiny, [[1 << 30]]))
