"""A model with more layers that add nothing: as slow as a larger one, with the same words to the letter.

The new layers have weights of the model's own, but for the matrices behind attention and behind the
feed-forward network, which are zeros. So what is measured of a pair of models, one of which guesses for the
other, is the best case: each guess is right, however large the larger one is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFWriter, ReaderTensor
from gguf.constants import GGUFValueType

from flexserve.errors import CallerError

_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
_SILENT = ("attn_output.weight", "ffn_down.weight")
_OWN = ("general.architecture", "GGUF.")  # the writer writes them itself


def write_deeper(source: Path, path: Path, layers: int) -> None:
    """Write to `path` the GGUF `source` with `layers` layers, of which the last ones add nothing.

    Works for architectures whose layers are all alike and add up what `attn_output` and `ffn_down` bring, as
    llama's. Raises CallerError where there are that many layers already, OSError as files do.
    """
    reader = GGUFReader(source)
    architecture = str(reader.fields["general.architecture"].contents())
    had = int(reader.fields[f"{architecture}.block_count"].contents())
    if layers <= had:
        raise CallerError(f"The model has {had} layers already.", hint="Ask for more of them.")
    writer = GGUFWriter(path, architecture)
    for field in reader.fields.values():
        if not field.name.startswith(_OWN):
            more = field.name == f"{architecture}.block_count"
            inner = field.types[1] if field.types[0] is GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, layers if more else field.contents(), field.types[0], inner)
    for name, tensor, silent in _tensors(reader, had, layers):
        data = np.zeros_like(tensor.data) if silent else tensor.data
        writer.add_tensor(name, data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(reader: GGUFReader, had: int, layers: int) -> Iterator[tuple[str, ReaderTensor, bool]]:
    """Yield names, what is written under them, and whether zeros are instead."""
    for tensor in reader.tensors:
        yield tensor.name, tensor, False
        found = _LAYER.fullmatch(tensor.name)
        if found is not None:
            number, part = int(found[1]), found[2]
            for copy in range(number + had, layers, had):
                yield f"blk.{copy}.{part}", tensor, part in _SILENT
