"""A LoRA adapter's header, checked against the model that it changes.

llama.cpp refuses some of what does not fit, aborts its process on the rest, and ignores changes of norms.
The rules below are those of its sources (src/llama-adapter.cpp and the products in src/llama-graph.cpp, of
the version that is pinned). What they let through is computed once in a process of its own when an
adapter is added, as for models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from flexserve.trusted.store.architecture import Tensor
from flexserve.trusted.store.ggml_types import TENSOR_TYPES
from flexserve.trusted.store.values import bad

_SUFFIXES = (".lora_a", ".lora_b")
_TYPES = frozenset({"F32", "F16", "BF16", "Q8_0"})  # those that llama.cpp's converter writes
_EMBEDDING = "token_embd.weight"
_ALORA = "adapter.alora.invocation_tokens"
_MATRIX = 2  # dimensions

Shape = tuple[int, ...]


def check_adapter(
    metadata: Mapping[str, object],
    tensors: Sequence[Tensor],
    base_architecture: str,
    base_tensors: Sequence[Tensor],
) -> None:
    """Raise CallerError (code "bad_gguf") for an adapter that does not fit the model it is said to change."""
    if metadata.get("adapter.type") != "lora":
        raise bad("it is an adapter, and none of LoRA")
    architecture = metadata.get("general.architecture")
    if architecture != base_architecture:
        raise bad(f"it changes models of {str(architecture)[:64]!r}, and the model is {base_architecture!r}")
    if _ALORA in metadata:
        raise bad("it works behind certain tokens only (aLoRA), which is not supported")
    alpha = metadata.get("adapter.lora.alpha")
    if not isinstance(alpha, float) or not math.isfinite(alpha) or alpha < 0:
        raise bad("its adapter.lora.alpha is none")
    shapes = {tensor.name: tensor.shape for tensor in base_tensors}
    for name, (a, b) in _pairs(tensors).items():
        if name not in shapes:
            raise bad(f"it changes tensor {name!r}, which the model has not")
        if len(shapes[name]) < _MATRIX:
            raise bad(f"it changes tensor {name!r}, which is no matrix")
        if not _fits(name, shapes[name], a.shape, b.shape):
            raise bad(f"the shapes of its changes to tensor {name!r} are not those of the model")


def _pairs(tensors: Sequence[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the two factors of each change, by the name of the tensor that they change."""
    factors: dict[str, Tensor] = {}
    names = set()
    for tensor in tensors:
        name, suffix = tensor.name[:-7], tensor.name[-7:]
        if suffix not in _SUFFIXES or any(other in name for other in _SUFFIXES):
            raise bad(f"it changes tensor {tensor.name!r} by no product of two factors")
        if TENSOR_TYPES[tensor.type][0] not in _TYPES:
            raise bad(f"tensor {tensor.name!r} is of a type that no adapter has")
        factors[tensor.name] = tensor
        names.add(name)
    for name in names:
        for suffix in _SUFFIXES:
            if name + suffix not in factors:
                raise bad(f"tensor {name + suffix!r} is missing")
    return {name: (factors[name + ".lora_a"], factors[name + ".lora_b"]) for name in sorted(names)}


def _fits(name: str, weight: Shape, a: Shape, b: Shape) -> bool:
    """Return whether the product of the factors `a` and `b` has the shape of `weight`.

    Shapes have the fastest dimension first: a weight is (in, out), its factors are (in, rank) and
    (rank, out), each with a dimension more where it is one of experts. Of an embedding, (width, tokens), rows
    are gathered: (rank, tokens) and (rank, width).
    """
    weight, a, b = _trimmed(weight), _trimmed(a), _trimmed(b)
    if name == _EMBEDDING:
        return len(weight) == _MATRIX and a == (b[0], weight[1]) and b == (b[0], weight[0])
    rank = b[0]
    return a == (weight[0], rank, *weight[2:]) and b == (rank, weight[1], *weight[2:])


def _trimmed(shape: Shape) -> Shape:
    """Return `shape` as that of a matrix at least, without what it says of dimensions of one element."""
    count = max((place for place, size in enumerate(shape, 1) if size > 1), default=0)
    return (*shape, 1, 1)[: max(count, _MATRIX)]
