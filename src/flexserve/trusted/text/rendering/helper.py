"""The secure world's helper: a process that runs templates and compiles grammars for it, within limits.

The secure process starts it before it opens anything, and it sees nothing but jobs. It runs none of
them itself:

    helper ──forks──▶ one process for each template, which compiles it ──forks──▶ one for each rendering
           ──forks──▶ one for each grammar

so that what a template does to its process is gone with the job. The limits are the kernel's: address
space, CPU time, an alarm, and a sandbox without files, connections and programs. A process that dies of
them is a job whose pipe ends without an answer.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import gc
import importlib
import os
import resource
import select
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from flexserve.platforms.linux.hardening import die_with_parent, harden
from flexserve.platforms.linux.sandbox import confine_helper, leave_processes
from flexserve.trusted.text.gbnf import GrammarError
from flexserve.trusted.text.lexemes import translated
from flexserve.trusted.text.rendering.compiling import compile_error
from flexserve.trusted.text.rendering.jobs import (
    MAX_FRAME,
    Answer,
    Frames,
    Job,
    Outcome,
    Ready,
    Result,
    encode,
)
from flexserve.trusted.text.rendering.template import Template

WALL = 6  # seconds that a job may take …
CPU = 3  # … and may compute
MEMORY = 384 << 20  # bytes of address space beyond what the helper has itself
_MOST_JOBS = 16  # at once
_MOST_TEMPLATES = 8  # kept compiled
_GRACE = 1.0  # seconds after which a job is given up though the kernel has not ended it
_HEAD_START = 0.004  # seconds that a rendering has before the process of the next one is forked
_RECEIVE = 1 << 18
_FIRST = Template("{% for m in messages %}{{ m.role }}{{ m.content | trim }}{% endfor %}")
_VALUES = msgspec.msgpack.encode({"messages": [{"role": "user", "content": "hello"}]})


@dataclasses.dataclass(slots=True)
class _Running:
    serial: int
    pipe: int
    process: int  # whose group ends with it when all else fails
    deadline: float
    parts: list[bytes] = dataclasses.field(default_factory=list)
    size: int = 0


_OWN = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
# What libraries import when they first need it, and could not in the sandbox.
_IMPORTED_LATER = (
    "encodings.ascii",
    "encodings.latin_1",
    "encodings.unicode_escape",
    "jinja2.debug",
    "_strptime",
)


class Helper:
    """Takes jobs from `connection` until its other end is gone."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._frames = Frames(Job)
        self._selector = selectors.DefaultSelector()
        self._selector.register(connection, selectors.EVENT_READ)
        self._running: dict[int, _Running] = {}  # by pipe
        self._templates: dict[str, tuple[int, socket.socket]] = {}  # by source; the latest used last

    def serve(self) -> None:
        """Answer jobs; return when nobody asks any more."""
        while True:
            soonest = min((job.deadline for job in self._running.values()), default=None)
            pause = None if soonest is None else max(0.0, soonest - time.monotonic())
            for key, _ in self._selector.select(pause):
                if key.fileobj is self._connection:
                    data = self._connection.recv(_RECEIVE)
                    if not data:
                        return
                    for job in self._frames.feed(data):
                        self._start(job)
                elif isinstance(key.fileobj, int):
                    self._read(self._running[key.fileobj])
            for late in [job for job in self._running.values() if job.deadline <= time.monotonic()]:
                self._give_up(late)

    def _start(self, job: Job) -> None:
        if len(self._running) >= _MOST_JOBS:
            return self._answer(job.serial, Result(Outcome.BUSY))
        reading, writing = os.pipe()
        try:
            if job.grammar is not None:
                process = self._fork(functools.partial(_compile, job.grammar, writing), keep=writing)
            elif job.gbnf is not None:
                process = self._fork(functools.partial(_translate, job.gbnf, writing), keep=writing)
            else:
                process = self._hand_over(job, writing)
        except OSError:
            os.close(reading)
            return self._answer(job.serial, Result(Outcome.LIMITS))
        finally:
            os.close(writing)
        os.set_blocking(reading, False)
        self._running[reading] = _Running(job.serial, reading, process, time.monotonic() + WALL + _GRACE)
        self._selector.register(reading, selectors.EVENT_READ)
        return None

    def _hand_over(self, job: Job, writing: int) -> int:
        """Give a rendering to its template's process, whose number is returned. Raises OSError."""
        values = os.memfd_create("values", os.MFD_CLOEXEC)
        try:
            os.write(values, msgspec.msgpack.encode(job.values))
            for _ in range(2):
                process, connection = self._template(job.source)
                try:
                    socket.send_fds(connection, [b"job"], [values, writing], socket.MSG_DONTWAIT)
                except (BrokenPipeError, ConnectionResetError, ConnectionRefusedError):  # it died since
                    self._forget(job.source)
                else:
                    return process
        finally:
            os.close(values)
        raise BrokenPipeError

    def _template(self, source: str) -> tuple[int, socket.socket]:
        found = self._templates.pop(source, None)
        if found is None:
            while len(self._templates) >= _MOST_TEMPLATES:
                self._forget(next(iter(self._templates)))
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                process = self._fork(functools.partial(_serve_template, source, theirs), keep=theirs.fileno())
            found = process, ours
        self._templates[source] = found
        return found

    def _forget(self, source: str) -> None:
        process, connection = self._templates.pop(source)
        connection.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)

    def _fork(self, work: Callable[[], None], *, keep: int) -> int:
        """Run `work` in a process and a group of its own, with descriptor `keep` alone."""
        process = os.fork()
        if process:
            with contextlib.suppress(OSError):  # it may have done so itself
                os.setpgid(process, process)
            return process
        try:
            os.setpgid(0, 0)
            die_with_parent(signal.SIGKILL)
            os.closerange(3, keep)
            os.closerange(keep + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
            work()
        finally:
            os._exit(1)

    def _read(self, job: _Running) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(job.pipe, _RECEIVE):
                job.parts.append(data)
                job.size += len(data)
                if job.size > MAX_FRAME:
                    return self._give_up(job)
            self._finish(job, _decoded(b"".join(job.parts)))
        return None

    def _give_up(self, job: _Running) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.process, signal.SIGKILL)
        self._finish(job, Result(Outcome.LIMITS))

    def _finish(self, job: _Running, result: Result) -> None:
        del self._running[job.pipe]
        self._selector.unregister(job.pipe)
        os.close(job.pipe)
        self._answer(job.serial, result)

    def _answer(self, serial: int, result: Result) -> None:
        self._connection.sendall(encode(Answer(serial, result)))


