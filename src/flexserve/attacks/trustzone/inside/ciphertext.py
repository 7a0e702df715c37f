"""Ciphertext that is not what was sealed: of another place, time, model or conversation, or made up."""

from __future__ import annotations

import secrets
import struct

from flexserve.attacks.attempt import Gained, Pointless
from flexserve.attacks.trustzone.inside.scene import ALL, TOKENS, Inside
from flexserve.attacks.trustzone.scene import demand, until
from flexserve.harness.inner import WEIGHTS, SealedKv
from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.ram import BASE, PAGE
from flexserve.tee_client.messages import KEPT_PART, Ask, Status

_TAG = 16  # bytes
_PAGES = 512  # of a chunk
_RUN_LENGTHS = (0, 1, 513, 1 << 40)
_LONG, _WHOLE = 100, 2  # tokens of a conversation whose KV has more parts than these, which are whole
_NOBODY, _SOMEBODY = (0, 0), (1, 0)  # owners of KV


def load_other_weights(scene: Inside) -> str:
    """Load weights of another place, of another image, altered, cut off, or with another salt."""
    model, sealed = scene.opened, scene.sealed
    (older, _), (foreign, _) = scene.others
    chunk = sealed.chunks[0]
    wrong = {
        "a chunk of another place": (sealed.salt, sealed.chunks[1 % len(sealed.chunks)]),
        "a chunk of an older image": (sealed.salt, older.chunks[0]),
        "a chunk under another image's salt": (older.salt, chunk),
        "a chunk of another model": (sealed.salt, foreign.chunks[0]),
        "another model's image": (foreign.salt, foreign.chunks[0]),
        "a chunk with another bit": (
            sealed.salt,
            chunk[: -_TAG - 1] + bytes((chunk[-_TAG - 1] ^ 1,)) + chunk[-_TAG:],
        ),
        "a chunk with another tag": (sealed.salt, chunk[:-1] + bytes((chunk[-1] ^ 1,))),
        "random bytes": (sealed.salt, secrets.token_bytes(len(chunk))),
        "a part of a chunk": (sealed.salt, chunk[:-1]),
    }
    model.do(Ask.EVICT, WEIGHTS, 0, 1)
    for name, (salt, data) in wrong.items():
        model.do(Ask.IMAGE, payload=salt)
        status = scene.app.ask(Ask.LOAD, model.number, 0, payload=data).status
        if status is Status.DONE:
            raise Gained(f"it took {name} for its weights")
        if status not in (Status.DAMAGED, Status.BAD):
            raise Pointless(f"{name} is answered {status.name}")
        if model.do(Ask.RESIDENT).payload[0]:
            raise Gained(f"{name} is in memory")
    for image in (older, sealed):  # of the same weights: an older one is as good
        model.do(Ask.EVICT, WEIGHTS, 0, 1)
        model.do(Ask.IMAGE, payload=image.salt)
        if scene.app.ask(Ask.LOAD, model.number, 0, payload=image.chunks[0]).status is not Status.DONE:
            raise Pointless("the right chunk is refused, too")
        scene.check_canary()
    return f"{len(wrong)} of them: each chunk is bound to model, image, layout and place by its tag"


def seal_again(scene: Inside) -> str:
    """Have weights sealed twice under one salt, to compare, or after they were altered."""
    model = scene.opened
    if scene.app.ask(Ask.SEAL, model.number, 0).status is Status.DONE:
        raise Gained("a place was encrypted twice under a salt")
    (older, _), _ = scene.others
    same = [
        n for n, pair in enumerate(zip(older.chunks, scene.sealed.chunks, strict=True)) if pair[0] == pair[1]
    ]
    if older.salt == scene.sealed.salt or same:
        raise Gained("another opening sealed under the same salt")
    scene.answer()
    first, second = model.keep(), model.keep()
    if first.salt == second.salt or first.parts[0] == second.parts[0]:
        raise Gained("one conversation was sealed twice under a salt")
    return "a salt is used once, and a place once under it"


def resume_other_conversations(scene: Inside) -> str:
    """Have a conversation go on from KV of another opening or owner, cut off, mixed, altered, or none."""
    model = scene.opened
    prompt = (scene.prompt * _LONG)[:_LONG]
    model.do(Ask.EVICT, 1, 0, 0)
    expected = model.answer(prompt, most=TOKENS)
    kept, ((_, other), (_, foreign)) = model.keep(), scene.others
    if len(kept.parts) <= _WHOLE:
        raise Pointless(f"the conversation has {len(kept.parts)} parts: no two of them can change places")
    if model.resume(kept, 1) is not Status.DONE:
        raise Pointless("what was kept is refused, too")
    if (to_compute := model.begin(prompt, sequence=1, most=TOKENS)) != 1:
        raise Pointless(f"what was kept is not used: {to_compute} tokens to compute")
    if model.finish(1) != expected:
        raise Gained("it goes on with other words")
    first, second, *_, last = kept.parts
    wrong = {
        "with another salt": SealedKv(kept.size, secrets.token_bytes(32), kept.parts),
        "longer than it is": SealedKv(kept.size + 1, kept.salt, kept.parts),
        "cut off": SealedKv(_WHOLE * KEPT_PART, kept.salt, kept.parts[:_WHOLE]),
        "altered": SealedKv(
            kept.size,
            kept.salt,
            [*kept.parts[:-1], last[: -_TAG - 1] + bytes((last[-_TAG - 1] ^ 1,)) + last[-_TAG:]],
        ),
        "of another model": foreign,
        "mixed with another": SealedKv(other.size, kept.salt, other.parts),
        "in another order": SealedKv(kept.size, kept.salt, [second, first, *kept.parts[_WHOLE:]]),
        "made up": SealedKv(64, kept.salt, [secrets.token_bytes(64 + _TAG)]),
    }
    tries = [(name, kv, _NOBODY) for name, kv in wrong.items()]
    for name, kv, owner in [*tries, ("of another owner", kept, _SOMEBODY)]:
        status = model.resume(kv, 1, owner)
        if status in (Status.DONE, Status.UNSUPPORTED):  # it fits, or it does not: it passed for genuine
            raise Gained(f"it took KV that is {name} ({status.name})")
        if status not in (Status.DAMAGED, Status.BAD):
            raise Pointless(f"KV that is {name} is answered {status.name}")
        if model.answer(prompt, most=TOKENS, sequence=1) != expected:
            raise Gained(f"after KV that is {name} it says something else")
    scene.check_canary()
    return f"{len(tries) + 1} kinds of it: each part is bound to model, layout, salt, owner, place and length"


