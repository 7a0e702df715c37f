"""What the hooks report while llama.cpp opens a file of weights: buffers, and where each tensor is."""

from __future__ import annotations

from flexserve.errors import InternalError
from flexserve.platforms.ports import Arena
from flexserve.trusted.engine import abi


class Placed:
    """A weight tensor: address of its struct, bytes of its GGUF form."""

    __slots__ = ("size", "struct", "tensor")

    def __init__(self, tensor: int, size: int) -> None:
        self.tensor, self.size = tensor, size
        self.struct = abi.Tensor.from_address(tensor)

    @property
    def name(self) -> str:
        """Its name."""
        return bytes(self.struct.name).decode()

    @property
    def address(self) -> int:
        """Where its elements are."""
        return int(self.struct.data)


class Opening:
    """Collects what the hooks report while llama.cpp opens a model or an adapter (a BufferOwner)."""

    lazy = True
    watches = False

    def __init__(self, *, hollow: bool = True) -> None:
        """`hollow`: see BufferOwner."""
        self.hollow = hollow
        self.buffers: list[tuple[str, Arena, int]] = []
        self.tensors: list[Placed] = []

    def adopt(self, kind: str, _address: int, arena: Arena, size: int) -> None:
        """Record a weight buffer."""
        self.buffers.append((kind, arena, size))

    def drop(self, _address: int) -> None:
        """A model is freed whole."""

    def place(self, tensor: int, size: int) -> None:
        """Record where a tensor lives."""
        self.tensors.append(Placed(tensor, size))

    def settle(self, _buffer: int, _tensor: int) -> None:
        """Nothing is watched."""

    def compute(self, _graph: int) -> int:
        """No graph runs while a model opens."""
        raise InternalError("llama.cpp computes while it opens a model.")
