"""What a model cannot do is refused before anything computes, by its record or by its header."""

from __future__ import annotations

from pathlib import Path

import pytest
from conversations import MODEL
from library import Library

from flexserve.errors import CallerError
from flexserve.harness.worlds import DrivenWorld
from flexserve.protocol.statuses import Abilities
from flexserve.testing.architectures import make_models

pytestmark = pytest.mark.engine

ENCODERS = ("bert", "t5encoder")


@pytest.fixture
def encoders(own_library: Library, tmp_path: Path) -> list[str]:
    assert make_models(ENCODERS, tmp_path) == {}
    return [own_library.add(tmp_path / f"{name}.gguf", name) for name in ENCODERS]


def abilities(world: DrivenWorld, model: str) -> Abilities | None:
    return next(status.abilities for status in world.status().models if status.name == model)


def test_text_is_refused_by_models_that_only_read_and_others_go_on(
    own_library: Library, encoders: list[str]
) -> None:
    tiny = own_library.add(MODEL, "tiny")
    with own_library.open() as world:
        for name in encoders:
            with pytest.raises(CallerError, match="cannot generate text") as refused:
                world.generate(name, "Once", 4)
            assert refused.value.code == "generation_unsupported"
        assert world.generate(tiny, "Once", 4).finished.usage.completion_tokens > 0


def test_a_try_records_what_a_model_can_do_for_every_world_after_it(
    own_library: Library, encoders: list[str]
) -> None:
    tiny = own_library.add(MODEL, "tiny")
    with own_library.open() as world:
        for name in (tiny, *encoders):
            world.try_model(name)
    with own_library.open() as world:
        can = abilities(world, tiny)
        assert can is not None
        assert (can.text, can.vectors, can.causal, can.template) == (True, True, True, True)
        assert can.tools == "none"
        for name in encoders:
            can = abilities(world, name)
            assert can is not None
            assert (can.text, can.vectors, can.causal) == (False, True, False)
        with pytest.raises(CallerError, match="cannot generate text"):
            world.generate(encoders[0], "Once", 4)
        opened = {status.name for status in world.status().models if status.scratch or status.kv}
        assert encoders[0] not in opened


def test_a_record_that_was_changed_says_nothing(own_library: Library, encoders: list[str]) -> None:
    with own_library.open() as world:
        world.try_model(encoders[0])
        assert abilities(world, encoders[0]) is not None
        with own_library.store.open(encoders[0]) as sealed:
            [path] = (own_library.root / "images").glob(f"{sealed.manifest.model_id}-record.able")
        path.write_bytes(path.read_bytes().replace(b'"text":false', b'"text":true '))
        assert abilities(world, encoders[0]) is None