def lie_as_a_disk(scene: Inside) -> str:
    """Hand over pages in which a disk put something else, pages in use, the ring, and what are no pages."""
    model, sealed = scene.opened, scene.sealed
    model.do(Ask.EVICT, WEIGHTS, 0, 1)
    tag = sealed.chunks[0][-_TAG:]
    for name, runs in _pages_that_are_none(scene).items():
        reply = scene.app.ask(Ask.LOAD_PAGES, model.number, 0, payload=tag + _packed_runs(runs))
        if reply.status is Status.DONE:
            raise Gained(f"it took {name} for its weights")
        if reply.status is not Status.BAD:
            raise Pointless(f"{name}: {reply.status.name}")
    block = scene.attack("block")["ipa"]
    if not block:
        raise Pointless("the kernel has no 2 MiB in one piece")
    right = sealed.chunks[0][:-_TAG]
    for content in (secrets.token_bytes(len(right)), right):
        status = _handed_over(scene, block, content, tag)
        if content == right and status is not Status.DONE:
            raise Pointless(f"the right content is refused, too: {status.name}")
        if content != right and status is not Status.DAMAGED:
            raise Gained(f"content that is not genuine was answered {status.name}")
        if content != right and _any(scene, block, len(content)):
            raise Gained("what is not genuine stays in memory")
        _take_back(scene, block)
    scene.hold()
    scene.check_canary()
    return "what is no page of the OS's is refused; a page whose content is not genuine is wiped"


def _handed_over(scene: Inside, block: int, content: bytes, tag: bytes) -> Status:
    """Have a disk's content in the block, and the block loaded as the first chunk."""
    for offset in range(0, len(content), PAGE):
        scene.put(block + offset, content[offset : offset + PAGE])
    demand(scene.call(abi.Call.GRANT, block, _PAGES), abi.Status.OK, "a block of its own was refused")
    payload = tag + _packed_runs([(block // PAGE, _PAGES)])
    return scene.app.ask(Ask.LOAD_PAGES, scene.opened.number, 0, payload=payload).status


def _any(scene: Inside, block: int, length: int) -> bool:
    return any(any(scene.bytes_at(block + offset, PAGE)) for offset in range(0, length, PAGE))


def _take_back(scene: Inside, block: int) -> None:
    """Have the block given back, and take it: the driver, which never had it, does not."""
    scene.opened.do(Ask.EVICT, WEIGHTS, 0, 1)
    scene.app.do(Ask.GIVE_BACK, ALL)
    until(lambda: scene.call(abi.Call.TAKE, block, _PAGES) == abi.Status.OK, "the block does not come back")
    if _any(scene, block, _PAGES * PAGE):
        raise Gained("the block came back with something in it")


def _pages_that_are_none(scene: Inside) -> dict[str, list[tuple[int, int]]]:
    """Return runs of pages that the secure world must not take, each with as many as a chunk has."""
    state = scene.machine.agent.ask("flexmem")
    ring, end = state["ring_page"], (BASE + scene.machine.ram_bytes) // PAGE
    secure, own = scene.secure() // PAGE, scene.own() // PAGE
    rest = [(own, 1)] * (_PAGES - 1)
    found = {
        "pages of the ring": [(ring + n % state["ring_pages"], 1) for n in range(_PAGES)],
        "a page that is in use": [(secure, 1), *rest],
        "a page that was not granted": [(own, 1), *rest],
        "the monitor": [(end - _PAGES, _PAGES)],
        "what is beyond RAM": [(end, _PAGES)],
        "registers of devices": [(0x0900_0000 // PAGE, _PAGES)],
        "secure RAM": [(0x0E10_0000 // PAGE, _PAGES)],
        "page 0": [(0, _PAGES)],
        "no pages at all": [],
    }
    for length in _RUN_LENGTHS:
        found[f"a run of {length} pages"] = [(own, length)]
    return found


def _packed_runs(runs: list[tuple[int, int]]) -> bytes:
    return b"".join(struct.pack("<2Q", *run) for run in runs)