# ---- what runs in the processes of templates and jobs ------------------------------------------------


def _serve_template(source: str, connection: socket.socket) -> None:
    """Compile a template, then render it whenever asked, each time in another process."""
    _limit(WALL)
    template = Template(source)
    signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    gc.freeze()
    while _spare(template, connection):
        pass


def _spare(template: Template, connection: socket.socket) -> bool:
    """Fork the process of a job before there is one; return when it has one. False: there will be none.

    Forking takes longer than most renderings, and would take the cores from the one that was begun:
    nobody waits for it so.
    """
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        taken = os.read(reading, 1)
        if taken:
            select.select([reading], [], [], _HEAD_START)  # or until it has ended
        os.close(reading)
        return bool(taken)
    try:
        _warm()
        word, descriptors, _, _ = socket.recv_fds(connection, 16, 2)
        if word:
            os.write(writing, b"1")
            _render(template, *descriptors)
    finally:
        os._exit(1)


def _warm() -> None:
    """Touch what rendering needs: pages that a forked process touches are copied, which takes time."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU, resource.RLIM_INFINITY))
    result = _FIRST.result(msgspec.msgpack.decode(_VALUES))
    msgspec.msgpack.encode(result)


def _render(template: Template, values: int, writing: int) -> None:
    signal.alarm(WALL)
    data = os.pread(values, MAX_FRAME, 0)
    _write(writing, template.result(msgspec.msgpack.decode(data)))


def _compile(grammar: str, writing: int) -> None:
    _limit(WALL)
    error = compile_error(grammar)
    _write(writing, Result(Outcome.WRONG if error else Outcome.DONE, error[:4096]))


def _translate(gbnf: str, writing: int) -> None:
    _limit(WALL)
    try:
        result = Result(Outcome.DONE, translated(gbnf))
    except GrammarError as error:
        result = Result(Outcome.WRONG, str(error))
    _write(writing, result)


def _limit(wall: int) -> None:
    """Have the kernel end this process when it takes too much. What it forks is limited alike."""
    resource.setrlimit(resource.RLIMIT_AS, (_OWN + MEMORY, _OWN + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    signal.alarm(wall)


def _write(writing: int, result: Result) -> None:
    data = memoryview(msgspec.msgpack.encode(result))
    while data:
        data = data[os.write(writing, data) :]
    os.close(writing)  # the end of the answer; the end of the process takes longer
    os._exit(0)


def _decoded(data: bytes) -> Result:
    """Return what a job wrote; one that wrote nothing whole died of its limits."""
    try:
        return msgspec.msgpack.decode(data, type=Result)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Result(Outcome.LIMITS)


def main(arguments: list[str] | None = None) -> int:
    """Run the helper; return its exit status."""
    parser = argparse.ArgumentParser(prog="flexserve.trusted.text.rendering", description=__doc__)
    parser.add_argument("--fd", type=int, required=True)
    descriptor = parser.parse_args(arguments).fd
    for module in _IMPORTED_LATER:
        importlib.import_module(module)
    time.tzset()  # reads the time zone, which it could not later
    not_alone = leave_processes()
    harden(keep={descriptor})
    confine_helper()
    die_with_parent(signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who end
    gc.collect()
    gc.freeze()  # what is here now is shared with every process forked from here
    connection = socket.socket(fileno=descriptor)
    connection.sendall(encode(Ready(not_alone)))
    Helper(connection).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
