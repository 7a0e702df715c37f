"""The metadata of a GGUF header as llama.cpp looks at it: under an architecture's name, with bounds."""

from __future__ import annotations

import array
from collections.abc import Mapping

from flexserve.errors import CallerError

MAX_WIDTH = 1 << 20  # of anything that is counted in weights


class Values:
    """The metadata of one architecture, read with bounds. A list is checked value by value."""

    def __init__(self, architecture: str, metadata: Mapping[str, object]) -> None:
        self._space, self._metadata = architecture, metadata

    def value(self, suffix: str) -> object:
        """Return what is under a key; None: nothing."""
        return self._metadata.get(f"{self._space}.{suffix}")

    def all(self, suffix: str) -> list[int]:
        """Return the whole numbers under a key: one, those of a list, or none."""
        value = self.value(suffix)
        items = list(value) if isinstance(value, array.array | list) else [value]
        return [item for item in items if isinstance(item, int) and not isinstance(item, bool)]

    def number(self, suffix: str, low: int, high: int) -> int | None:
        """Return the largest number under a key (None: there is none), all being in low…high."""
        found = self.all(suffix)
        for number in found:
            if not low <= number <= high:
                raise bad(f"its {suffix} is {number}, which is not in {low}…{high}")
        return max(found, default=None)

    def real(self, suffix: str, low: float, high: float) -> None:
        """Check a fraction."""
        value = self.value(suffix)
        if isinstance(value, float) and not low <= value <= high:
            raise bad(f"its {suffix} is {value:g}, which is not in {low:g}…{high:g}")

    def head_size(self, of: str = "key") -> int | None:
        """Return the dimensions of the largest head, of keys or of "value"s; None: it is not said."""
        said = self.number(f"attention.{of}_length", 1, MAX_WIDTH)
        heads = [count for count in self.all("attention.head_count") if count]
        width = self.number("embedding_length", 1, MAX_WIDTH)
        return said if said is not None else width // min(heads) if width and heads else None


def bad(what: str) -> CallerError:
    """Return the error that says what is wrong with a file that is being added."""
    return CallerError(
        f"This is not a usable GGUF file: {what}.",
        hint="Download or convert it again; its publisher's checksum tells whether it is complete.",
        code="bad_gguf",
    )
