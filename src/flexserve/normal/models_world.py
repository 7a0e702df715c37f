"""What the APIs for models need of a secure world: one that runs here, or one behind another server."""

from __future__ import annotations

from typing import Protocol

from flexserve.normal.answer import Answer, Observer
from flexserve.normal.metrics import Metrics
from flexserve.platforms.ports import Protection
from flexserve.protocol.messages import ChatPrompt, Converted, Prompt, Terms, ToText, ToTokens
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
        self, model: str, texts: list[str], terms: Terms = USUAL, observer: Observer | None = None
    ) -> Answer:
        """Start a request for the vectors of `texts`."""

    async def warm(self, model: str, keep_alive: float | None) -> None:
        """Bring all weights of a model in."""

    async def convert(
        self, model: str, source: ToTokens | ToText | ChatPrompt, keep_alive: float | None = None
    ) -> Converted:
        """Return the tokens of a text, the text of tokens, or a conversation as the model would get it."""

    async def models(self) -> list[ModelStatus]:
        """Return the models of the store and their states."""
