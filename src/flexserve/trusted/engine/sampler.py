"""Choosing the next token: llama.cpp's own samplers, within a grammar where one is asked for."""

from __future__ import annotations

import ctypes
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexserve.errors import CallerError
from flexserve.protocol.sampling import Sampling
from flexserve.trusted.engine.library import lib
from flexserve.trusted.engine.vocabulary import Vocabulary
from flexserve.trusted.text.grammar import Confinement

_SEEDS = (1 << 32) - 1  # llama.cpp's generators take 32 bits, of which all ones mean a seed of its own
_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
_MIROSTAT_TOKENS = 100  # by which the first version estimates how a text's words are spread, as in llama.cpp


class Sampler:
    """What chooses the tokens of one answer. Mutated by every method.

    It remembers the tokens that were accepted, and its generators' states, so equal seeds and logits give
    equal answers, whatever else is computed between two tokens.
    """

    def __init__(
        self,
        sampling: Sampling,
        vocabulary: Vocabulary,
        prompt: Sequence[int],
        context: int,
        confinement: Confinement | None = None,
    ) -> None:
        """`context`: tokens that a sequence may have. `confinement` says what the text may be.

        Raises CallerError for tokens that the model does not have. Takes up to some tenths of a second.
        """
        self._chain: Any = None
        self._confinement = confinement
        self._size = vocabulary.size
        self._biased, self._biases, never = _biases(sampling, vocabulary)
        if sampling.ignore_eos:
            never += vocabulary.endings
        self._never = _tokens(never, self._size)
        self._count, self._least = 0, sampling.min_tokens
        ends = [*vocabulary.endings, *sampling.stop_token_ids] if self._least else []
        self._not_yet = _tokens([*never, *ends], self._size)
        self._candidates: Candidates | None = None
        self._drew: Candidates | None = None  # the candidates of the last draw
        self._undrawn: int | None = None  # the last token, if it was the likeliest and nothing was drawn
        self._greedy = _is_greedy(sampling) and not sampling.mirostat
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        self._remembers = 0  # tokens
        self._takes_likeliest = self._greedy
        for sampler, remembers in _samplers(sampling, vocabulary, context):
            lib.llama_sampler_chain_add(self._chain, sampler)
            self._remembers = max(self._remembers, remembers)
            self._takes_likeliest = self._takes_likeliest and not remembers
        for token in prompt[-self._remembers :] if self._remembers else ():
            lib.llama_sampler_accept(self._chain, token)

    def choose(self, logits: NDArray[np.float32]) -> int:
        """Return the next token by `logits`, shape (vocabulary,), which are left as they are.

        Raises CallerError when none can come next.
        """
        scores = logits
        if len(self._biased):
            scores = logits.copy()
            np.add.at(scores, self._biased, self._biases)
        out = self._not_yet if self._count < self._least else self._never
        token = self._chosen(scores, out)
        if self._confinement is not None and not self._confinement.admits(token):
            admitted = self._confinement.admitted()
            kept = np.setdiff1d(admitted, out, assume_unique=True)
            # A text that is complete ends, whatever else was asked for.
            tokens = kept if len(kept) else admitted
            token = self._drawn(Candidates(len(tokens)), scores[tokens], tokens)
        return token

    def _chosen(self, scores: NDArray[np.float32], out: NDArray[np.intp]) -> int:
        """Return the token that the samplers choose of all but `out`."""
        if self._takes_likeliest and not len(out):
            self._undrawn = int(scores.argmax())
            return self._undrawn
        tokens = np.delete(np.arange(self._size), out)
        if not len(tokens):
            raise CallerError("No token is left to come next.", hint="Forbid fewer tokens.")
        if self._candidates is None or len(self._candidates) != len(tokens):
            self._candidates = Candidates(len(tokens))
        return self._drawn(self._candidates, scores[tokens] if len(out) else scores, tokens)

    def _drawn(self, candidates: Candidates, scores: NDArray[np.float32], tokens: NDArray[np.intp]) -> int:
        candidates.fill(scores, tokens)
        lib.llama_sampler_apply(self._chain, ctypes.byref(candidates.array))
        self._drew, self._undrawn = candidates, None
        return candidates.selected

    def left(self) -> list[tuple[int, float]]:
        """Return the tokens that the samplers left at the last draw, as `Candidates.left`."""
        if self._undrawn is not None:
            return [(self._undrawn, 0.0)]
        if self._drew is None:
            return []
        return [self._drew.only] if self._greedy else self._drew.left()

    def confine(self, confinement: Confinement) -> None:
        """Confine what comes from now on."""
        self._confinement = confinement

    def accept(self, token: int) -> None:
        """Go on behind `token`, which is part of the answer. Raises CallerError as `choose`."""
        self._count += 1
        if self._remembers:
            lib.llama_sampler_accept(self._chain, token)
        if self._confinement is not None:
            self._confinement.accept(token)

    def close(self) -> None:
        """Free the chain. Always safe."""
        if self._chain:
            lib.llama_sampler_free(self._chain)
            self._chain = None

    def __del__(self) -> None:
        self.close()  # a request may be cancelled before its generation begins


