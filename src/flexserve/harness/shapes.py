"""The shapes of the models that are benchmarked and tested: real ones, and small ones of many families."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """What a GGUF file's metadata says of a model's size; lengths in elements."""

    name: str
    architecture: str  # as llama.cpp calls it
    layers: int
    width: int
    ffn: int  # of one expert, where there are experts
    heads: int
    kv_heads: int
    vocabulary: int
    context: int  # tokens
    head_width: int = 0  # 0: width / heads
    tied: bool = False  # the output matrix is the token embedding
    experts: int = 0  # 0: a dense model
    experts_used: int = 0

    @property
    def q_width(self) -> int:
        """Elements of all query heads together."""
        return self.heads * self.head_size

    @property
    def kv_width(self) -> int:
        """Elements of all key (or value) heads together."""
        return self.kv_heads * self.head_size

    @property
    def head_size(self) -> int:
        """Elements of one head."""
        return self.head_width or self.width // self.heads


def _small(name: str, architecture: str, **changes: int | bool) -> Shape:
    base = Shape(
        name=name,
        architecture=architecture,
        layers=4,
        width=256,
        ffn=512,
        heads=4,
        kv_heads=2,
        vocabulary=1024,
        context=1024,
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]  # counts are ints, `tied` is a bool


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("tinyllama-1.1b", "llama", 22, 2048, 5632, 32, 4, 32_000, 2048),
        Shape("qwen2.5-0.5b", "qwen2", 24, 896, 4864, 14, 2, 151_936, 32_768, tied=True),
        Shape("llama-3.2-3b", "llama", 28, 3072, 8192, 24, 8, 128_256, 131_072, head_width=128, tied=True),
        # Large enough that memory and loading count, small enough to be made and run in seconds.
        Shape("medium-llama", "llama", 12, 1024, 2816, 16, 4, 4096, 2048),
        Shape("medium-qwen2", "qwen2", 12, 768, 2304, 12, 4, 4096, 2048),
        _small("small-llama", "llama"),
        _small("small-llama-tied", "llama", tied=True),
        _small("small-qwen2", "qwen2"),
        _small("small-qwen3", "qwen3", head_width=64, heads=8),
        _small("small-gemma2", "gemma2", head_width=64, tied=True),
        _small("small-phi3", "phi3", kv_heads=4),
        _small("small-moe", "qwen3moe", head_width=64, experts=8, experts_used=2, ffn=256),
    )
}
