"""Damage to the store: a wrong byte never reaches a token, and what is derived is made again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from library import CHUNK, CONTEXT, PROMPTS, SLOW, Library

from flexserve.errors import PeerError, StoredDataError
from flexserve.harness.worlds import DrivenWorld
from flexserve.protocol.prompts import TextPrompt
from flexserve.protocol.statuses import Failure
from flexserve.trusted.store.image import ALIGN
from flexserve.trusted.store.manifest import BLOCK_SIZE
from flexserve.units import align_up

pytestmark = pytest.mark.engine

SHAPE, QUANT = "small-llama", "q8_0"
PROMPT, TOKENS = PROMPTS[1], 6
# Prompts are cut and batched as requests come, and numbers are rounded otherwise in other batches. After
# these, with weights of f16, each of 24 tokens leads by 0.12 at least, and that changes by 0.01 at most.
STEADY = ("wurafo lo kane.", "lo Zi.", "pi Zi mera Zi dolo.")
PRELUDE = struct.Struct("<8sIQ32s16s")  # of an image: magic, version, length of the index, salt, tag


@pytest.fixture(scope="module", autouse=True)
def healthy(library: Library) -> str:
    """A model that nobody damages, for the same world to serve."""
    return library.add(library.file("small-qwen2", QUANT), "healthy")


def image_of(library: Library, name: str) -> Path:
    with library.store.open(name) as sealed:
        (image,) = library.store.derived.images(sealed.manifest)
    return image


def files_of(library: Library, name: str) -> list[Path]:
    """Return the images of a model, and unfinished ones of any model."""
    with library.store.open(name) as sealed:
        model = sealed.manifest.model_id
    return [path for path in library.images() if path.name.startswith((model, "."))]


def data_start(image: Path) -> int:
    _, _, length, _, _ = PRELUDE.unpack(image.read_bytes()[: PRELUDE.size])
    return align_up(PRELUDE.size + length, ALIGN)


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def flip(path: Path, offset: int) -> None:
    patch(path, offset, bytes([path.read_bytes()[offset] ^ 1]))


def flip_a_byte_of_the_first_chunk(image: Path) -> None:
    flip(image, data_start(image))


def flip_a_byte_of_the_last_chunk(image: Path) -> None:
    flip(image, image.stat().st_size - ALIGN)


def swap_two_chunks(image: Path) -> None:
    start, data = data_start(image), image.read_bytes()
    one, other = (data[at : at + CHUNK] for at in (start + CHUNK, start + 5 * CHUNK))
    assert one != other
    patch(image, start + CHUNK, other)
    patch(image, start + 5 * CHUNK, one)


def zero_all_chunks(image: Path) -> None:
    start = data_start(image)
    patch(image, start, bytes(image.stat().st_size - start))


def cut_in_half(image: Path) -> None:
    os.truncate(image, image.stat().st_size // 2)


def empty(image: Path) -> None:
    os.truncate(image, 0)


@contextlib.contextmanager
def undone(path: Path) -> Iterator[None]:
    """Put the bytes of `path` back afterwards, in the same file."""
    before = path.read_bytes()
    try:
        yield
    finally:
        patch(path, 0, before)


def flip_amidst_the_weights(path: Path, metadata_bytes: int) -> None:
    """Damage a .flex file."""
    weights = BLOCK_SIZE + metadata_bytes
    flip(path, weights + (path.stat().st_size - weights) // 2)


def error_of(world: DrivenWorld, name: str) -> Failure | None:
    return next(model.error for model in world.status().models if model.name == name)


def assert_refused_without_a_token(world: DrivenWorld, name: str) -> None:
    said: list[str] = []
    with pytest.raises(StoredDataError):
        world.generate(name, PROMPT, TOKENS, on_text=said.append)
    assert said == []


@pytest.mark.parametrize(
    "damage",
    [
        *(flip_a_byte_of_the_first_chunk, flip_a_byte_of_the_last_chunk, swap_two_chunks),
        *(zero_all_chunks, cut_in_half, empty),
    ],
)
def test_weights_that_turn_out_to_be_damaged_are_made_anew_and_nobody_notices(
    library: Library, world: DrivenWorld, healthy: str, damage: Callable[[Path], None]
):
    source = library.file(SHAPE, QUANT)
    name = library.add(source, damage.__name__.replace("_", "-"))
    expected = library.answer(source, PROMPT, TOKENS)
    assert world.generate(name, PROMPT, TOKENS).text == expected
    world.recall(None)
    image = image_of(library, name)
    before = image.read_bytes()
    damage(image)
    assert world.generate(name, PROMPT, TOKENS).text == expected
    assert error_of(world, name) is None
    assert image_of(library, name).stat().st_size == len(before)
    assert world.generate(healthy, PROMPT, TOKENS).text == library.answer(
        library.file("small-qwen2", QUANT), PROMPT, TOKENS
    )
    world.recall(None)
    damage(image_of(library, name))
    assert world.warm(name).timings.restored_bytes > 0
    assert world.generate(name, PROMPT, TOKENS).text == expected


def test_an_image_that_was_removed_while_it_is_in_use_is_no_damage(library: Library, world: DrivenWorld):
    source = library.file(SHAPE, QUANT)
    name = library.add(source, "unlinked")
    world.warm(name)
    world.recall(None)
    image_of(library, name).unlink()
    assert world.generate(name, PROMPT, TOKENS).text == library.answer(source, PROMPT, TOKENS)


def test_streams_go_on_over_damage_that_is_found_in_the_middle_of_them(
    library: Library, world: DrivenWorld, healthy: str
):
    source, other = library.file(SLOW, "f16"), library.file("small-qwen2", QUANT)
    name = library.add(source, "damaged-meanwhile")
    expected = [library.answer(source, prompt, 24) for prompt in STEADY]
    world.warm(name)
    said: list[str] = []

    def damage_after_two(text: str) -> None:
        said.append(text)
        if len(said) == 2:
            flip_a_byte_of_the_last_chunk(image_of(library, name))
            world.recall(1 << 40)  # a number: weights in use are not spared

    numbers = [world.submit(name, TextPrompt(prompt), 24) for prompt in STEADY]
    beside = world.submit(healthy, TextPrompt(PROMPT), TOKENS)
    texts = [world.result(numbers[0], damage_after_two).text]
    texts += [world.result(number).text for number in numbers[1:]]
    assert texts == expected
    assert world.result(beside).text == library.answer(other, PROMPT, TOKENS)
    assert error_of(world, name) is None


def test_a_disk_that_damages_the_image_again_and_again_fails_the_request_and_not_the_model(
    library: Library, world: DrivenWorld
):
    source = library.file(SLOW, QUANT)
    name = library.add(source, "damaged-again")
    expected = library.answer(source, PROMPT, 64)
    world.warm(name)
    said: list[str] = []
    damaged: set[int] = set()  # numbers of files

    def damage_twice(text: str) -> None:
        said.append(text)
        for image in files_of(library, name):
            with contextlib.suppress(FileNotFoundError):  # the world removes what is damaged
                number = image.stat().st_ino
                if image.suffix == ".img" and number not in damaged and len(damaged) < 2:
                    zero_all_chunks(image)
                    damaged.add(number)
                    world.recall(1 << 40)

    with pytest.raises(StoredDataError) as raised:
        world.generate(name, PROMPT, CONTEXT - 16, on_text=damage_twice)
    assert len(damaged) == 2
    assert raised.value.code == "image_damaged"
    assert "emove" not in raised.value.hint
    assert "".join(said)[: len(expected)] == expected[: len("".join(said))]
    assert world.generate(name, PROMPT, 64).text == expected


def test_only_a_damaged_model_is_an_error_when_its_image_is_damaged_as_well(
    library: Library, world: DrivenWorld, healthy: str
):
    source = library.file(SHAPE, QUANT)
    name = library.add(source, "both-damaged")
    expected = library.answer(source, PROMPT, TOKENS)
    assert world.generate(name, PROMPT, TOKENS).text == expected
    world.recall(None)
    zero_all_chunks(image_of(library, name))
    with library.store.open(name) as sealed:
        metadata = sealed.manifest.metadata_bytes
    path = library.root / "models" / f"{name}.flex"
    with undone(path):
        flip_amidst_the_weights(path, metadata)
        for _ in range(2):
            assert_refused_without_a_token(world, name)
        with pytest.raises(StoredDataError):
            world.warm(name)
        error = error_of(world, name)
        assert error is not None
        assert error.blame == "stored_data"
        assert error.code != "image_damaged"
        assert files_of(library, name) == []
        other = library.answer(library.file("small-qwen2", QUANT), PROMPT, TOKENS)
        assert world.generate(healthy, PROMPT, TOKENS).text == other
    assert world.generate(name, PROMPT, TOKENS).text == expected, "it is whole again"


def flip_a_byte_of_the_index(image: Path) -> None:
    flip(image, PRELUDE.size + 10)


def flip_a_byte_of_its_tag(image: Path) -> None:
    flip(image, PRELUDE.size - 1)


def claim_a_huge_index(image: Path) -> None:
    patch(image, 12, (1 << 60).to_bytes(8, "little"))


@pytest.mark.parametrize(
    "damage",
    [Path.unlink, cut_in_half, empty, flip_a_byte_of_the_index, flip_a_byte_of_its_tag, claim_a_huge_index],
)
def test_an_image_that_cannot_be_opened_is_made_again(
    library: Library, world: DrivenWorld, damage: Callable[[Path], None]
):
    source = library.file(SHAPE, QUANT)
    name = library.add(source, f"remade-{damage.__name__.replace('_', '-')}")
    with library.open() as maker:
        maker.warm(name)
    image = image_of(library, name)
    damage(image)
    assert world.generate(name, PROMPT, TOKENS).text == library.answer(source, PROMPT, TOKENS)
    world.recall(None)
    assert world.warm(name).timings.restored_bytes > 0, "it comes back from what was made"


def test_an_image_of_another_chunk_is_made_again(library: Library, world: DrivenWorld):
    source = library.file(SHAPE, QUANT)
    name = library.add(source, "other-chunk")
    with library.open(chunk=2 * CHUNK) as maker:
        maker.warm(name)
    before = image_of(library, name).read_bytes()
    assert world.generate(name, PROMPT, TOKENS).text == library.answer(source, PROMPT, TOKENS)
    assert image_of(library, name).read_bytes() != before


def test_an_image_of_another_model_is_not_taken_for_ones_own(
    library: Library, world: DrivenWorld, healthy: str
):
    source = library.file(SHAPE, QUANT)
    name = library.add(source, "mistaken")
    with library.open() as maker:
        maker.warm(name)
        maker.warm(healthy)
    shutil.copy(image_of(library, healthy), image_of(library, name))
    assert world.generate(name, PROMPT, TOKENS).text == library.answer(source, PROMPT, TOKENS)


def test_images_for_another_processor_or_llama_cpp_make_room_for_the_right_one(
    library: Library, world: DrivenWorld
):
    source = library.file(SHAPE, QUANT)
    name = library.add(source, "upgraded")
    with library.store.open(name) as sealed:
        stale = library.store.derived.image_path(sealed.manifest, "another processor")
    stale.write_bytes(b"stale")
    assert world.generate(name, PROMPT, TOKENS).text == library.answer(source, PROMPT, TOKENS)
    assert not stale.exists()
    assert image_of(library, name) != stale


def test_a_damaged_model_gives_an_error_and_no_half_made_image(library: Library, world: DrivenWorld):
    source = library.file(SHAPE, QUANT)
    name = library.add(source, "damaged-model")
    with library.store.open(name) as sealed:
        metadata = sealed.manifest.metadata_bytes
    path = library.root / "models" / f"{name}.flex"
    with undone(path):
        flip_amidst_the_weights(path, metadata)
        assert_refused_without_a_token(world, name)
        assert files_of(library, name) == []
    assert world.generate(name, PROMPT, TOKENS).text == library.answer(source, PROMPT, TOKENS)


def test_a_model_added_under_the_name_of_a_removed_one_answers_for_itself(
    library: Library, world: DrivenWorld
):
    first, second = (library.file(SHAPE, QUANT, seed=seed) for seed in (0, 1))
    answers = [library.answer(source, PROMPT, TOKENS) for source in (first, second)]
    assert answers[0] != answers[1]
    name = library.add(first, "reused")
    assert world.generate(name, PROMPT, TOKENS).text == answers[0]
    library.store.remove(name)
    library.add(second, name)
    assert world.generate(name, PROMPT, TOKENS).text == answers[1]
    assert len(files_of(library, name)) == 1


def test_a_world_killed_while_it_makes_an_image_leaves_nothing_that_harms_the_next(own_library: Library):
    source = own_library.file(SHAPE, QUANT)
    name = own_library.add(source, "killed")
    with own_library.open() as killed:

        def kill_once_begun() -> None:
            if own_library.images():
                os.kill(killed.pid, signal.SIGKILL)

        killed.before_grant = kill_once_begun
        with pytest.raises(PeerError):
            killed.generate(name, PROMPT, TOKENS)
    assert [path.suffix for path in own_library.images()] == [".tmp"]
    with own_library.open() as world:
        assert own_library.images() == []
        assert world.generate(name, PROMPT, TOKENS).text == own_library.answer(source, PROMPT, TOKENS)
    assert own_library.images() == [image_of(own_library, name)]
