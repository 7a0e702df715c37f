"""The trace law: what the OS and the disk see of a request depends on lengths only."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from traced_engine import DENSE, EXPERTS, TIED, WIDE, Ask, Trace, TracedEngine

pytestmark = pytest.mark.engine

_FEW = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
_TOKEN = st.floats(0, 1, exclude_max=True)  # a place in whichever vocabulary


@pytest.fixture(scope="module", params=[DENSE, WIDE, TIED, EXPERTS], ids=lambda shape: shape.name)
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TracedEngine]:
    with TracedEngine(tmp_path_factory.mktemp("traced"), request.param) as engine:
        yield engine


@st.composite
def two_of_equal_length(draw: st.DrawFn) -> list[tuple[list[float], list[float]]]:
    """Return two requests, each a prompt and the tokens that follow it, as long as one another's."""
    lengths = draw(st.integers(1, 64)), draw(st.integers(0, 3))
    prompt, following = (st.lists(_TOKEN, min_size=length, max_size=length) for length in lengths)
    return [(draw(prompt), draw(following)) for _ in range(2)]


def traces(engine: TracedEngine, texts, **state: float) -> list[Trace]:
    asks = []
    for text in texts:
        prompt, following = ([int(place * engine.vocabulary) for place in part] for part in text)
        asks.append(Ask(prompt, following, **state))
    return [engine.trace(ask) for ask in asks]


@pytest.mark.parametrize(
    "state",
    [{}, {"there": 0.5}, {"there": 0.95}, {"room": 0.7}, {"there": 0.5, "room": 0.7}],
    ids=["cold", "partly cold", "nearly whole", "streaming", "streaming, partly cold"],
)
@_FEW
@given(texts=two_of_equal_length())
@example(texts=[([0.5] * 100, []), ([i / 100 for i in range(100)], [])])  # few experts, and all of them
def test_two_requests_of_equal_length_look_alike(engine: TracedEngine, texts, state: dict[str, float]):
    one, other = traces(engine, texts, **state)
    assert one == other
    assert any(event[0] == "read" for events in one.values() for event in events)
