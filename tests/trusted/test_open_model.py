"""What can never be opened is refused at once."""

import types
from typing import Any

import pytest

from flexserve.errors import CallerError
from flexserve.trusted.open_model import require_room


def manifest(name: str, size: int) -> Any:
    return types.SimpleNamespace(name=name, size=size)


def test_a_model_larger_than_the_machines_memory_is_the_callers_mistake() -> None:
    with pytest.raises(CallerError) as caught:
        require_room(manifest("huge", 1 << 50))
    assert caught.value.code == "model_too_large"
    assert "huge needs 1048576 GiB" in caught.value.message
    assert "smaller model" in caught.value.hint


def test_a_model_that_fits_the_machine_is_let_in() -> None:
    require_room(manifest("small", 1 << 20))
