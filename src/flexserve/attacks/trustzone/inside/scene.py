"""The machine under attack when the secure world is inside it: a model computes at S-EL0 meanwhile.

The guest's kernel attacks as in `..scene`. This process plays the guest's user space, which drives the
application through its ring; and it can see all of RAM, so it knows what the attacker got.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from flexserve.attacks.attempt import Gained, Pointless
from flexserve.attacks.target import MODEL, SHAPE, Target
from flexserve.attacks.trustzone.inside.dump import places_in_ram
from flexserve.attacks.trustzone.scene import CPUS, DEVICES, LINE, RAM_BYTES, Attacked, until
from flexserve.emulator.build import Images
from flexserve.emulator.machine import Machine
from flexserve.errors import FlexServeError, NormalWorldError, PeerError
from flexserve.harness.inner import Application, Image, Model, NotDone, SealedFile, SealedKv
from flexserve.harness.shapes import SHAPES
from flexserve.harness.synth import write_synthetic
from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.mailbox import Mailbox
from flexserve.platforms.trustzone.ram import BASE, PAGE, Ram
from flexserve.tee_client.messages import Ask, Status
from flexserve.trusted.store.keys import DeviceKey
from flexserve.trusted.store.sealing import seal_file
from flexserve.units import MIB

PROMPT, TOKENS = "Kato bime.", 4
CHUNKS, HEAP = 56, 24  # granted, and of these for its heap
ALL = 1 << 12  # chunks: more than there are
_CHUNK = 2 * MIB
_MORE = 2  # answers until one was begun after now
_LONG = 60.0  # seconds
SAID = "/sys/kernel/debug/flexmem/said"


@dataclasses.dataclass(slots=True)
class Talk:
    """A model that is asked over and over."""

    thread: threading.Thread
    answers: int = 0
    wrong: str = ""


@dataclasses.dataclass(slots=True)
class Inside(Attacked):
    """A machine whose trusted application has a model with a canary in its weights, once that is held."""

    target: Target
    file: SealedFile
    app: Application
    model: Model | None = None
    image: Image | None = None
    older: tuple[Image, SealedKv] | None = None  # sealed by an opening before
    foreign: tuple[Image, SealedKv] | None = None  # of another model, which is laid out alike
    prompt: list[int] = dataclasses.field(default_factory=list)
    expected: list[int] = dataclasses.field(default_factory=list)  # what it says when nobody interferes
    _page: int = 0  # where the canary was seen last
    _talk: Talk | None = None

    @classmethod
    @contextlib.contextmanager
    def set(cls, images: Images, folder: Path, *, resets: bool = False, cpus: int = CPUS) -> Iterator[Inside]:
        """Boot, load the attacker, and greet the application, which has nothing yet.

        The model is sealed into `folder`. With `resets` the machine starts again after a reset. Two
        threads compute, on however many CPUs.
        """
        target = Target.make(folder)
        with Machine(
            images,
            ram_bytes=RAM_BYTES,
            cpus=cpus,
            devices=DEVICES,
            lines=(LINE,),
            resets=resets,
            secret=target.key.read_bytes(),
        ) as machine:
            yield cls.on(machine, target)

    @classmethod
    def on(cls, machine: Machine, target: Target) -> Inside:
        """Set the scene on a machine that has just started."""
        machine.agent.ask("load", "flexattack")
        machine.agent.ask("write", "/sys/module/flexmem/parameters/idle_ms", "0")  # we switch it off
        file = SealedFile.read(target.root / f"models/{MODEL}.flex", DeviceKey.load(target.key))
        app = Application.of(machine, threads=CPUS)
        mailbox = Mailbox(Ram(machine.ram_fd), machine.doorbell)
        return cls(machine, mailbox, target.canary, target, file, app)

    def attack(self, *words: object, seconds: float = _LONG) -> dict[str, int]:
        """As Attacked.attack. Then the driver lends all CPUs anew.

        An attack that lends CPUs by itself leaves them with the secure world in its midst, or told that it is
        idle until a moment of which the driver did not hear.
        """
        try:
            return Attacked.attack(self, *words, seconds=seconds)
        finally:
            with contextlib.suppress(NormalWorldError):  # the machine is gone, which who asks next hears
                self.machine.agent.ask("write", SAID, "1")

    # ---- the secure world ------------------------------------------------------------------------------

    @property
    def opened(self) -> Model:
        """The model. Raises Pointless when nothing was held yet."""
        if self.model is None:
            raise Pointless("no model is open")
        return self.model

    @property
    def sealed(self) -> Image:
        """The image of its weights. Raises Pointless when nothing was held yet."""
        if self.image is None:
            raise Pointless("nothing was sealed yet")
        return self.image

    @property
    def others(self) -> tuple[tuple[Image, SealedKv], tuple[Image, SealedKv]]:
        """What an opening before sealed, and one of another model. Raises Pointless without `hold`."""
        if self.older is None or self.foreign is None:
            raise Pointless("nothing was sealed yet")
        return self.older, self.foreign

    def hold(self) -> None:
        """Have the model in memory; at first open it, too, and have it say what is expected from then on."""
        missing = CHUNKS - self.machine.monitor().pages["SECURE"] // _CHUNK
        if missing > 0:
            self.app.do(Ask.GRANT, missing)
        if self.model is not None:
            self._load()
            return
        self.app.do(Ask.HEAP, HEAP, 1)
        self.older = self._opened_once(self.file)
        self.foreign = self._opened_once(self._other_file())
        self.model = Model(self.app, self.file, sequences=2)
        self.model.write()
        self.image = self.model.seal()
        self.model.do(Ask.IMAGE, payload=self.image.salt)
        self.prompt = self.model.tokenise(PROMPT)
        self.expected = self.model.answer(self.prompt, most=TOKENS)

    def _load(self) -> None:
        """Load the weights. What is SECURE may be in use for something else: then as much is granted anew."""
        for _ in range(self.opened.chunks):  # each may lack its own
            try:
                return self.opened.load(self.sealed)
            except NotDone as refusal:
                if refusal.reply.status is not Status.REFUSED:
                    raise
                self.app.do(Ask.GRANT, refusal.reply.values[0])
        return self.opened.load(self.sealed)

    def _opened_once(self, file: SealedFile) -> tuple[Image, SealedKv]:
        """Open a model and close it again; return what was sealed of it meanwhile."""
        model = Model(self.app, file, number=1)
        model.write()
        image = model.seal()
        model.answer(model.tokenise(PROMPT), most=TOKENS)
        kept = model.keep()
        model.do(Ask.CLOSE)
        return image, kept

    def release(self) -> None:
        """Have the model evicted and all that is unused given back, and wait until the OS has it."""
        self.opened.evict()
        self.app.do(Ask.GIVE_BACK, ALL)
        until(
            lambda: not self.machine.monitor().pages["RECALLING"], "the OS does not take what it is offered"
        )

    def secure(self) -> int:
        """Return the address of the SECURE page that contains the canary, or of the first one of its block.

        Linux counts users of a block's first page only: it hands out no other page to programs.
        """
        if not self._page or self.canary not in self.bytes_at(self._page, PAGE):
            self._page = self._found()
        if self.state(self._page) is not abi.PageState.SECURE:
            raise Gained("the canary is in a page that is not SECURE")
        first = self._page // _CHUNK * _CHUNK
        block = range((first - BASE) // PAGE, (self._page - BASE) // PAGE)
        whole = all(self.mailbox.states[page] == abi.PageState.SECURE for page in block)
        return first if whole else self._page

    def _found(self) -> int:
        for at in places_in_ram(self.canary, self.machine.ram_fd):
            return BASE + at // PAGE * PAGE
        raise Pointless("the canary is not in RAM")

    def _other_file(self) -> SealedFile:
        """Seal another model of the same shape."""
        folder, device = self.target.root.parent, DeviceKey.load(self.target.key)
        source, path = folder / "other.gguf", folder / "other.flex"
        write_synthetic(source, SHAPES[SHAPE], "f16", seed=1)
        seal_file(source, path, "other", device, lambda _done, _total: None)
        source.unlink()
        return SealedFile.read(path, device)

    # ---- answers -----------------------------------------------------------------------------------------

    def answer(self) -> list[int]:
        """Ask the model, which computes all of it again. Raises Gained when it says something else."""
        self.opened.do(Ask.EVICT, 1, 0, 0)  # its KV has the prompt
        said = self.opened.answer(self.prompt, most=TOKENS)
        if said != self.expected:
            raise Gained("the model said something else")
        return said

    @contextlib.contextmanager
    def computing(self) -> Iterator[Talk]:
        """Have the model answer over and over meanwhile, at least twice.

        Raises Gained when it said something else, or does not answer any more; and what ends the machine.
        """
        end = threading.Event()
        failures: list[FlexServeError] = []

        def go_on() -> None:
            try:
                while not end.is_set() or talk.answers < _MORE:
                    self.answer()
                    talk.answers += 1
            except (Gained, NotDone) as error:
                talk.wrong = str(error)
            except PeerError as error:
                talk.wrong = f"it does not go on: {error.message}"
            except FlexServeError as error:
                failures.append(error)

        self._talk = talk = Talk(threading.Thread(target=go_on, name="talk"))
        talk.thread.start()
        try:
            yield talk
        finally:
            end.set()
            talk.thread.join()
            self._talk = None
        if failures:
            raise failures[0]
        if talk.wrong:
            raise Gained(talk.wrong)

    def check_canary(self) -> None:
        """Raise Gained when the model says something else, or its weights are not where they were."""
        if self._talk is None:
            self.answer()
        else:
            self._wait_for_answers(self._talk)
        self.secure()

    @staticmethod
    def _wait_for_answers(talk: Talk) -> None:
        before, deadline = talk.answers, time.monotonic() + _LONG
        while talk.thread.is_alive() and talk.answers < before + _MORE:
            if time.monotonic() > deadline:
                raise Gained("the model does not answer any more")
            time.sleep(0.005)
        if talk.wrong:
            raise Gained(talk.wrong)
