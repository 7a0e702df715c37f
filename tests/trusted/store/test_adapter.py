"""Adapters in the store, and what is refused of their headers; files that are no models."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from header_rules import Tensor
from sample_models import F32 as F32_VALUE
from sample_models import gguf_bytes, pair, quiet, string_pair, tensor

from flexserve.errors import CallerError, UnknownModelError
from flexserve.trusted.store import Store
from flexserve.trusted.store.adapter import check_adapter

F16, Q4_0, I32 = 1, 2, 26
BASE = (
    Tensor("token_embd.weight", Q4_0, (64, 100)),
    Tensor("blk.0.attn_q.weight", Q4_0, (64, 48)),
    Tensor("blk.0.attn_norm.weight", 0, (64,)),
    Tensor("blk.0.ffn_up_exps.weight", Q4_0, (64, 128, 8)),
)
METADATA = {
    "general.architecture": "llama",
    "general.type": "adapter",
    "adapter.type": "lora",
    "adapter.lora.alpha": 16.0,
}


def change(name: str, a: tuple[int, ...], b: tuple[int, ...], kind: int = F16) -> list[Tensor]:
    return [Tensor(f"{name}.lora_a", kind, a), Tensor(f"{name}.lora_b", kind, b)]


FITTING = change("blk.0.attn_q.weight", (64, 4), (4, 48))


def complaint(tensors: Sequence[Tensor], **metadata: object) -> str:
    changed = METADATA | {key.replace("_", "."): value for key, value in metadata.items()}
    with pytest.raises(CallerError) as caught:
        check_adapter(changed, tensors, "llama", BASE)
    assert caught.value.code == "bad_gguf"
    return caught.value.message


@pytest.mark.parametrize(
    "tensors",
    [
        FITTING,
        change("blk.0.attn_q.weight", (64, 4, 1), (4, 48, 1, 1)),
        change("blk.0.attn_q.weight", (64, 1), (1, 48)),
        change("blk.0.ffn_up_exps.weight", (64, 4, 8), (4, 128, 8)),
        change("token_embd.weight", (4, 100), (4, 64)),
    ],
)
def test_factors_whose_product_has_the_models_shape_are_taken(tensors: list[Tensor]) -> None:
    check_adapter(METADATA, tensors, "llama", BASE)


@pytest.mark.parametrize(
    "tensors",
    [
        change("blk.0.attn_q.weight", (60, 4), (4, 48)),
        change("blk.0.attn_q.weight", (64, 4), (4, 50)),
        change("blk.0.attn_q.weight", (64, 4), (5, 48)),
        change("blk.0.attn_q.weight", (64, 4, 2), (4, 48, 2)),
        change("blk.0.ffn_up_exps.weight", (64, 4), (4, 128)),
        change("blk.0.ffn_up_exps.weight", (64, 4, 7), (4, 128, 7)),
        change("token_embd.weight", (64, 4), (4, 100)),
    ],
)
def test_factors_of_other_shapes_are_refused(tensors: list[Tensor]) -> None:
    assert "shapes of its changes" in complaint(tensors)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (change("blk.9.attn_q.weight", (64, 4), (4, 48)), "which the model has not"),
        (change("blk.0.attn_norm.weight", (64, 1), (1, 1)), "which is no matrix"),
        (FITTING[:1], "lora_b' is missing"),
        (FITTING[1:], "lora_a' is missing"),
        ([*FITTING, Tensor("blk.0.attn_norm.weight")], "no product of two factors"),
        (change("blk.0.attn_q.weight.lora_a", (64, 4), (4, 48)), "no product of two factors"),
        (change("blk.0.attn_q.weight", (64, 4), (4, 48), I32), "of a type that no adapter has"),
    ],
)
def test_tensors_that_llama_cpp_would_refuse_ignore_or_die_of_are_refused(
    tensors: list[Tensor], reason: str
) -> None:
    assert reason in complaint(tensors)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"adapter_type": "ia3"}, "none of LoRA"),
        ({"general_architecture": "qwen2"}, "the model is 'llama'"),
        ({"adapter_lora_alpha": float("nan")}, "alpha"),
        ({"adapter_lora_alpha": 16}, "alpha"),
        ({"adapter_lora_alpha": None}, "alpha"),
    ],
)
def test_adapters_of_other_kinds_and_models_are_refused(metadata: dict[str, object], reason: str) -> None:
    assert reason in complaint(FITTING, **metadata)


def test_an_adapter_that_works_behind_certain_tokens_only_is_refused() -> None:
    with pytest.raises(CallerError, match="aLoRA"):
        check_adapter(METADATA | {"adapter.alora.invocation_tokens": [1]}, FITTING, "llama", BASE)


# ---- in the store ----------------------------------------------------------------------------------


def adapter_bytes(*, kind: str = "adapter", architecture: str = "llama") -> bytes:
    """Return an adapter of the sample model, whose embedding it changes."""
    pairs = (
        string_pair("general.architecture", architecture),
        string_pair("general.type", kind),
        string_pair("adapter.type", "lora"),
        pair("adapter.lora.alpha", F32_VALUE, struct.pack("<f", 8.0)),
    )
    tensors = (
        tensor("token_embd.weight.lora_a", (4, 2), 0, 0),
        tensor("token_embd.weight.lora_b", (4, 32), 0, 32),
    )
    return gguf_bytes(pairs=pairs, tensors=tensors, data=bytes(32 + 4 * 4 * 32))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    path = tmp_path / "adapter.gguf"
    path.write_bytes(adapter_bytes())
    return path


@pytest.fixture
def base(tmp_path: Path, store: Store) -> Path:
    path = tmp_path / "base.gguf"
    path.write_bytes(gguf_bytes())
    store.add(path, "base", quiet)
    return path


def test_an_adapter_is_sealed_with_the_name_of_its_model_and_its_scale(
    store: Store, base: Path, adapter: Path
) -> None:
    added = store.add(adapter, "changed", quiet, adapter_of="base", scale=0.5)
    [of_model] = [manifest for manifest in store.list() if manifest.name == "base"]
    assert added.adapts is not None
    assert (added.adapts.name, added.adapts.digest, added.adapts.scale) == ("base", of_model.digest, 0.5)
    assert added.context_length == of_model.context_length
    assert store.files_of(added) == [added, of_model]
    assert store.files_of(of_model) == [of_model]
    with store.open("changed") as sealed, store.open("base") as changed:
        assert len(sealed.header(changed.header()).tensors) == 2
    store.verify("changed", quiet)


def test_another_model_under_the_name_is_not_changed_and_the_same_one_is_again(
    store: Store, base: Path, adapter: Path, source: Path
) -> None:
    added = store.add(adapter, "changed", quiet, adapter_of="base")
    store.remove("base")
    with pytest.raises(UnknownModelError) as caught:
        store.files_of(added)
    assert caught.value.code == "base_missing"
    store.add(source, "base", quiet)
    with pytest.raises(UnknownModelError):
        store.files_of(added)
    store.remove("base")
    again = store.add(base, "base", quiet)
    assert store.files_of(added) == [added, again]


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 101.0, -101.0])
def test_a_scale_that_none_has_is_refused(store: Store, base: Path, adapter: Path, scale: float) -> None:
    with pytest.raises(CallerError, match="scale"):
        store.add(adapter, "changed", quiet, adapter_of="base", scale=scale)
    assert [manifest.name for manifest in store.list()] == ["base"]


def test_an_adapter_of_an_adapter_is_refused(store: Store, base: Path, adapter: Path) -> None:
    store.add(adapter, "changed", quiet, adapter_of="base")
    with pytest.raises(CallerError) as caught:
        store.add(adapter, "twice", quiet, adapter_of="changed")
    assert "base" in caught.value.hint


def test_a_model_is_no_adapter(store: Store, base: Path) -> None:
    with pytest.raises(CallerError, match="no LoRA adapter"):
        store.add(base, "changed", quiet, adapter_of="base")


@pytest.mark.parametrize(
    ("written", "message", "hint"),
    [
        (adapter_bytes(), "LoRA adapter", "--adapter-of"),
        (adapter_bytes(kind="mmproj"), "mmproj", "the model's own GGUF"),
        (adapter_bytes(kind="model", architecture="clip"), "mmproj", "the model's own GGUF"),
        (adapter_bytes(kind="model", architecture="controlvector"), "control vector", "Add a model"),
        (adapter_bytes(kind="imatrix"), "importance matrix", "the model's own GGUF"),
    ],
)
def test_a_file_that_is_no_model_is_refused_by_what_it_is(
    store: Store, tmp_path: Path, written: bytes, message: str, hint: str
) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(written)
    with pytest.raises(CallerError, match=message) as caught:
        store.add(path, "other", quiet)
    assert hint in caught.value.hint
    assert store.list() == []
