"""Whatever a cache keeps of a conversation, an answer's log-probabilities are those of plain llama.cpp.

Families differ in what their caches can go back to: all of it, the last window, nothing but the end.

    FAMILIES=all pytest tests/trusted/test_families.py       every family that has a window or a state
    FAMILIES="rwkv7 jamba" pytest tests/trusted/test_families.py
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from families import Families, Logprobs

from flexserve.errors import CallerError
from flexserve.protocol.model_options import KvType
from flexserve.testing.architectures.parameters import Parameters

pytestmark = pytest.mark.engine

# Of the kinds of caches that llama.cpp has, one or two families each.
_USUAL = {
    "whole": ["llama", "deepseek32", "minimax-m3"],
    "window": ["gemma2", "gemma3", "gpt-oss", "cohere2", "llama4"],
    "state": [
        "mamba",
        "rwkv7",
        "jamba",
        "falcon-h1",
        "granitehybrid",
        "lfm2",
        "plamo2",
        "qwen3next",
        "deepseek4",
    ],
}
_MORE = {
    "whole": ["qwen3", "hy_v4"],
    "window": [
        "afmoe",
        "cohere2moe",
        "exaone-moe",
        "gemma3n",
        "gemma4",
        "granite_swa",
        "maple",
        "mimo2",
        "muse-glimmer",
        "phi3",
        "smallthinker",
        "spark2_5",
        "step35",
    ],
    "state": [
        "arwkv7",
        "bailingmoe3",
        "kimi-k3",
        "kimi-linear",
        "lfm2moe",
        "mamba2",
        "minimax-01",
        "nemotron_h",
        "nemotron_h_moe",
        "qwen35",
        "qwen35moe",
        "qwen4exp",
        "rwkv6",
        "rwkv6qwen2",
    ],
}
_KINDS = {name: kind for table in (_USUAL, _MORE) for kind, names in table.items() for name in names}
_ASKED = os.environ.get("FAMILIES", "").split()
NAMES = list(_KINDS) if _ASKED == ["all"] else _ASKED or [n for names in _USUAL.values() for n in names]

# Ours computes the same graphs over the same pieces of a prompt, so the difference is none at all on
# machines whose kernels do not mind how many rows they are given. A token that is missed, or one of the
# wrong place, moves log-probabilities of these models by tenths at least.
TOLERANCE = 0.01
WINDOW = 64  # tokens, of all families that have one but llama4 (8192)


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Families]:
    with Families(tmp_path_factory.mktemp("families"), NAMES) as found:
        yield found


class Talk:
    """A conversation with ours, compared with plain llama.cpp at every answer."""

    def __init__(self, families: Families, seed: int) -> None:
        self._families = families
        self._rng = np.random.default_rng(seed)
        self._pieces: list[int] = []  # in which the tokens in the cache were computed
        self.worst = 0.0

    def words(self, count: int) -> list[int]:
        """Return tokens that mean nothing."""
        return [int(token) for token in self._rng.integers(270, 500, count)]

    def ask(self, tokens: list[int], answer: Sequence[int] = ()) -> int:
        """Have `tokens` answered by `answer`; return how many of them were not computed anew."""
        said = self._families.ask(tokens, answer)
        kept = said[0].kept
        before = [*_cut(self._pieces, kept), len(tokens) - kept]
        self._pieces = [*before, *[1] * len(answer)]
        self._compare(said[0].logprobs, self._families.plain(tokens, before))
        self._compare(said[-1].logprobs, self._families.plain([*tokens, *answer], self._pieces))
        return kept

    def recall_all(self) -> None:
        """Have all memory taken back; what is worth it is sealed on disk."""
        self._families.recall_all()

    def _compare(self, ours: Logprobs, plain: Logprobs) -> None:
        difference = float(np.abs(ours - plain).max())
        assert difference <= TOLERANCE
        self.worst = max(self.worst, difference)


def _cut(pieces: Sequence[int], count: int) -> list[int]:
    """Return the pieces of the first `count` tokens."""
    found: list[int] = []
    for piece in pieces:
        if count > 0:
            found.append(min(piece, count))
            count -= piece
    return found


@pytest.fixture
def talk(families: Families, request: pytest.FixtureRequest) -> Iterator[Talk]:
    families.open(request.param)
    talk = Talk(families, seed=zlib.crc32(request.node.name.encode()))
    yield talk
    families.recall_all()
    if _ASKED:
        print(f"\n{request.param}: {talk.worst:.1e}")


@pytest.mark.parametrize(("talk", "kind"), [(n, _KINDS[n]) for n in NAMES], indirect=["talk"], ids=NAMES)
def test_conversations_that_go_on_are_changed_sealed_and_resumed_are_answered_as_by_plain_llama_cpp(
    talk: Talk, kind: str
) -> None:
    prompt, answer = talk.words(200), talk.words(10)
    assert talk.ask(prompt, answer) == 0

    continued = prompt + answer + talk.words(30)
    assert talk.ask(continued) == len(prompt + answer)

    edited = continued[:150] + talk.words(60)
    assert talk.ask(edited) == (0 if kind == "state" else 150)

    talk.recall_all()
    resumed = edited + talk.words(30)
    assert talk.ask(resumed) == len(edited)

    talk.recall_all()
    edited = resumed[:180] + talk.words(40)
    kept = talk.ask(edited)
    assert kept == 180 if kind == "whole" else kept in (0, 180)

    talk.recall_all()
    assert talk.ask(edited[:-1] + talk.words(1)) in (0, len(edited) - 1)


@pytest.mark.parametrize(("talk", "kind"), [(n, _KINDS[n]) for n in NAMES], indirect=["talk"], ids=NAMES)
def test_a_sealed_conversation_that_fits_in_the_window_can_still_be_edited(talk: Talk, kind: str) -> None:
    short = talk.words(WINDOW - 14)
    talk.ask(short)
    talk.recall_all()
    assert talk.ask(short[:40] + talk.words(20)) == (0 if kind == "state" else 40)


@pytest.mark.parametrize("name", NAMES)
def test_sequences_computed_together_do_not_mix(families: Families, name: str) -> None:
    families.open(name)
    talk = Talk(families, seed=8)
    first, second, piece, steps = talk.words(100), talk.words(90), 70, 4
    together = families.ask_together(first, second, piece, steps)
    for ours, tokens in zip(together, (first, second), strict=True):
        plain = families.plain(tokens, [piece, len(tokens) - piece - steps, *[1] * steps])
        assert np.abs(ours - plain).max() <= TOLERANCE


# Heads as wide as a block of the quantised types, in a family whose cache goes back anywhere, one with a
# window and one with a state as well.
_WIDE: Parameters = {
    "attention.head_count": 2,
    "rope.dimension_count": 32,
    "attention.key_length": 32,
    "attention.value_length": 32,
}


@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "jamba"])
def test_quantised_kv_that_goes_on_is_sealed_and_resumed_answers_as_in_plain_llama_cpp(
    families: Families, name: str, kv_type: KvType
) -> None:
    families.open(name, "-wide", _WIDE, kv_type=kv_type)
    talk = Talk(families, seed=zlib.crc32(f"{name} {kv_type}".encode()))
    prompt, answer = talk.words(150), talk.words(10)
    assert talk.ask(prompt, answer) == 0
    talk.recall_all()
    assert talk.ask(prompt + answer + talk.words(20)) == len(prompt + answer)
    talk.recall_all()


def test_a_model_whose_heads_do_not_fit_a_quantised_type_is_refused_with_it(families: Families) -> None:
    with pytest.raises(CallerError) as caught:
        families.open("llama", kv_type="q8_0")
    assert caught.value.code == "kv_type_unsupported"
    families.open("llama")
