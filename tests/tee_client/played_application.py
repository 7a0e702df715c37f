"""A trusted application that is played in Python, for tests of who drives it.

Its model has a token for each byte and one that ends answers; it answers a prompt with the first characters
of its digest, and needs all of its weights for that. Its OS grants up to `memory` chunks.
"""

from __future__ import annotations

import hashlib
import math
import queue
import secrets
import struct
import threading
from collections.abc import Callable, Sequence

from played_sealed import PlayedSealed
from played_wire import PlayedWire, answer

from flexserve.protocol.trusted_app import Kind
from flexserve.tee_client.messages import (
    ABOUT_MEMORY,
    KEPT_PART,
    VERSION,
    Ask,
    Finish,
    Status,
    packed,
    unpacked,
)
from flexserve.tee_client.sampling import SCORE, SETTINGS, WORDS

CHUNK = 4096  # bytes
BATCH = 64  # tokens
WEIGHTS, KV, SCRATCH = 4, 2, 1  # chunks of a model
CONTEXT = 512  # tokens
END = 256  # the token that ends an answer
MARKS = (-1, -1, 10, 1, 2, 3, -1)  # between two texts is a line's end; bytes 1 to 3 are around gaps
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}>{% endfor %}"
_CONTROL, _NORMAL = 8, 4
_F16 = 1  # ggml's


