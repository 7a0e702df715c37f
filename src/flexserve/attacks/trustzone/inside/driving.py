"""The program of a `driver.Driver`: a process of the normal world that drives the application.

It reads lines and answers each with one, "done …" or "failed …":

    open            writes the weights from the sealed file, and keeps their sealed image
    restore         loads the image, and a conversation if one was kept; says how that went
    ask TEXT        the tokens to compute, and those of the answer, in hexadecimal as they come in messages
    keep            seals the conversation
    attest NONCE    a token with these bytes, in hexadecimal
    sealed BODY     the answer to a sealed request, both in hexadecimal
    spy BODY TEXT   how it answers who wants words of a sealed request in other ways; TEXT: a guess of them
    go on TEXT      "going", then asks for ever
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import cbor2
import msgspec

from flexserve.errors import FlexServeError
from flexserve.harness.inner import Application, Image, Model, NotDone, SealedFile, SealedKv
from flexserve.platforms.trustzone.ram import Ram
from flexserve.tee_client.messages import Ask, Finish, packed
from flexserve.tee_client.sealed import SealedRequests
from flexserve.trusted.store.manifest import Manifest

CHUNKS, HEAP, THREADS, TOKENS = 56, 24, 2, 8
HEADER_BYTES = 8192  # of a .flex file: the block that its device signed
MEASUREMENTS = cbor2.dumps({"application": hashlib.sha512(b"as it was built").digest()})


class Session:
    """A model that is open in the application, and a folder for what is sealed of it."""

    def __init__(self, app: Application, file: SealedFile, folder: Path) -> None:
        self._app, self._folder = app, folder
        app.do(Ask.HELLO, THREADS)
        app.do(Ask.GRANT, CHUNKS)
        app.do(Ask.HEAP, HEAP, 1)
        self._model = Model(app, file, sequences=2)
        self._sealed = SealedRequests(app.link)
        with file.path.open("rb") as sealed:
            self._sealed.know(sealed.read(HEADER_BYTES))

    def open(self) -> str:
        """Write the weights, and keep their image."""
        self._model.write()
        (self._folder / "image").write_bytes(msgspec.msgpack.encode(self._model.seal()))
        return ""

    def restore(self) -> str:
        """Load the image, and what was kept of a conversation."""
        self._model.load(msgspec.msgpack.decode((self._folder / "image").read_bytes(), type=Image))
        kept = self._folder / "kv"
        if not kept.exists():
            return "nothing was kept"
        return self._model.resume(msgspec.msgpack.decode(kept.read_bytes(), type=SealedKv)).name

    def ask(self, text: str) -> str:
        """Ask; return the tokens to compute and those of the answer."""
        tokens = self._model.tokenise(text)
        to_compute = self._model.begin(tokens, most=TOKENS)
        return f"{to_compute} {packed(self._model.finish()).hex()}"

    def attest(self, nonce: str) -> str:
        """Return a token with a nonce."""
        return self._sealed.attest(bytes.fromhex(nonce), MEASUREMENTS).hex()

    def sealed(self, body: str) -> str:
        """Pass a sealed request on; return the sealed answer."""
        opened = self._sealed.unseal(self._model.number, bytes.fromhex(body))
        self._sealed.begin(self._model.number, 1, opened.session)
        said = [opened.begin]
        finished = Finish.NO
        while finished is Finish.NO:
            finished = self._model.step(1).finished
            said.append(self._sealed.frame(opened.session))
        said.append(self._sealed.finish(opened.session))
        self._model.do(Ask.END, 1)
        return b"".join(said).hex()

    def spy(self, asked: str) -> str:
        """Begin a sealed request. Ask for its tokens; take its KV; as its owner, guess at its prompt.

        Return by what each of these is called how it was answered.
        """
        body, _, guess = asked.partition(" ")
        model, app = self._model, self._app
        opened = self._sealed.unseal(model.number, bytes.fromhex(body))
        self._sealed.begin(model.number, 1, opened.session)
        model.step(1)
        said = app.ask(Ask.SAID, model.number, 1).status
        self._sealed.finish(opened.session)
        model.do(Ask.END, 1)
        resumed = model.resume(model.keep(1), 1)
        tokens = packed(model.tokenise(guess))
        begun = app.ask(Ask.BEGIN, model.number, 1, 1, *opened.owner, payload=tokens).status
        model.do(Ask.END, 1)
        return f"tokens:{said.name} KV:{resumed.name} guess:{begun.name}"

    def keep(self) -> str:
        """Seal the conversation."""
        kept = msgspec.msgpack.encode(self._model.keep())
        (self._folder / "kv").write_bytes(kept)
        return ""


def _serve(session: Session, line: str) -> str:
    word, *text = line.rstrip("\n").split(" ", 1)
    served: dict[str, Callable[..., str]] = {
        each.__name__: each
        for each in (
            *(session.open, session.restore, session.ask, session.keep),
            *(session.attest, session.sealed, session.spy),
        )
    }
    return served[word](*text)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Serve lines until there are none."""
    parser = argparse.ArgumentParser(prog="flexserve.attacks.trustzone.inside.driving", description=__doc__)
    parser.add_argument("ram", type=int)
    parser.add_argument("offset", type=int)
    parser.add_argument("size", type=int)
    parser.add_argument("file", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    manifest = msgspec.json.decode((options.folder / "manifest.json").read_bytes(), type=Manifest)
    ring = Ram(options.ram).window(options.offset, options.size)
    try:
        session = Session(Application(ring, lambda: None), SealedFile(options.file, manifest), options.folder)
        for line in sys.stdin:
            if line.startswith("go on "):
                _say("done going")
                while True:
                    session.ask(line.removeprefix("go on ").rstrip("\n"))
            _say(f"done {_serve(session, line)}")
    except (FlexServeError, NotDone) as error:
        _say(f"failed {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
