"""What the APIs for models need of a secure world: one that runs here, or one behind another server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flexserve.normal.answer import Answer, Observer
from flexserve.normal.metrics import Metrics
from flexserve.platforms.ports import Protection
from flexserve.protocol.answers import Converted
from flexserve.protocol.prompts import Entry, Prompt, Source
from flexserve.protocol.requests import Terms
from flexserve.protocol.sampling import Sampling
from flexserve.protocol.statuses import ModelStatus

USUAL = Terms()


class ModelsWorld(Protocol):
    """See normal.world.World, whose methods these are."""

    @property
    def metrics(self) -> Metrics:
        """What monitoring reads."""

    @property
    def protection(self) -> Protection:
        """The label of what protects this run."""

    @property
    def engine(self) -> str:
        """What computes."""

    async def generate(
        self,
        model: str,
        prompt: Prompt,
        sampling: Sampling,
        terms: Terms = USUAL,
        observer: Observer | None = None,
    ) -> Answer:
        """Start a request; return its answer to come."""

    async def embed(
        self,
        model: str,
        texts: Sequence[Entry],
        terms: Terms = USUAL,
        observer: Observer | None = None,
        query: str | None = None,
    ) -> Answer:
        """Start a request for the vectors of `texts`, or their ranks by `query`."""

    async def warm(self, model: str, keep_alive: float | None) -> None:
        """Bring all weights of a model in."""

    async def convert(self, model: str, source: Source, keep_alive: float | None = None) -> Converted:
        """Return what is made of `source`: tokens, a text, or a conversation as the model would get it."""

    async def models(self) -> list[ModelStatus]:
        """Return the models of the store and their states."""
