"""Fuzzing of what stands between a file that is added and the secure world: headers by the million.

    python -m flexserve.testing.header_fuzz FOLDER --mutations 1000000 --seed 1

Each changed header goes to the reader, which parses it or raises CallerError (code "bad_gguf"), and
nothing else. What it lets through, a process forked for the purpose opens in llama.cpp and computes
with. Dying there is what `flexserve add` refuses a file for; each way to die is also a rule that the
reader lacks, so they are counted, and a sample of each is kept. What lives is added to the store of a
secure world that serves (living_world.py), which must not die.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import faulthandler
import os
import random
import re
import resource
import select
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from llama_cpp import llama_cpp as lib

from flexserve.errors import CallerError
from flexserve.testing.gguf_mutation import Draft, Mutator, take_apart
from flexserve.testing.living_world import LivingWorld
from flexserve.trusted.store.gguf import parse_gguf

_TOGETHER = 24  # survivors that one forked process tries, as long as none of them ends it
_SECONDS = 1  # of CPU for a survivor: what computes longer with so few tokens only costs time
_SLOW = signal.SIGXCPU.name
_MEMORY = 4 << 30  # bytes of addresses for it
_CONTEXT = 64  # tokens
_TELL = 10_000  # headers
_LARGEST = 1 << 40  # bytes of a file that is written, as a hole but for its header
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fdopen.restype, _libc.fdopen.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_char_p]
_libc.fclose.restype, _libc.fclose.argtypes = ctypes.c_int, [ctypes.c_void_p]

Case = tuple[bytes, int]  # a header, and the size of its file


@dataclasses.dataclass(slots=True)
class Tally:
    """What became of the headers. `deaths` counts by signal and last words."""

    headers: int = 0
    survivors: int = 0  # of the reader
    opened: int = 0  # of those, by llama.cpp
    slow: int = 0  # of those, not at an end after _SECONDS
    deaths: Counter[str] = dataclasses.field(default_factory=Counter)
    samples: dict[str, Case] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        dead = sum(self.deaths.values())
        return (
            f"{self.headers} headers, {self.survivors} let through by the reader, "
            f"{self.opened} opened by llama.cpp, {self.slow} too slow, {dead} deaths of throw-away processes"
        )


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _silent(_level: int, _text: bytes, _data: int) -> None:
    """Drop llama.cpp's log."""


def warm() -> None:
    """Load llama.cpp into this process, whose forks then have it at once."""
    os.environ["GGML_NO_BACKTRACE"] = "1"
    lib.llama_log_set(_silent, None)
    lib.llama_backend_init()


def passes(case: Case) -> bool:
    """Return whether the reader lets `case` through. Raises what the reader must not raise."""
    head, size = case
    try:
        parse_gguf(lambda offset, length: head[offset : offset + length].ljust(length, b"\0"), size)
    except CallerError as error:
        if error.code != "bad_gguf":
            raise
        return False
    return True


def fuzz(
    drafts: Sequence[Draft],
    count: int,
    seed: int,
    *,
    serve: Callable[[Case], None] = lambda _case: None,
    tell: Callable[[Tally], None] = lambda _tally: None,
    tally: Tally | None = None,
) -> Tally:
    """Change `count` headers, read each, and try what the reader lets through; `serve` what opens and lives.

    `tell` hears how it goes every _TELL headers. Returns `tally`, or a new one.
    """
    tally = tally if tally is not None else Tally()
    mutator = Mutator(drafts, random.Random(seed))  # noqa: S311
    batch: list[Case] = []
    for _ in range(count):
        case = mutator.next()
        tally.headers += 1
        if passes(case):
            tally.survivors += 1
            batch.append(case)
        if len(batch) == _TOGETHER:
            for lived in try_cases(batch, tally):
                serve(lived)
            batch = []
        if tally.headers % _TELL == 0:
            tell(tally)
    for lived in try_cases(batch, tally):
        serve(lived)
    return tally


