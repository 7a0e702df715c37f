"""Smaller models guess what others say next, where that pays and their weights are in memory anyway."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from flexserve.errors import FlexServeError, GrantRefusedError
from flexserve.policy.guessing import Guessing
from flexserve.protocol.trusted_app import Progress, TrustedApp
from flexserve.serving.request import Request


class Guesses:
    """Has the trusted application guess, and measures what it brings. Belongs to the engine thread.

    `prefetch` brings a model in behind what runs. A draft never takes memory from others: one that is not in
    memory whole guesses nothing.
    """

    def __init__(
        self,
        app: TrustedApp,
        prefetch: Callable[[str], None],
        refused: Callable[[str, FlexServeError], None],
    ) -> None:
        """`refused` hears why the draft of a model cannot guess for it."""
        self._app, self._prefetch, self._refused = app, prefetch, refused
        self._drafts: Mapping[str, str] = {}
        self._policies: dict[tuple[str, str], Guessing] = {}  # by model and draft
        self.checks = 0  # graphs that checked guesses
        self._unfit: dict[tuple[str, str], int] = {}  # for which request a draft was refused to a model last

    def use(self, drafts: Mapping[str, str]) -> None:
        """Have these models guess, by the names of those whose tokens they guess. Any thread.

        One that could not guess before is asked again: by now another model may have its name.
        """
        self._unfit = {}
        self._drafts = dict(drafts)

    def begun(self, model: str) -> None:
        """Have the draft of `model`, which began to answer, brought in."""
        draft = self._drafts.get(model)
        if draft is not None and not self._is_there(draft):
            self._prefetch(draft)

    def stepped(
        self, model: str, chosen: Sequence[Request], step: Callable[[], Sequence[Progress]]
    ) -> Sequence[Progress]:
        """Do `step`, the next graph of `model` for `chosen`, after guesses where they pay."""
        draft = self._drafts.get(model)
        if draft is None or len(chosen) != 1 or chosen[0].pending != 1:
            return step()
        if self._unfit.get((model, draft)) == chosen[0].number:
            return step()
        policy, began = self._policies.setdefault((model, draft), Guessing()), time.monotonic()
        count = policy.count()
        if count and not self._is_there(draft):  # not asked before each graph: the answer takes its time
            count = 0
        made = self._guess(model, draft, chosen[0].number, count) if count else 0
        guessed = time.monotonic()
        progress = step()
        seconds = time.monotonic() - guessed
        if made:
            self.checks += 1
            policy.checked(made, sum(one.right for one in progress), guessed - began, seconds)
        else:
            policy.computed(seconds)
        return progress

    def _guess(self, model: str, draft: str, request: int, count: int) -> int:
        try:
            return self._app.guess(request, draft, count)
        except GrantRefusedError:
            self._policies[model, draft].refused()
            return 0
        except FlexServeError as error:
            self._unfit[model, draft] = request
            self._refused(draft, error)
            return 0

    def _is_there(self, draft: str) -> bool:
        return any(memory.name == draft and memory.whole for memory in self._app.memory())