class Candidates:
    """Room for tokens with their logits, as samplers take them."""

    def __init__(self, count: int) -> None:
        self._data = np.zeros(count, _TOKEN_DATA)
        self.array = lib.llama_token_data_array()

    def __len__(self) -> int:
        return len(self._data)

    def fill(self, logits: NDArray[np.float32], tokens: NDArray[np.intp]) -> None:
        """Take `tokens` in, with the logit of each."""
        self._data["id"], self._data["logit"] = tokens, logits
        pointer = self._data.ctypes.data_as(ctypes.POINTER(lib.llama_token_data))
        self.array = lib.llama_token_data_array(pointer, len(self), -1, False)

    @property
    def only(self) -> tuple[int, float]:
        """The chosen token, as the one that could be."""
        return self.selected, 0.0

    def left(self) -> list[tuple[int, float]]:
        """Return the tokens that a sampler chain left, with their log-probabilities, likeliest first."""
        first, size = ctypes.addressof(self.array.data.contents), self.array.size
        # numpy.ctypeslib can do it, but takes long to import.
        left = np.frombuffer((lib.llama_token_data * size).from_address(first), _TOKEN_DATA)
        scores = left["logit"].astype(np.float64)
        scores -= scores.max() + np.log(np.exp(scores - scores.max()).sum())
        order = np.argsort(-scores, kind="stable")
        return [(int(left["id"][at]), float(scores[at])) for at in order if np.isfinite(scores[at])]

    @property
    def selected(self) -> int:
        """The token that a sampler chain chose. Raises CallerError when it chose none."""
        if not 0 <= self.array.selected < self.array.size:
            raise CallerError("The samplers leave no token.", hint="Leave more of them out.")
        return int(self.array.data[self.array.selected].id)


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the natural-log probabilities of `logits`, shape (vocabulary,)."""
    shifted = logits.astype(np.float64) - float(logits.max())
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def _tokens(tokens: Sequence[int], size: int) -> NDArray[np.intp]:
    """Return `tokens`, each once. Raises CallerError for one that the model does not have."""
    if any(token >= size for token in tokens):
        raise CallerError("The model has no token of that number.", hint=f"It has {size} tokens, from 0 on.")
    return np.array(sorted(set(tokens)), np.intp)


def _biases(
    sampling: Sampling, vocabulary: Vocabulary
) -> tuple[NDArray[np.intp], NDArray[np.float32], list[int]]:
    """Return the tokens that have a bias, their biases, and the tokens that never come."""
    tokens: list[int] = []
    biases: list[float] = []
    never: list[int] = []
    for one in sampling.logit_bias:
        meant = (
            [one.token]
            if isinstance(one.token, int)
            else vocabulary.encode(one.token, special=False, start=False)
        )
        if one.bias is None:
            never += meant
        else:
            tokens += meant
            biases += [one.bias] * len(meant)
    _tokens(tokens, vocabulary.size)
    return np.array(tokens, np.intp), np.array(biases, np.float32), never


# ---- the chain: which samplers, in which order -------------------------------------------------------


def _samplers(sampling: Sampling, vocabulary: Vocabulary, context: int) -> Iterator[tuple[Any, int]]:
    """Yield llama.cpp's samplers, each with how many tokens it looks back at; the last one draws.

    Those that would change nothing are left out.
    """
    seed = secrets.randbelow(_SEEDS) if sampling.seed is None else sampling.seed % _SEEDS
    if sampling.mirostat:
        yield lib.llama_sampler_init_temp(sampling.temperature), 0
        how = seed, sampling.mirostat_tau, sampling.mirostat_eta
        if sampling.mirostat == 1:
            yield lib.llama_sampler_init_mirostat(vocabulary.size, *how, _MIROSTAT_TOKENS), 0
        else:
            yield lib.llama_sampler_init_mirostat_v2(*how), 0
        return
    greedy = _is_greedy(sampling)
    names = sampling.samplers
    if (
        greedy
    ):  # behind the temperature one token is left; what bounds the choice counts before penalties alone
        names = names[: names.index("temperature")]
    penalised = max((at for at, name in enumerate(names) if name in ("penalties", "dry")), default=-1)
    for at, name in enumerate(names):
        if name == "penalties":
            yield from _penalties(sampling, vocabulary, context)
        elif name == "dry":
            yield from _dry(sampling, vocabulary, context)
        elif (not greedy or at < penalised) and (sampler := _truncation(name, sampling, seed)) is not None:
            yield sampler, 0
    yield (lib.llama_sampler_init_greedy() if greedy else lib.llama_sampler_init_dist(seed)), 0


def _is_greedy(sampling: Sampling) -> bool:
    """Return whether the likeliest token is taken: most samplers leave it where it is."""
    moves = {
        "typ_p": sampling.typical_p < 1,
        "xtc": sampling.xtc_probability > 0,
        "temperature": sampling.dynatemp_range > 0,
    }
    return (
        sampling.temperature == 0
        and "temperature" in sampling.samplers
        and not any(moves.get(name, False) for name in sampling.samplers)
    )


def _truncation(name: str, sampling: Sampling, seed: int) -> Any:
    """Return the sampler of that name that looks at logits only, None if it changes nothing."""
    s, keep = sampling, sampling.min_keep
    changes, make, values = {
        "top_k": (s.top_k > 0, lib.llama_sampler_init_top_k, (s.top_k,)),
        "top_p": (s.top_p < 1, lib.llama_sampler_init_top_p, (s.top_p, keep)),
        "min_p": (s.min_p > 0, lib.llama_sampler_init_min_p, (s.min_p, keep)),
        "typ_p": (s.typical_p < 1, lib.llama_sampler_init_typical, (s.typical_p, keep)),
        "top_n_sigma": (s.top_n_sigma > 0, lib.llama_sampler_init_top_n_sigma, (s.top_n_sigma,)),
        "xtc": (
            *(s.xtc_probability > 0, lib.llama_sampler_init_xtc),
            (s.xtc_probability, s.xtc_threshold, keep, seed),
        ),
        "temperature": (
            *(True, lib.llama_sampler_init_temp_ext),
            (s.temperature, s.dynatemp_range, s.dynatemp_exponent),
        ),
    }[name]
    return make(*values) if changes else None


def _penalties(sampling: Sampling, vocabulary: Vocabulary, context: int) -> Iterator[tuple[Any, int]]:
    strengths = sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty
    window = _window(sampling.repeat_last_n, context)
    if window and strengths != (1, 0, 0):
        yield lib.llama_sampler_init_penalties(vocabulary.size, window, *strengths), window


def _dry(sampling: Sampling, vocabulary: Vocabulary, context: int) -> Iterator[tuple[Any, int]]:
    window = _window(sampling.dry_penalty_last_n, context)
    if window and sampling.dry_multiplier > 0 and sampling.dry_base >= 1:
        texts = [text.encode() for text in sampling.dry_sequence_breakers]
        breakers = (ctypes.c_char_p * len(texts))(*texts)
        how = sampling.dry_multiplier, sampling.dry_base, sampling.dry_allowed_length, window
        yield lib.llama_sampler_init_dry(vocabulary.address, *how, breakers, len(texts)), window


def _window(count: int, context: int) -> int:
    return min(count, context) if count >= 0 else context
