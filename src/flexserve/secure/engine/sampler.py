"""Choosing the next token: llama.cpp's own sampler chain."""

from __future__ import annotations

import secrets

import numpy as np
from llama_cpp import llama_cpp as lib
from numpy.typing import NDArray

from flexserve.secure.engine.context import Context
from flexserve.world.messages import Sampling

_SEEDS = 1 << 32  # llama.cpp's generator takes 32 bits


class Sampler:
    """A sampler chain for one request: top-p, temperature, draw; or greedy at temperature 0."""

    def __init__(self, sampling: Sampling) -> None:
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        if sampling.temperature == 0:
            lib.llama_sampler_chain_add(self._chain, lib.llama_sampler_init_greedy())
            return
        seed = secrets.randbelow(_SEEDS) if sampling.seed is None else sampling.seed % _SEEDS
        lib.llama_sampler_chain_add(self._chain, lib.llama_sampler_init_top_p(sampling.top_p, 1))
        lib.llama_sampler_chain_add(self._chain, lib.llama_sampler_init_temp(sampling.temperature))
        lib.llama_sampler_chain_add(self._chain, lib.llama_sampler_init_dist(seed))

    def choose(self, context: Context) -> int:
        """Return the next token, given the logits of the last decode."""
        return int(lib.llama_sampler_sample(self._chain, context.address, -1))

    def close(self) -> None:
        """Free the chain. Always safe."""
        if self._chain:
            lib.llama_sampler_free(self._chain)
            self._chain = None


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the natural-log probabilities of `logits`, shape (vocabulary,)."""
    shifted = logits.astype(np.float64) - float(logits.max())
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))
