"""Choosing the next token: llama.cpp's own sampler chain, within a grammar where one is asked for."""

from __future__ import annotations

import ctypes
import secrets

import numpy as np
from llama_cpp import llama_cpp as lib
from numpy.typing import NDArray

from flexserve.protocol.messages import Sampling
from flexserve.trusted.engine.context import Context
from flexserve.trusted.text.grammar import Confinement

_SEEDS = 1 << 32  # llama.cpp's generator takes 32 bits
_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Sampler:
    """A sampler chain for one request: top-p, temperature, draw; or greedy at temperature 0.

    `confinement` says what the text may be.
    """

    def __init__(self, sampling: Sampling, confinement: Confinement | None = None) -> None:
        self._confinement = confinement
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        if sampling.temperature == 0:
            lib.llama_sampler_chain_add(self._chain, lib.llama_sampler_init_greedy())
            return
        seed = secrets.randbelow(_SEEDS) if sampling.seed is None else sampling.seed % _SEEDS
        lib.llama_sampler_chain_add(self._chain, lib.llama_sampler_init_top_p(sampling.top_p, 1))
        lib.llama_sampler_chain_add(self._chain, lib.llama_sampler_init_temp(sampling.temperature))
        lib.llama_sampler_chain_add(self._chain, lib.llama_sampler_init_dist(seed))

    def choose(self, context: Context, index: int, logits: NDArray[np.float32]) -> int:
        """Return the next token: `logits`, shape (vocabulary,), are output `index` of the last decode.

        Raises CallerError when the answer can no longer be confined.
        """
        token = int(lib.llama_sampler_sample(self._chain, context.address, index))
        if self._confinement is not None and not self._confinement.admits(token):
            admitted = self._confinement.admitted()
            candidates = Candidates(admitted, logits[admitted])
            lib.llama_sampler_apply(self._chain, ctypes.byref(candidates.array))
            token = candidates.selected
        return token

    def accept(self, token: int) -> None:
        """Go on behind `token`, which is part of the answer. Raises CallerError as `choose`."""
        if self._confinement is not None:
            self._confinement.accept(token)

    def close(self) -> None:
        """Free the chain. Always safe."""
        if self._chain:
            lib.llama_sampler_free(self._chain)
            self._chain = None


class Candidates:
    """Tokens with their logits, as samplers take them."""

    def __init__(self, tokens: NDArray[np.intp], logits: NDArray[np.float32]) -> None:
        self.data = np.zeros(len(logits), _TOKEN_DATA)
        self.data["id"], self.data["logit"] = tokens, logits
        pointer = self.data.ctypes.data_as(ctypes.POINTER(lib.llama_token_data))
        self.array = lib.llama_token_data_array(pointer, len(logits), -1, False)

    @property
    def selected(self) -> int:
        """The token that a sampler chain chose."""
        return int(self.array.data[self.array.selected].id)


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the natural-log probabilities of `logits`, shape (vocabulary,)."""
    shifted = logits.astype(np.float64) - float(logits.max())
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))
