"""The shelf refuses at once what can never fit."""

import pytest

from flexserve.errors import CallerError
from flexserve.serving import model_manager as shelf


def test_a_model_larger_than_the_machines_memory_is_the_callers_mistake() -> None:
    with pytest.raises(CallerError) as caught:
        shelf.require_room("huge", 1 << 50)
    assert caught.value.code == "model_too_large"
    assert "huge needs 1048576 GiB" in caught.value.message
    assert "smaller model" in caught.value.hint


def test_a_model_that_fits_the_machine_is_let_in() -> None:
    shelf.require_room("small", 1 << 20)
