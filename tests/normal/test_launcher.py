"""Starting a secure process: what it gets, what it does not, and why it did not start."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import msgspec
import pytest

from flexserve.errors import GrantRefusedError, NormalWorldError, PeerError
from flexserve.normal.launcher import CUT_OFF, Launcher, secure_command
from flexserve.normal.memory import MemoryBroker
from flexserve.protocol.launch import EXIT_CUT_OFF, SecureOptions
from flexserve.protocol.prompts import TextPrompt
from flexserve.protocol.sampling import Sampling
from flexserve.protocol.statuses import Failure
from flexserve.testing.script import Behaviour, Fault, Script
from flexserve.testing.scripted_link import AdjustableMemory, scripted_command

pytestmark = pytest.mark.anyio
OPTIONS = SecureOptions(store=Path("/models here"), device_key=Path("/key"), threads=2)

# Says how it was started, in its last words.
INSPECT = """
import json, os, sys
fds = sorted(int(fd) for fd in os.listdir("/proc/self/fd"))
open_fds = [fd for fd in fds if os.path.exists(f"/proc/self/fd/{fd}")]  # without the one that listed them
print(json.dumps({"env": sorted(os.environ), "fds": open_fds,
    "session": os.getsid(0) == os.getpid(), "stdin": os.readlink("/proc/self/fd/0")}))