def answer_to(prompt: str) -> str:
    """Return what the model says to `prompt`."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:8]


class PlayedModel:
    """An open model."""

    def __init__(self, sequences: int) -> None:
        self.ready = [False] * WEIGHTS
        self.kv = self.scratch = 0
        self.image = b""
        self.cached: list[list[int]] = [[] for _ in range(sequences)]
        self.owners = [(0, 0)] * sequences  # of these
        self.running: dict[int, PlayedGeneration] = {}
        self.kept: bytes = b""


class PlayedGeneration:
    """What a sequence says."""

    def __init__(self, prompt: list[int], done: int, most: int) -> None:
        self.tokens, self.done, self.most, self.said = prompt, done, most, 0
        self.told = len(prompt)  # tokens that were given out, or are not to be
        self.width, self.ends = 0, {END}  # scores of a token, tokens that end the answer
        text = answer_to(bytes(token for token in prompt if token < END).decode())
        self.answer = [*text.encode(), END]
        self.finished = Finish.NO
        self.admitted: set[int] = set()  # of the next tokens; none: any

    def choose_by(self, payload: bytes) -> None:
        """Take in what a Sampling says of these."""
        values = SETTINGS.unpack_from(payload)
        self.width, biases = values[WORDS.index("logprobs")], values[WORDS.index("biases")]
        pairs = SCORE.iter_unpack(payload[SETTINGS.size : SETTINGS.size + biases * SCORE.size])
        self.ends |= {token for token, bias in pairs if bias == math.inf}
        if values[WORDS.index("prompt")]:
            self.told = self.done + 1

    def choose(self) -> None:
        token = self.answer[self.said] if self.said < len(self.answer) else END
        if self.admitted and token not in self.admitted:
            token = min(self.admitted)
        self.admitted = set()
        if token in self.ends:
            self.finished = Finish.STOP
            return
        self.tokens.append(token)
        self.said += 1
        if self.said >= self.most or len(self.tokens) >= CONTEXT:
            self.finished = Finish.LENGTH

    def tell(self) -> list[int]:
        """Return the tokens that were computed, or said, since the last time."""
        end = max(self.told, min(self.done + 1, len(self.tokens)))
        told, self.told = self.tokens[self.told : end], end
        return told

    def shift(self, first: int, end: int) -> Status:
        """Have tokens go, and those behind them computed anew."""
        if self.finished is not Finish.LENGTH or not first < end < len(self.tokens) == self.told:
            return Status.BAD
        del self.tokens[first:end]
        self.done, self.told, self.finished = first, len(self.tokens), Finish.NO
        return Status.DONE


class PlayedApplication:
    """It hears requests in a thread of its own. `between_slices` is called in each step."""

    def __init__(self, memory: int = 1 << 20, *, inside: bool = False) -> None:
        self.memory, self.granted, self.inside = memory, 0, inside  # chunks
        self.unused = self.heap = 0
        self.models: dict[int, PlayedModel] = {}
        self.between_slices: Callable[[], None] = lambda: None
        self.asked: list[Ask] = []
        self.lies: dict[Ask, tuple[Status, bytes, tuple[int, ...]]] = {}  # what is answered instead
        self.quantises = True  # KV
        self.recurs = 0
        self.damaged = False  # nothing that comes from the disk authenticates
        self.damaged_kv = False  # no KV does
        self.secret = b""  # that it was told
        self.metadata = {"tokenizer.chat_template": TEMPLATE, "tokenizer.ggml.eos_token_id": str(END)}
        self.embedded: list[int] = []  # tokens of the last text that became a vector
        self.kv = 0  # the type of the last model's
        self.order: list[int] = []  # in which graphs read chunks of weights
        self.waited = 0  # microseconds for which each of them waits, as it says
        self.sealed = PlayedSealed()
        self._stepping = self._waits = False
        self._heard: queue.SimpleQueue[tuple[int, int, tuple[int, ...], bytes]] = queue.SimpleQueue()
        self.wire = PlayedWire(self._hear)
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def held(self) -> int:
        """The chunks that models, heap and nobody have."""
        used = sum(sum(model.ready) + model.kv + model.scratch for model in self.models.values())
        return used + self.unused + self.heap

    def _hear(self, *request: object) -> bytes:
        self._heard.put(request)  # type: ignore[arg-type]
        return b""

    def _serve(self) -> None:
        while True:
            self._answer(*self._heard.get())

    def answer_waiting(self) -> None:
        """Answer what was asked meanwhile, as between two slices."""
        while not self._heard.empty():
            self._answer(*self._heard.get())

    def _answer(self, number: int, tag: int, arguments: tuple[int, ...], payload: bytes) -> None:
        kind = Ask(number)
        self.asked.append(kind)
        if kind in self.lies:
            status, said, values = self.lies[kind]
        else:
            status, said, values = self._carry_out(kind, arguments, payload)
        self.wire.say(answer(tag, status, said, *values))

    def _carry_out(
        self, kind: Ask, arguments: tuple[int, ...], payload: bytes
    ) -> tuple[Status, bytes, tuple[int, ...]]:
        if self._stepping and kind not in ABOUT_MEMORY:
            return Status.BUSY, b"", ()
        if kind is Ask.LEAVE:
            self._waits = False
            return Status.DONE, b"", (int(self._stepping),)
        if kind is Ask.SECRET:
            self.secret = payload
            return Status.DONE, b"", ()
        if kind in range(Ask.ATTEST, Ask.BEGIN_SEALED):
            return self.sealed.answer(kind, arguments, payload)
        if kind in {Ask.HELLO, Ask.GRANT, Ask.GIVE_BACK, Ask.POOL, Ask.OPEN, Ask.HEAP}:
            return self._without_model(kind, arguments, payload)
        model = self.models.get(arguments[0])
        if model is None:
            return Status.BAD, b"", ()
        if kind is Ask.CLOSE:
            self.unused += sum(model.ready) + model.kv + model.scratch
            del self.models[arguments[0]]
            return Status.DONE, b"", ()
        for part in (self._memory, self._text, self._generations, self._kv):
            found = part(kind, model, arguments, payload)
            if found is not None:
                return found
        return Status.BAD, b"", ()

    def _without_model(
        self, kind: Ask, arguments: Sequence[int], payload: bytes = b""
    ) -> tuple[Status, bytes, tuple[int, ...]]:
        match kind:
            case Ask.HELLO:
                return Status.DONE, b"", (VERSION, CHUNK, BATCH, int(self.inside))
            case Ask.GRANT:
                more = max(0, min(arguments[0], self.memory - self.granted))
                self.granted += more
                self.unused += more
            case Ask.GIVE_BACK:
                gone = min(arguments[0], self.unused)
                self.granted -= gone
                self.unused -= gone
                return Status.DONE, b"", (gone,)
            case Ask.OPEN:
                self.kv = struct.unpack_from("<I", payload, 108)[0]
                if self.kv != _F16 and not self.quantises:
                    return Status.UNSUPPORTED, b"", ()
                self.models[arguments[0]] = PlayedModel(arguments[3])
                return Status.DONE, b"", (WEIGHTS, KV, SCRATCH, self.recurs, CONTEXT)
            case Ask.HEAP:
                moved = min(arguments[0], self.unused if arguments[1] else self.heap)
                self.heap += moved if arguments[1] else -moved
                self.unused -= moved if arguments[1] else -moved
                return Status.DONE, b"", (moved,)
        return Status.DONE, b"", (self.unused,)

    def _take(self, chunks: int) -> bool:
        if self.unused < chunks:
            return False
        self.unused -= chunks
        return True

    def _memory(
        self, kind: Ask, model: PlayedModel, arguments: Sequence[int], payload: bytes
    ) -> tuple[Status, bytes, tuple[int, ...]] | None:
        match kind:
            case Ask.WRITE:
                if self.damaged:
                    return Status.DAMAGED, b"", ()
                if not self._take(WEIGHTS):
                    return Status.REFUSED, b"", (1,)
                model.ready = [True] * WEIGHTS
            case Ask.SEAL:
                model.image = model.image or secrets.token_bytes(32)
                return Status.DONE, _sealed(model.image, arguments[1]), struct.unpack("<4Q", model.image)
            case Ask.IMAGE:
                model.image = payload
            case Ask.LOAD:
                if model.ready[arguments[1]]:
                    return Status.BAD, b"", ()
                if self.damaged or payload != _sealed(model.image, arguments[1]):
                    return Status.DAMAGED, b"", ()
                if not self._take(1):
                    return Status.REFUSED, b"", (1,)
                model.ready[arguments[1]] = True
            case Ask.EVICT:
                return self._evict(model, *arguments[1:4])
            case Ask.ORDER:
                return Status.DONE, packed(self.order), ()
            case Ask.RESIDENT:
                return Status.DONE, bytes(model.ready), (model.scratch, model.kv, sum(model.ready))
            case _:
                return None
        return Status.DONE, b"", ()

    def _evict(
        self, model: PlayedModel, kind: int, first: int, end: int
    ) -> tuple[Status, bytes, tuple[int, ...]]:
        if kind == Kind.WEIGHTS:
            went = sum(model.ready[first:end])
            model.ready[first:end] = [False] * (end - first)
        elif model.running:
            return Status.BAD, b"", ()
        elif kind == Kind.KV:
            went, model.kv = model.kv, 0
            model.cached = [[] for _ in model.cached]
        else:
            went, model.scratch = model.scratch, 0
        self.unused += went
        return Status.DONE, b"", (went,)

    def _text(
        self, kind: Ask, _model: PlayedModel, arguments: Sequence[int], payload: bytes
    ) -> tuple[Status, bytes, tuple[int, ...]] | None:
        match kind:
            case Ask.TOKENISE:
                return Status.DONE, packed(list(payload)), ()
            case Ask.DESCRIBE:
                return Status.DONE, self.metadata.get(payload.decode(), "").encode(), ()
            case Ask.WORDS:
                words = [struct.pack("<III", _NORMAL, 0, 1) + bytes([token]) for token in range(END)]
                words.append(struct.pack("<III", _CONTROL, 1, 5) + b"<end>")
                return Status.DONE, b"".join(words[arguments[1] :][:100]), (END + 1,)
            case Ask.MARKS:
                return Status.DONE, struct.pack("<7i", *MARKS), ()
        return None

    def _generations(
        self, kind: Ask, model: PlayedModel, arguments: Sequence[int], payload: bytes
    ) -> tuple[Status, bytes, tuple[int, ...]] | None:
        match kind:
            case Ask.BEGIN:
                prompt, cached = unpacked(payload), model.cached[arguments[1]]
                same = next((n for n, (a, b) in enumerate(zip(cached, prompt, strict=False)) if a != b), None)
                shared = min(len(cached), len(prompt)) if same is None else same
                owner = arguments[3], arguments[4]
                done = min(shared, len(prompt) - 1) if owner == model.owners[arguments[1]] else 0
                model.owners[arguments[1]] = owner
                model.running[arguments[1]] = PlayedGeneration(prompt, done, arguments[2])
                return Status.DONE, b"", (len(prompt) - done,)
            case Ask.BEGIN_SEALED:
                found = self.sealed.begun(arguments[2])
                if found is None:
                    return Status.BAD, b"", ()
                prompt, whose, most = found
                begun = (Ask.BEGIN, model, (*arguments[:2], most, *whose), packed(prompt))
                answered = self._generations(*begun)
                self.sealed.running(arguments[2], model.running[arguments[1]])
                return answered
            case Ask.STEP:
                return self._step(model, arguments[1], unpacked(payload), waits=arguments[2] == 1)
            case Ask.SAID:
                it = model.running[arguments[1]]
                said = it.tell()
                scores = [SCORE.pack(token, -0.25) * it.width for token in said]
                return Status.DONE, packed(said) + b"".join(scores), (len(said),)
            case Ask.ADMIT:
                bits = int.from_bytes(payload, "little")
                model.running[arguments[1]].admitted = {n for n in range(END + 1) if bits >> n & 1}
                return Status.DONE, b"", ()
            case Ask.EMBED:
                self._compute(model, waits=arguments[3] == 1)
                if not all(model.ready):
                    return Status.MISSING, b"", (1,)
                self.embedded = unpacked(payload)
                return (
                    Status.DONE,
                    struct.pack("<f", 0.5) if arguments[1] else struct.pack("<2f", 3.0, 4.0),
                    (),
                )
            case Ask.SAMPLING:
                model.running[arguments[1]].choose_by(payload)
                return Status.DONE, b"", ()
            case Ask.SHIFT:
                it = model.running[arguments[1]]
                status = it.shift(*arguments[2:4])
                return status, b"", (len(it.tokens) - it.done,)
            case Ask.END:
                if (ended := model.running.pop(arguments[1], None)) is not None:
                    model.cached[arguments[1]] = ended.tokens[: ended.done]
                return Status.DONE, b"", ()
        return None

    def _compute(self, model: PlayedModel, *, waits: bool) -> None:
        self._stepping, self._waits = True, waits
        self.between_slices()
        self.answer_waiting()
        while self._waits and not all(model.ready):
            self._answer(*self._heard.get())
        self._stepping = False

    def _step(
        self, model: PlayedModel, limit: int, sequences: Sequence[int], *, waits: bool
    ) -> tuple[Status, bytes, tuple[int, ...]]:
        lacks = KV + SCRATCH - model.kv - model.scratch
        if not self._take(lacks):
            return Status.REFUSED, b"", (lacks - self.unused,)
        model.kv, model.scratch = KV, SCRATCH
        self._compute(model, waits=waits)
        if not all(model.ready):
            return Status.MISSING, b"", (model.ready.count(False),)
        progress = b""
        for sequence in sequences:
            it = model.running[sequence]
            it.done += min(limit, len(it.tokens) - it.done)
            if it.done == len(it.tokens):
                it.choose()
            progress += struct.pack("<IIII", sequence, len(it.tokens) - it.done, it.said, it.finished)
        return Status.DONE, progress, (self.waited,)

    def _kv(
        self, kind: Ask, model: PlayedModel, arguments: Sequence[int], payload: bytes
    ) -> tuple[Status, bytes, tuple[int, ...]] | None:
        match kind:
            case Ask.KEEP:
                if not self.unused:
                    return Status.REFUSED, b"", (1,)
                model.kept = packed(model.cached[arguments[1]])
                return Status.DONE, bytes(32), (len(model.kept),)
            case Ask.KEPT:
                part = model.kept[arguments[1] * KEPT_PART :][:KEPT_PART]
                return Status.DONE, _hidden(part) + bytes(16), ()
            case Ask.RESUME:
                self._resuming, self._owner = arguments[1], (arguments[3], arguments[4])
            case Ask.RESUMED:
                if self.damaged or self.damaged_kv:
                    return Status.DAMAGED, b"", ()
                model.owners[self._resuming] = self._owner
                model.cached[self._resuming] = unpacked(_hidden(payload[:-16]))
            case _:
                return None
        return Status.DONE, b"", ()


def _sealed(salt: bytes, chunk: int) -> bytes:
    return hashlib.sha256(salt + bytes([chunk])).digest() + bytes(16)


def _hidden(data: bytes) -> bytes:
    return bytes(byte ^ 0x5A for byte in data)
