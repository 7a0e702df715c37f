"""Messages that change while they are read. The guest may write to the ring whenever it likes."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import struct
import threading
import time
from collections.abc import Callable, Iterator

from flexserve.attacks.attempt import Gained, Pointless
from flexserve.attacks.trustzone.inside.scene import PROMPT, TOKENS, Inside
from flexserve.attacks.trustzone.scene import until
from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.ram import PAGE
from flexserve.tee_client.messages import HEADER, Ask, Reply, Status, packed, unpacked
from flexserve.tee_client.ring import ANSWERS_WRITTEN, REQUESTS_READ, REQUESTS_WRITTEN

_ROUNDS, _FEW = 40, 8
_KIND, _FIRST_ARGUMENT = 0, 16  # where in a request they are
_NONSENSE, _NONE = 0xFFFF_FFFF, (1 << 64) - 1
_MORE_CHUNKS, _PAGES = 2, 512  # chunks that are asked for, and pages of one
_PAST = 4  # wishes and commands that the application made before anything was attacked, at least
_STRIDE = 64  # bytes of the ring from one count to the next
_UNSEEN = 0.3  # seconds; the application looks for requests more often than this
_ALTERED = 32  # bytes of a sealed part
_LARGER = 0x40  # a bit of the exponents of numbers: what has another one is far from what it was


@dataclasses.dataclass(frozen=True, slots=True)
class Doubtful:
    """A request whose bytes at `place` are now its own and now `other`, and then it gets `refusal`."""

    kind: Ask
    arguments: tuple[int, ...]
    payload: bytes
    place: int
    other: bytes
    refusal: Status
    right: Callable[[Reply], bool]  # whether a DONE is what is due to its own bytes


def change_between_check_and_use(scene: Inside) -> str:
    """Alter requests all the time while they are read: a token, what is asked, of which model."""
    right = refused = 0
    for doubtful in (_token(scene), _kind(scene), _model(scene)):
        for _ in range(_ROUNDS):
            done = _made(scene, doubtful)
            right, refused = right + done, refused + (not done)
    scene.check_canary()
    if not right or not refused:
        raise Pointless(f"{right} requests came as they were, {refused} altered: it hit no window")
    return (
        f"a request is copied out of the ring before anybody looks at it: {right} right answers, "
        f"{refused} refusals, nothing between"
    )


def change_sealed_kv_meanwhile(scene: Inside) -> str:
    """Alter the ciphertext of a conversation all the time while the application takes it in."""
    model = scene.opened
    scene.answer()
    kept = model.keep()
    part = kept.parts[0]
    first = len(part) * 9 // 16  # behind all keys: values of the first layer, of the prompt's first tokens
    other = bytes(byte ^ _LARGER for byte in part[first : first + _ALTERED])
    right = refused = 0
    for _ in range(_ROUNDS):
        model.do(Ask.RESUME, 1, kept.size, payload=kept.salt)
        arguments, place = (model.number, 0), HEADER.size + first
        doubtful = Doubtful(Ask.RESUMED, arguments, part, place, other, Status.DAMAGED, lambda _reply: True)
        if not _made(scene, doubtful):
            refused += 1
            continue
        right += 1
        for number, rest in enumerate(kept.parts[1:], 1):
            model.do(Ask.RESUMED, number, payload=rest)
        if model.answer(scene.prompt, most=TOKENS, sequence=1) != scene.expected:
            raise Gained("the conversation goes on with words that are not its own")
    if not right or not refused:
        raise Pointless(f"{right} parts came as they were, {refused} altered: it hit no window")
    return f"it is decrypted from a copy: {right} times it was whole, {refused} times it was refused"


def write_behind_and_ahead(scene: Inside) -> str:
    """Overwrite what of the ring was read, what is not written yet, and the count of what was read."""
    with _scribbling(scene.app.memory):
        for _ in range(_ROUNDS):
            if unpacked(scene.opened.do(Ask.TOKENISE, 0, payload=PROMPT.encode()).payload) != scene.prompt:
                raise Gained("it read what was not said")
    for _ in range(_FEW):
        scene.app.do(Ask.POOL)
        _turn_back(scene.app.memory, HEADER.size)
    scene.check_canary()
    return "its own counts are where the OS cannot write: it reads what was said, once, and nothing else"


# ---- requests ------------------------------------------------------------------------------------------


def answer_what_was_not_asked(scene: Inside) -> str:
    """Answer wishes for memory that are of any number, as the OS: past ones, coming ones, again and again."""
    before = scene.app.do(Ask.POOL).values[0]
    with _answering(scene) as said:
        for _ in range(_FEW):
            granted = scene.app.do(Ask.GRANT, _MORE_CHUNKS, _MORE_CHUNKS).values[0]
            if granted != before + _MORE_CHUNKS:
                raise Gained(
                    f"it took {granted - before} chunks for {_MORE_CHUNKS}, by somebody else's answer"
                )
            if (back := scene.app.do(Ask.GIVE_BACK, _MORE_CHUNKS).values[0]) != _MORE_CHUNKS:
                raise Gained(f"of {_MORE_CHUNKS} chunks it has {back}")
    if not said.count:
        raise Pointless("the monitor passed no answer on")
    until(lambda: not scene.machine.monitor().pages["GRANTED"], "pages stay between the worlds")
    scene.check_canary()
    return f"an answer counts for the wish of its number, while that waits: {said.count} were for nothing"


def _token(scene: Inside) -> Doubtful:
    """A token that is one, and one that is beyond the vocabulary."""
    arguments, payload = (scene.opened.number,), packed(scene.prompt)
    text = scene.opened.do(Ask.DETOKENISE, payload=payload).payload
    last = HEADER.size + len(payload) - 4
    nonsense = packed([_NONSENSE])
    return Doubtful(
        Ask.DETOKENISE, arguments, payload, last, nonsense, Status.BAD, lambda reply: reply.payload == text
    )


def _kind(scene: Inside) -> Doubtful:
    """The tokens of a text, and nothing that can be asked."""
    return Doubtful(
        Ask.TOKENISE,
        (scene.opened.number, 0),
        PROMPT.encode(),
        _KIND,
        struct.pack("<I", 0x4444),
        Status.BAD,
        lambda reply: unpacked(reply.payload) == scene.prompt,
    )


def _model(scene: Inside) -> Doubtful:
    """What is in memory of a model that is open, and of one that is not."""
    chunks, number = scene.opened.chunks, scene.opened.number
    other = struct.pack("<Q", 1 << 63 | 7)
    return Doubtful(
        Ask.RESIDENT, (number,), b"", _FIRST_ARGUMENT, other, Status.BAD, lambda it: len(it.payload) == chunks
    )


def _made(scene: Inside, doubtful: Doubtful) -> bool:
    """Make a request; return whether it came as it was. Raises Gained for an answer to anything else."""
    with _alternating(scene.app.memory, doubtful):
        reply = scene.app.ask(doubtful.kind, *doubtful.arguments, payload=doubtful.payload)
    if reply.status is Status.DONE:
        if not doubtful.right(reply):
            raise Gained(f"{doubtful.kind.name} did what was not asked")
        return True
    if reply.status is not doubtful.refusal:
        raise Gained(f"{doubtful.kind.name} was answered {reply.status.name}")
    return False


# ---- the second hand -----------------------------------------------------------------------------------


def _area(memory: memoryview) -> int:
    """Bytes of the ring of requests, which begins behind the first page."""
    return 1 << ((len(memory) - PAGE) // 2).bit_length() - 1


def _count(memory: memoryview, number: int) -> memoryview:
    return memory[_STRIDE * number : _STRIDE * number + 4].cast("I")


def _turn_back(memory: memoryview, size: int) -> None:
    """Say that the application has not read its last request, of `size` bytes. Raises Gained when it does."""
    read, answered = _count(memory, REQUESTS_READ), _count(memory, ANSWERS_WRITTEN)
    right, said, deadline = read[0], answered[0], time.monotonic() + _UNSEEN
    read[0] = (right - size) % (1 << 32)
    while time.monotonic() < deadline:
        if answered[0] != said:
            raise Gained("it did again what was asked once")
        time.sleep(_UNSEEN / 100)
    read[0] = right


@contextlib.contextmanager
def _alternating(memory: memoryview, doubtful: Doubtful) -> Iterator[None]:
    """Write both values to where the next request has `place`, in turn, as fast as this process can."""
    numbers = (*doubtful.arguments, *[0] * (5 - len(doubtful.arguments)))
    request = HEADER.pack(doubtful.kind, len(doubtful.payload), 0, *numbers) + doubtful.payload
    one = request[doubtful.place : doubtful.place + len(doubtful.other)]
    at = PAGE + (_count(memory, REQUESTS_WRITTEN)[0] + doubtful.place) % _area(memory)
    first, end = memory[at : at + len(one)], threading.Event()
    if len(first) < len(one) or at + len(one) > PAGE + _area(memory):
        yield  # it lies at the ring's end: once it comes as it is
        return

    def go_on() -> None:
        while not end.is_set():
            for _ in range(64):
                first[:] = doubtful.other
                first[:] = one

    with _beside(go_on, end):
        yield


@contextlib.contextmanager
def _scribbling(memory: memoryview) -> Iterator[None]:
    """Write nonsense wherever in the ring of requests none is under way."""
    area, noise, end = _area(memory), b"\xff" * PAGE, threading.Event()

    def go_on() -> None:
        while not end.is_set():
            written = _count(memory, REQUESTS_WRITTEN)[0]
            for eighth in range(2, 7):  # a request of this attack has far less than that
                at = PAGE + (written + eighth * area // 8) % area // PAGE * PAGE
                memory[at : at + PAGE] = noise

    with _beside(go_on, end):
        yield


@dataclasses.dataclass(slots=True)
class Said:
    """How many answers the monitor passed on."""

    count: int = 0


@contextlib.contextmanager
def _answering(scene: Inside) -> Iterator[Said]:
    """Answer wishes of other numbers than the next ones, with any number of pages, all the time."""
    end, said = threading.Event(), Said()
    numbers = [*range(_PAST), *(1 << bit for bit in range(32, 64)), _NONE]

    def go_on() -> None:
        while not end.is_set():
            pages = secrets.choice((0, 1, _PAGES * _MORE_CHUNKS, _NONE))
            said.count += scene.call(abi.Call.ANSWER, secrets.choice(numbers), pages) == abi.Status.OK

    with _beside(go_on, end):
        yield said


@contextlib.contextmanager
def _beside(body: Callable[[], None], end: threading.Event) -> Iterator[None]:
    thread = threading.Thread(target=body, name="second hand")
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