sys.exit(5)
"""


def launcher(script: Script) -> Launcher:
    return Launcher(scripted_command(script), handshake_timeout=20)


@pytest.fixture
def broker(memory: AdjustableMemory) -> MemoryBroker:
    return MemoryBroker(memory)


def test_the_command_line_is_isolated_and_names_every_option() -> None:
    words = secure_command(OPTIONS, 9)
    program = "from flexserve.interpreter import main; main()"
    isolated = [sys.executable, "-I", "-X", "pycache_prefix=/dev/null", "-c", program]
    assert words[:7] == [*isolated, "flexserve.platforms.linux.companion"]
    assert words[7:14] == [*isolated, "flexserve.secure_world.main"]
    assert SecureOptions.parse(words[14:]) == msgspec.structs.replace(OPTIONS, channel_fd=9)


async def test_a_started_world_serves_and_stops_in_order(broker: MemoryBroker) -> None:
    process = await launcher(Script()).launch(broker)
    assert process.channel is not None
    assert process.channel.welcome.pid == process.pid
    await process.stop(drain=5)
    assert "status 0" in (await process.wait()).message


async def test_the_process_gets_nothing_but_its_channel(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/tmp/evil")
    monkeypatch.setenv("LD_PRELOAD_", "x")
    leaked = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    given: list[int] = []

    def inspect(fd: int) -> list[str]:
        given.append(fd)
        return [sys.executable, "-I", "-c", INSPECT]

    with pytest.raises(PeerError) as caught:
        await Launcher(inspect).launch(broker)
    os.close(leaked)
    seen = json.loads(caught.value.message.partition("last words: ")[2].rstrip("."))
    assert set(seen["env"]) <= {"PATH", "LANG", "GGML_NO_BACKTRACE", "OPENBLAS_NUM_THREADS", "LC_CTYPE"}
    assert seen["fds"] == [0, 1, 2, *given]
    assert seen["session"] is True
    assert seen["stdin"] == "/dev/null"


# Aborts as llama.cpp does when an assertion of it fails.
ABORT = """
import ctypes, pathlib, llama_cpp
library = ctypes.CDLL(str(pathlib.Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so.0"))
library.ggml_abort(b"graph.c", 7, b"GGML_ASSERT(%s) failed", b"sense")
"""


async def test_an_abort_of_llama_cpp_starts_no_debugger_and_is_told_in_one_line(
    broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = tmp_path / "seen"
    for debugger in ("gdb", "lldb"):
        (tmp_path / debugger).write_text(f"#!/bin/sh\necho $0 >> {seen}\n")
        (tmp_path / debugger).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(PeerError, match=r"SIGABRT; its last words: .*graph.c:7: GGML_ASSERT\(sense\) failed"):
        await Launcher(lambda _: [sys.executable, "-I", "-c", ABORT]).launch(broker)
    assert not seen.exists()
    assert len(capsys.readouterr().err.splitlines()) == 1


async def test_a_reason_not_to_start_arrives_as_its_own_error(broker: MemoryBroker) -> None:
    failure = Failure("normal_world", "memory_refused", "The lock limit is too low.", "Raise RLIMIT_MEMLOCK.")
    with pytest.raises(GrantRefusedError) as caught:
        await launcher(Script(start_failure=failure)).launch(broker)
    assert caught.value.hint == "Raise RLIMIT_MEMLOCK."


@pytest.mark.parametrize("words", ["", "{}", '{"blame":"nobody","code":"x","message":"y"}', "[" * 5000])
async def test_a_garbled_reason_is_quoted_not_believed(broker: MemoryBroker, words: str) -> None:
    program = f"import sys; print({words!r}); sys.exit(3)"
    with pytest.raises(PeerError, match="status 3"):
        await Launcher(lambda _: [sys.executable, "-I", "-c", program]).launch(broker)


async def test_a_death_while_starting_quotes_the_last_words(broker: MemoryBroker) -> None:
    with pytest.raises(PeerError, match=r"status 9; its last words: the script says to die"):
        await launcher(Script(dies_at_start=True)).launch(broker)


async def test_a_client_that_was_cut_off_says_so_by_its_status(broker: MemoryBroker) -> None:
    program = f"import sys; print('the machine is gone'); sys.exit({EXIT_CUT_OFF})"
    with pytest.raises(PeerError, match="cut off; its last words: the machine is gone") as caught:
        await Launcher(lambda _: [sys.executable, "-I", "-c", program]).launch(broker)
    assert caught.value.code == CUT_OFF


async def test_a_program_that_cannot_be_run_is_a_clear_error(broker: MemoryBroker) -> None:
    with pytest.raises(NormalWorldError, match="cannot be started"):
        await Launcher(lambda _: ["/nonexistent/python"]).launch(broker)


async def test_a_process_that_says_nothing_is_given_up_and_ended(
    broker: MemoryBroker, tmp_path: Path
) -> None:
    note = tmp_path / "pid"
    program = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    with pytest.raises(PeerError, match="did not answer"):
        await Launcher(lambda _: [sys.executable, "-I", "-c", program], handshake_timeout=2).launch(broker)
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


async def test_a_signal_is_named_in_the_reason(broker: MemoryBroker) -> None:
    process = await launcher(Script()).launch(broker)
    process.kill()
    assert "SIGKILL" in (await process.wait()).message
    await process.stop(drain=0)


async def test_a_world_that_does_not_heed_the_shutdown_is_ended_by_force(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flexserve.normal.launcher.TERM_GRACE", 0.05)
    program = (
        "import signal, socket, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "from flexserve.testing.scripted_world import *;"
        "s = socket.socket(fileno=int(sys.argv[1])); w = ScriptedWorld(s, Script());"
        "w._drain = lambda m: asyncio.sleep(3600); asyncio.run(w.run())"
    )
    process = await Launcher(lambda fd: [sys.executable, "-I", "-c", program, str(fd)]).launch(broker)
    await process.stop(drain=0)
    assert "SIGKILL" in (await process.wait()).message


async def test_terminal_controls_in_its_messages_are_made_harmless(
    broker: MemoryBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    program = r"import sys; print('\x1b[2J' + 'x' * 9000); print('end'); sys.exit(1)"
    with pytest.raises(PeerError, match="end"):
        await Launcher(lambda _: [sys.executable, "-I", "-c", program]).launch(broker)
    shown = capsys.readouterr().err
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) < 5000


async def test_a_fault_in_a_request_ends_only_the_process_that_had_it(broker: MemoryBroker) -> None:
    process = await launcher(Script(models={"dies": Behaviour(fault=Fault.DIE)})).launch(broker)
    assert process.channel is not None
    answer = await process.channel.generate("dies", TextPrompt("x"), Sampling())
    with pytest.raises(PeerError):
        [message async for message in answer]
    assert "status 7" in (await process.wait()).message
    await process.stop(drain=0)