def try_cases(cases: Sequence[Case], tally: Tally) -> list[Case]:
    """Open and compute each of `cases` in forked processes; count in `tally`; return what lived."""
    lived: list[Case] = []
    start = 0
    while start < len(cases):
        marks, end = _in_fork(cases[start:])
        lived += [cases[start + at] for at, opened in enumerate(marks) if opened]
        tally.opened += sum(marks)
        start += len(marks)
        if end == _SLOW:
            tally.slow += 1
        elif end:
            tally.deaths[end] += 1
            tally.samples.setdefault(end, cases[start])
        start += bool(end)
    return lived


def _in_fork(cases: Sequence[Case]) -> tuple[list[bool], str]:
    """Return which of `cases` a forked process opened, up to where it died, and how it died."""
    readable, writable = os.pipe()
    words_in, words_out = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(readable)
        os.dup2(words_out, 2)
        faulthandler.enable()
        try:
            _try_all(cases, writable)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(70)
    os.close(writable)
    os.close(words_out)
    try:
        marks, words = b"", b""
        for source, data in _pieces(readable, words_in):
            if source == readable:
                marks += data
            else:
                words = (words + data)[-4000:]
    finally:
        os.close(readable)
        os.close(words_in)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return [mark == ord("+") for mark in marks], "" if code == 0 else _cause(code, words)


def _pieces(*sources: int) -> Iterator[tuple[int, bytes]]:
    open_ones = list(sources)
    while open_ones:
        for source in select.select(open_ones, [], [])[0]:
            if data := os.read(source, 1 << 16):
                yield source, data
            else:
                open_ones.remove(source)


def _cause(code: int, words: bytes) -> str:
    how = signal.Signals(-code).name if code < 0 else f"status {code}"
    if how == _SLOW:
        return how
    lines = [line for line in words.decode("utf-8", "replace").splitlines() if line.strip()]
    telling = [
        line for line in lines if re.search(r"ASSERT|what\(\)|Error:|\.c(pp)?:\d+: |line \d+ in _?[oc]", line)
    ]
    return (
        f"{how}: {(telling or lines or ['it said nothing'])[0].rpartition('/llama.cpp/')[2][-200:].strip()}"
    )


