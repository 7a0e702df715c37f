"""Synthetic models: llama.cpp runs every family in every format, and the weights are what they should be."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from jinja2.sandbox import ImmutableSandboxedEnvironment

from flexserve.harness.blocks import random_weights
from flexserve.harness.shapes import SHAPES
from flexserve.harness.synth import QUANTS, write_synthetic
from flexserve.harness.vocabulary import CHAT_TEMPLATE, make_vocabulary

pytestmark = pytest.mark.engine

SMALL = sorted(name for name in SHAPES if name.startswith("small-"))


@pytest.fixture(scope="module")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("synth") / "small.gguf"
    write_synthetic(path, SHAPES["small-llama"], "q4_0")
    return path


@pytest.mark.parametrize(("name", "quant"), list(itertools.product(SMALL, QUANTS)))
def test_llama_cpp_loads_it_and_generates_varied_text(name: str, quant: str, tmp_path: Path):
    llama_cpp = pytest.importorskip("llama_cpp")
    path = tmp_path / "model.gguf"
    write_synthetic(path, SHAPES[name], quant)
    model = llama_cpp.Llama(str(path), n_ctx=128, n_threads=2, verbose=False)
    try:
        model.eval(model.tokenize(b"Kato bime wurafo."))
        chosen = []
        for _ in range(16):
            logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(model.ctx), (model.n_vocab(),))
            assert np.isfinite(logits).all()
            assert logits.std() > 1
            chosen.append(int(logits.argmax()))
            model.eval(chosen[-1:])
        assert len(set(chosen)) > 1, "it repeats one token for ever"
        assert min(chosen) >= make_vocabulary(SHAPES[name].vocabulary).unspoken
    finally:
        model.close()


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [
        (GGMLQuantizationType.F16, 0.42),  # its deviation is a power of two times a constant
        (GGMLQuantizationType.Q8_0, 0.02),
        (GGMLQuantizationType.Q4_0, 0.02),
        (GGMLQuantizationType.Q4_K, 0.02),
        (GGMLQuantizationType.Q6_K, 0.02),
    ],
)
def test_weights_have_mean_zero_and_the_deviation_asked_for(kind: GGMLQuantizationType, tolerance: float):
    sigma = 1 / 32
    encoded = random_weights(np.random.Generator(np.random.SFC64(1)), 256, 1024, kind, sigma)
    weights = dequantize(encoded, kind)
    assert weights.shape == (256, 1024)
    assert abs(weights.mean()) < 0.01 * sigma
    assert weights.std() == pytest.approx(sigma, rel=tolerance)
    strongest = np.linalg.svd(weights, compute_uv=False)[0]
    assert strongest < 1.2 * weights.std() * (np.sqrt(256) + np.sqrt(1024)), "the weights are not independent"


def test_rows_that_are_not_whole_blocks_are_refused():
    with pytest.raises(ValueError, match="whole blocks"):
        random_weights(np.random.default_rng(1), 1, 100, GGMLQuantizationType.Q4_0, 1.0)


def test_the_same_seed_gives_the_same_file(small_llama: Path, tmp_path: Path):
    again, other = tmp_path / "again.gguf", tmp_path / "other.gguf"
    write_synthetic(again, SHAPES["small-llama"], "q4_0")
    write_synthetic(other, SHAPES["small-llama"], "q4_0", seed=1)
    assert again.read_bytes() == small_llama.read_bytes()
    assert other.read_bytes() != small_llama.read_bytes()


def test_progress_ends_at_the_total(tmp_path: Path):
    seen: list[tuple[int, int]] = []
    write_synthetic(
        tmp_path / "m.gguf",
        SHAPES["small-llama"],
        "q8_0",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_an_interrupted_run_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")

    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_synthetic(path, SHAPES["small-llama"], "q4_0", progress=interrupt)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_unknown_quant_is_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(KeyError):
        write_synthetic(tmp_path / "m.gguf", SHAPES["small-llama"], "q3_x")
    assert list(tmp_path.iterdir()) == []


def test_the_mixed_format_gives_sensitive_matrices_six_bits(tmp_path: Path):
    path = tmp_path / "m.gguf"
    write_synthetic(path, SHAPES["small-llama"], "q4_k_m")
    kinds = {tensor.name: tensor.tensor_type for tensor in GGUFReader(path).tensors}
    assert kinds["output.weight"] is GGMLQuantizationType.Q6_K
    assert kinds["blk.0.attn_q.weight"] is GGMLQuantizationType.Q4_K
    assert {kinds[f"blk.{layer}.ffn_down.weight"] for layer in range(4)} >= {GGMLQuantizationType.Q6_K}
    assert kinds["blk.0.attn_norm.weight"] is GGMLQuantizationType.F32


def test_a_tied_model_has_no_output_matrix(tmp_path: Path):
    path = tmp_path / "m.gguf"
    write_synthetic(path, SHAPES["small-llama-tied"], "q4_0")
    assert "output.weight" not in {tensor.name for tensor in GGUFReader(path).tensors}


def test_made_up_words_are_one_token_each(small_llama: Path):
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(str(small_llama), vocab_only=True, verbose=False)
    vocabulary = make_vocabulary(SHAPES["small-llama"].vocabulary)
    words = [
        token
        for token in vocabulary.tokens[vocabulary.unspoken :]
        if token.startswith("▁") and len(token) > 1
    ]
    for word in words[:: len(words) // 20]:
        tokens = model.tokenize(word.replace("▁", " ").encode(), add_bos=False)
        assert vocabulary.tokens[tokens[-1]].endswith(word.lstrip("▁"))
        assert len(tokens) <= 2  # a leading space may stand alone
    model.close()


@pytest.mark.parametrize("size", [512, 1024, 32_000])
def test_a_vocabulary_has_the_size_asked_for_and_no_token_twice(size: int):
    vocabulary = make_vocabulary(size)
    assert len(vocabulary.tokens) == len(vocabulary.scores) == len(vocabulary.types) == size
    assert len(set(vocabulary.tokens)) == size


def test_a_vocabulary_too_small_for_the_bytes_is_refused():
    with pytest.raises(ValueError, match="512"):
        make_vocabulary(100)


def test_the_chat_template_renders_in_a_sandbox():
    template = ImmutableSandboxedEnvironment().from_string(CHAT_TEMPLATE)
    text = template.render(
        bos_token="<s>", messages=[{"role": "user", "content": "hi"}], add_generation_prompt=True
    )
    assert text == "<s><|user|>\nhi<|end|>\n<|assistant|>\n"
