"""Writing a model that llama.cpp's loader is content with."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, PoolingType
from numpy.typing import NDArray

from flexserve.testing.architectures.loading import Loader
from flexserve.testing.architectures.parameters import (
    COMMON,
    ON_DEMAND,
    PARTICULAR,
    RANK_HEAD,
    SHAPES,
    TOKENIZERS,
    UNMADE,
    Parameters,
    Value,
)
from flexserve.testing.architectures.tokens import write_tokens

_F32, _Q8, _Q4 = GGMLQuantizationType.F32, GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0
_STEPS = 800  # questions to the loader at most
_PATIENCE = 120  # seconds for one model, on a busy machine
_KEY = re.compile(r"key not found in model: [\w-]+\.([\w.]+)")
_SHAPE = re.compile(r"tensor '([^']+)' has wrong shape; expected\s+([\d, ]+?), got")
_TENSOR = re.compile(r"(?:missing )?tensor '([^']+)'")
# Matrices in these are small, or read by kernels that take floats only.
_FLOATS = re.compile(
    r"norm|ssm_|time_|shortconv|bias$|gate_inp|rope|lerp|pos_embd|position|token_types|exp_probs|altup|laurel"
    r"|per_layer|conv|_rel_b|attn_sinks|scale|wkv|cls|layer_out|dense"
)


class UnmakeableError(Exception):
    """No model of an architecture can be made; the text says why."""


def make_model(
    architecture: str,
    path: Path,
    *,
    seed: int = 0,
    parameters: Parameters | None = None,
    quantised: bool = True,
) -> None:
    """Write a model of `architecture` to `path`; the same arguments give the same bytes.

    `parameters` go before those of the tables, by their names without the architecture's; None
    leaves one out. Matrices are Q8_0 and Q4_0, of which llama.cpp's results depend a little on how many
    tokens it computes at once, or (not `quantised`) floats. Takes about a second, in a process of its
    own: loaders of some architectures abort. Raises UnmakeableError, and no file is left then.
    """
    job = json.dumps([architecture, str(path), seed, dict(parameters or {}), quantised])
    _refuse(architecture, _in_a_process([job], path.parent)[0])


def make_models(architectures: Sequence[str], folder: Path, *, quantised: bool = True) -> dict[str, str]:
    """Write a model NAME.gguf of each architecture to `folder`; return why there is none of some."""
    jobs = [json.dumps([name, str(folder / f"{name}.gguf"), 0, {}, quantised]) for name in architectures]
    answers = _in_a_process(jobs, folder)
    return {name: answer for name, answer in zip(architectures, answers, strict=True) if answer}


def _refuse(architecture: str, problem: str) -> None:
    if problem:
        raise UnmakeableError(f"{architecture}: {problem}")


def _in_a_process(jobs: Sequence[str], folder: Path) -> list[str]:
    """Have models made by another process; return what is wrong with each ("": nothing)."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "flexserve.testing.architectures.making"]
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    done = subprocess.run(
        command,
        input="\n".join(jobs),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=_PATIENCE * len(jobs),
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def _work() -> None:
    """Do the jobs that come on standard input, each in a fork that may die."""
    for line in sys.stdin.read().splitlines():
        readable, writable = os.pipe()
        child = os.fork()
        if not child:
            os.close(readable)
            os.write(writable, json.dumps(_attempt(*json.loads(line))).encode()[:4096])
            os._exit(0)
        os.close(writable)
        with open(readable, "rb") as pipe:
            answer = pipe.read().decode()
        _, status = os.waitpid(child, 0)
        if not answer:
            Path(json.loads(line)[1]).unlink(missing_ok=True)
            answer = json.dumps(f"llama.cpp's loader dies of it (signal {os.WTERMSIG(status)})")
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


def _attempt(
    architecture: str, path: str, seed: int, parameters: dict[str, Value | None], quantised: bool
) -> str:
    """Make a model in this process; return what went wrong."""
    if architecture in UNMADE:
        return UNMADE[architecture]
    try:
        recipe = _Recipe(architecture, parameters)
        recipe.complete(Path(path))
        recipe.write(Path(path), seed, quantised)
        if problem := Loader().problem(Path(path)):
            return problem
    except Exception as error:  # whatever it is, the other models are made
        Path(path).unlink(missing_ok=True)
        return f"{type(error).__name__}: {error}" if not isinstance(error, UnmakeableError) else str(error)
    return ""


class _Recipe:
    """Parameters and shapes of tensors, which grow until the loader is content."""

    def __init__(self, architecture: str, parameters: Parameters) -> None:
        self._architecture = architecture
        self._fixed = {**COMMON, **PARTICULAR.get(architecture, {}), **parameters}
        self._parameters = dict(self._fixed)
        shapes = dict(SHAPES.get(architecture, {}))
        if self._fixed.get("pooling_type") == PoolingType.RANK:
            shapes |= RANK_HEAD
        self._shapes = {name: list(shape) for name, shape in shapes.items()}

    def complete(self, path: Path) -> None:
        """Ask the loader what is missing, until nothing is. Raises UnmakeableError. Uses the place `path`."""
        loader = Loader()
        try:
            for _ in range(_STEPS):
                self._write_hollow(path)
                problem = loader.problem(path)
                if not problem:
                    return
                self._mend(problem)
        finally:
            path.unlink(missing_ok=True)
        raise UnmakeableError(f"not content after {_STEPS} answers")

    def _mend(self, problem: str) -> None:
        """Add what the loader misses. Raises UnmakeableError for what it says besides."""
        if found := _KEY.search(problem):
            key = found[1]
            if self._parameters.get(key) is not None or key not in ON_DEMAND:
                raise UnmakeableError(f"no value for parameter {key!r} suits the loader")
            self._parameters[key] = ON_DEMAND[key]
        elif found := _SHAPE.search(problem):
            shape = _trimmed([int(size) for size in found[2].split(",")])
            if self._shapes.get(found[1]) == shape:
                raise UnmakeableError(problem)
            self._shapes[found[1]] = shape
        elif found := _TENSOR.search(problem):
            if found[1] in self._shapes:
                raise UnmakeableError(problem)
            self._shapes[found[1]] = self._like(found[1])
        elif "must be > 0" in problem and "expert_count" not in self._parameters:
            self._parameters.update({name: ON_DEMAND[name] for name in ("expert_count", "expert_used_count")})
        else:
            raise UnmakeableError(problem)

    def _like(self, name: str) -> list[int]:
        """Return the shape of the tensor of that name in an earlier block: a guess that saves a question."""
        block = re.match(r"(.*blk\.)(\d+)(\..*)", name)
        if block:
            for earlier in range(int(block[2]) - 1, -1, -1):
                if shape := self._shapes.get(f"{block[1]}{earlier}{block[3]}"):
                    return shape
        return [1]

    # ---- files -----------------------------------------------------------------------------------

    def _header(self, path: Path) -> GGUFWriter:
        writer = GGUFWriter(path, self._architecture)
        writer.add_name(f"random {self._architecture}")
        writer.add_type("model")
        for key, value in self._parameters.items():
            if value is not None:
                _add(writer, key[1:] if key[0] == "/" else f"{self._architecture}.{key}", value)
        size = write_tokens(writer, TOKENIZERS.get(self._architecture, "llama"))
        if "vocab_size" not in self._parameters:
            writer.add_uint32(f"{self._architecture}.vocab_size", size)
        return writer

    def _write_hollow(self, path: Path) -> None:
        """Write the file with a hole for weights: the loader looks at names, kinds and shapes first."""
        writer, size = self._header(path), 0
        for name, shape in (self._shapes or {"none": [1]}).items():
            elements = math.prod(shape)
            writer.add_tensor_info(name, shape[::-1], np.dtype(np.float32), 4 * elements)
            size += -(-4 * elements // 32) * 32
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        os.truncate(path, -(-path.stat().st_size // 32) * 32 + size)

    def write(self, path: Path, seed: int, quantised: bool) -> None:
        """Write the file with its weights."""
        writer = self._header(path)
        for name, shape in self._shapes.items():
            kind, data = _kind(name, shape) if quantised else _F32, _random(name, shape, seed)
            if kind is _F32:
                writer.add_tensor(name, data)
            else:
                writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _kind(name: str, shape: Sequence[int]) -> GGMLQuantizationType:
    if len(shape) < 2 or shape[0] % 32 or _FLOATS.search(name):
        return _F32
    return _Q4 if "ffn" in name else _Q8  # both are repacked by llama.cpp where the CPU can


def _random(name: str, shape: Sequence[int], seed: int) -> NDArray[np.float32]:
    """Return weights that keep signals of about their size, so that logits are spread and finite."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    data = rng.standard_normal(tuple(reversed(shape)))
    if "norm" in name and name.endswith("weight") and len(shape) <= 2:
        data = 1.0 + 0.1 * data
    elif name.endswith("ssm_a"):
        data = -np.exp(0.3 * data)
    elif len(shape) == 1 or name.endswith("bias"):
        data *= 0.1
    else:
        data *= (4.0 if name == "output.weight" else 1.0) / math.sqrt(shape[0])
    return data.astype(np.float32)


def _trimmed(shape: list[int]) -> list[int]:
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _add(writer: GGUFWriter, key: str, value: Value) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


if __name__ == "__main__":
    _work()
