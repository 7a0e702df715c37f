"""A model that brings no chat template is labelled: nobody is told in ChatML without knowing it."""

from __future__ import annotations

import types
from typing import Any

import pytest

from flexserve.cli import about_models, talk
from flexserve.protocol.statuses import Abilities


def store_of(*, template: bool, text: bool = True) -> Any:
    able = Abilities(
        text=text,
        vectors=True,
        encoder=False,
        causal=True,
        window=0,
        recurrent=False,
        template=template,
        tools="none",
    )
    derived = types.SimpleNamespace(record=lambda _manifest: types.SimpleNamespace(abilities=able))
    return types.SimpleNamespace(derived=derived)


def test_list_and_show_say_that_a_model_brings_no_template() -> None:
    manifest: Any = types.SimpleNamespace(name="m", adapts=None)
    assert "no chat template" in about_models.makes(store_of(template=False), manifest)
    assert "no chat template" not in about_models.makes(store_of(template=True), manifest)
    assert "no chat template" not in about_models.makes(store_of(template=False, text=False), manifest)


@pytest.mark.parametrize(("has", "noted"), [(False, True), (True, False), (None, False)])
def test_run_says_it_before_the_answer(
    has: bool | None, noted: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    who: Any = types.SimpleNamespace(has_template=lambda _model: has)
    talk._note_template(who, "m")
    captured = capsys.readouterr()
    assert ("no chat template" in captured.out + captured.err) == noted
