"""Models of the trusted application of trusted-app/, for tests: sealed, and open in one that is driven."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from inner_application import Application

from flexserve.harness.inner import OpenModel, SealedKv
from flexserve.tee_client.messages import (
    Ask,
    Finish,
    Progress,
    Status,
    packed,
    progress,
    unpacked,
)
from flexserve.tee_client.sampling import Said, said

NOBODY = bytes(16)  # the owner of KV unless a test says otherwise


class Opened(OpenModel[Application]):
    """A model that is open in an application, and what tests ask of it."""

    # ---- text --------------------------------------------------------------------------------------

    def tokenise(self, text: str) -> list[int]:
        """Return the tokens of a text, with control tokens by name."""
        return unpacked(self.do(Ask.TOKENISE, 1, payload=text.encode()).payload)

    def detokenise(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return self.do(Ask.DETOKENISE, payload=packed(tokens)).payload.decode()

    def begin(
        self,
        tokens: Sequence[int],
        *,
        sequence: int = 0,
        most: int = 100,
        sampling: bytes = b"",
        owner: bytes = NOBODY,
    ) -> int:
        """Begin a generation; return the tokens to compute. Without `sampling` it says the likeliest ones."""
        arguments = (sequence, most, *struct.unpack("<2Q", owner))
        pending = self.do(Ask.BEGIN, *arguments, payload=packed(tokens)).values[0]
        if sampling:
            self.do(Ask.SAMPLING, sequence, payload=sampling)
        return pending

    def step(self, *sequences: int, limit: int = 512) -> list[Progress]:
        """Compute a graph."""
        return progress(self.do(Ask.STEP, limit, payload=packed(sequences)))

    def answer(self, tokens: Sequence[int], *, most: int = 100, sampling: bytes = b"") -> list[int]:
        """Return the tokens that it says after a prompt, to its end."""
        self.begin(tokens, most=most, sampling=sampling)
        return self.rest().tokens

    def say(self, sequence: int = 0, *, logprobs: int | None = None) -> Said:
        """Return what a generation says until it is over, without ending it."""
        tokens, scores = [], []
        finished = Finish.NO
        while finished is Finish.NO:
            finished = self.step(sequence)[0].finished
            more = said(self.do(Ask.SAID, sequence), logprobs)
            tokens += more.tokens
            scores += more.scores
        return Said(tokens, scores)

    def shift(self, first: int, end: int, *, sequence: int = 0) -> int:
        """Have tokens go of a context that is full; return how many are to be computed anew."""
        return self.do(Ask.SHIFT, sequence, first, end).values[0]

    def rest(self, sequence: int = 0, *, logprobs: int | None = None) -> Said:
        """Return what a generation says to its end."""
        while self.step(sequence)[0].finished is Finish.NO:
            pass
        answered = said(self.do(Ask.SAID, sequence), logprobs)
        self.do(Ask.END, sequence)
        return answered

    def embed(self, tokens: Sequence[int], *, ranks: bool = False, at_once: int = 512) -> list[float]:
        """Return the vector of a text, or its rank, having granted what that takes."""
        arguments, payload = (self.number, int(ranks), at_once), packed(tokens)
        while (reply := self.app.ask(Ask.EMBED, *arguments, payload=payload)).status is Status.REFUSED:
            self.app.do(Ask.GRANT, reply.values[0])
        assert reply.status is Status.DONE, reply
        return list(struct.unpack(f"<{len(reply.payload) // 4}f", reply.payload))

    # ---- KV ----------------------------------------------------------------------------------------

    def resume(self, sequence: int, kv: SealedKv, *, owner: bytes = NOBODY) -> Status:
        """Have a sequence go on from it; return how it went."""
        self.do(Ask.RESUME, sequence, kv.size, *struct.unpack("<2Q", owner), payload=kv.salt)
        for number, part in enumerate(kv.parts):
            reply = self.app.ask(Ask.RESUMED, self.number, number, payload=part)
            if reply.status is not Status.DONE:
                return reply.status
        return Status.DONE


Made = Callable[..., Opened]  # of an architecture, with parameters of it, and with options of Opened


def no_tokens(_text: str) -> list[int]:
    """Return the tokens of texts where there are none to be told."""
    return []