def _try_all(cases: Sequence[Case], marks: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    for case in cases:
        limit = int(time.process_time()) + 1 + _SECONDS  # the kernel counts whole seconds
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        os.write(marks, b"+" if open_and_compute(*case) else b"-")


def open_and_compute(head: bytes, size: int) -> bool:
    """Do with a file, of zeros as weights, what the secure world does with one. False: it does not open."""
    fd = os.memfd_create("gguf", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    os.pwrite(fd, head[:size], 0)
    stream = _libc.fdopen(fd, b"rb")
    parameters = lib.llama_model_default_params()
    parameters.n_gpu_layers = 0
    parameters.load_mode = lib.LLAMA_LOAD_MODE_NONE
    parameters.lazy_mode = lib.LLAMA_LAZY_MODE_OFF
    model = lib.llama_model_load_from_file_ptr(stream, parameters)
    _libc.fclose(stream)
    if not model:
        return False
    vocabulary = lib.llama_model_get_vocab(model)
    tokens = (lib.llama_token * 64)()
    for special in (True, False):
        count = lib.llama_tokenize(vocabulary, b"ba be 12", 8, tokens, 64, True, special)
    for token in tokens[: max(0, count)]:
        lib.llama_token_to_piece(vocabulary, token, ctypes.create_string_buffer(64), 64, 0, False)
        lib.llama_vocab_is_eog(vocabulary, token)
        lib.llama_vocab_get_text(vocabulary, token)
    for vectors in (False, True):
        _compute(model, tokens, max(1, min(count, 8)), vectors=vectors)
    lib.llama_model_free(model)
    return True


def _compute(model: int, tokens: ctypes.Array[ctypes.c_int32], count: int, *, vectors: bool) -> None:
    parameters = lib.llama_context_default_params()
    parameters.n_ctx = _CONTEXT
    parameters.n_batch = parameters.n_ubatch = 32
    parameters.n_threads = parameters.n_threads_batch = 1
    parameters.kv_unified = False
    parameters.embeddings = vectors
    if vectors:
        parameters.pooling_type = lib.LLAMA_POOLING_TYPE_MEAN
        parameters.n_outputs_max = 32
    context = lib.llama_init_from_model(model, parameters)
    if not context:
        return
    batch = lib.llama_batch_init(32, 0, 1)
    for at in range(count):
        batch.token[at], batch.pos[at], batch.n_seq_id[at] = tokens[at], at, 1
        batch.seq_id[at][0], batch.logits[at] = 0, at == count - 1 or vectors
    batch.n_tokens = count
    if lib.llama_model_has_encoder(model):
        lib.llama_encode(context, batch)
    elif lib.llama_decode(context, batch) == 0:
        if vectors:
            lib.llama_get_embeddings_seq(context, 0)
        else:
            lib.llama_get_logits_ith(context, count - 1)
    lib.llama_batch_free(batch)
    lib.llama_free(context)


def drafts_of(folder: Path) -> list[Draft]:
    """Return the headers of the sound GGUF files in `folder`: those that llama.cpp opens, and lives."""
    found = []
    for path in sorted(folder.glob("*.gguf")):
        draft, tally = take_apart(path.read_bytes()), Tally()
        try_cases([draft.encode()], tally)
        if tally.opened and not tally.deaths:
            found.append(draft)
    return found


def keep(case: Case, path: Path) -> bool:
    """Write the file of `case`, of zeros as weights, to `path`. False: it is too large for any disk."""
    head, size = case
    if size > _LARGEST:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(head[:size])
        file.truncate(size)
    return True


def main() -> int:
    """Fuzz as the command line says; 1: a world that serves died, or answered wrongly."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of sound GGUF files")
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for a sample of each death")
    parser.add_argument("--sound", type=Path, help="file that makes text (default: FOLDER/llama.gguf)")
    parser.add_argument("--serve-one-in", type=int, default=1, help="of those that open; they take longest")
    options = parser.parse_args()
    warm()
    drafts = drafts_of(options.folder)
    began = time.monotonic()
    with LivingWorld(options.sound or options.folder / "llama.gguf") as world:
        server = Server(world, options.serve_one_in, options.keep)

        def tell(tally: Tally) -> None:
            sys.stdout.write(f"{tally}; {world.counts}; after {time.monotonic() - began:.0f} s\n")
            sys.stdout.flush()

        tally = Tally()
        with contextlib.suppress(KeyboardInterrupt):  # what was found until then is told
            fuzz(drafts, options.mutations, options.seed, serve=server.serve, tell=tell, tally=tally)
        tell(tally)
    for number, (end, count) in enumerate(tally.deaths.most_common()):
        sys.stdout.write(f"{count:6} {end}\n")
        if options.keep is not None:
            keep(tally.samples[end], options.keep / f"{number}.gguf")
    for end, count in (world.counts.deaths_of_trials + world.counts.deaths_of_servers).most_common():
        sys.stdout.write(f"{count:6} {end}\n")
    return 1 if world.counts.deaths_of_servers or world.counts.wrong else 0


class Server:
    """Has one in `every` of the cases that live served; keeps a sample of what should not have been."""

    def __init__(self, world: LivingWorld, every: int, folder: Path | None = None) -> None:
        self._world, self._every, self._folder = world, every, folder
        self._cases = self._kept = 0

    def serve(self, case: Case) -> None:
        """Take in the next case that lived."""
        self._cases += 1
        if self._cases % self._every == 0 and not self._world.offer(*case) and self._folder is not None:
            keep(case, self._folder / f"served-{self._kept}.gguf")
            self._kept += 1


if __name__ == "__main__":
    sys.exit(main())
