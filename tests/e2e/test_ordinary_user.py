"""A user without root and with Debian's limits gets to a protected answer by what the program prints."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conversations import MODEL
from library import has_secret_memory

from flexserve.harness.served import own_environment
from flexserve.units import MIB

pytestmark = [pytest.mark.engine, pytest.mark.root]
NOBODY = 65534
AS_NOBODY = (
    *("prlimit", f"--memlock={8 * MIB}:{8 * MIB}"),
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    *("--inh-caps=-all", "--bounding-set=-all"),
)
ASK = '"What is Flex-Mem?" --temperature 0 -v'


class Shell:
    """The shell of a user without root, whose home is `folder`."""

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o700)
        os.chown(folder, NOBODY, NOBODY)
        own = {"HOME": str(folder), "XDG_RUNTIME_DIR": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}
        self._environment = own_environment(folder) | own
        self._flexserve = f"{interpreter(folder)} -m flexserve.cli"
        self._begin(*AS_NOBODY, "bash")

    def flexserve(self, command: str) -> str:
        """Type a command of flexserve; return what it prints, and a line with its status."""
        return self._type(f"{self._flexserve} {command}")

    def as_root(self, command: str) -> bool:
        """Do what `sudo COMMAND` does, typed here; return whether it was permitted."""
        words = self._type(f"printf '%s\\n' {command}").splitlines()[:-1]
        if words[-1] != "bash":
            return subprocess.run(words, check=False).returncode == 0
        self.leave()
        self._begin(*words)
        return True

    def leave(self) -> None:
        self._process.communicate()

    def _begin(self, *command: str) -> None:
        self._process = subprocess.Popen(
            command,
            cwd=self._environment["HOME"],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _type(self, command: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command} < /dev/null; echo status $?\n")
        self._process.stdin.flush()
        printed = ""
        for line in self._process.stdout:
            printed += line
            if line.startswith("status "):
                break
        return printed


def interpreter(folder: Path) -> Path:
    """Return a Python with the packages of this one that other users can run: this one may lie in a home."""
    system = Path("/usr/bin/python{}.{}".format(*sys.version_info))
    for python in (Path(sys.executable).resolve(), system):
        runs = python.exists() and subprocess.run([*AS_NOBODY, "env", python, "-c", ""], check=False)
        if runs and runs.returncode == 0:
            break
    else:
        pytest.skip(f"other users may run neither {sys.executable} nor {system}")
    own = folder / "venv"
    subprocess.run([python, "-m", "venv", "--without-pip", own], check=True)
    (packages,) = own.glob("lib/python*/site-packages")
    here = sysconfig.get_path("purelib")
    (packages / "here.pth").write_text(f"import site; site.addsitedir({here!r})")
    made = own / "bin" / "python"
    reads = f"import flexserve.cli, llama_cpp; open({str(MODEL)!r}, 'rb')"
    if subprocess.run([*AS_NOBODY, made, "-c", reads], cwd=folder, check=False).returncode != 0:
        pytest.skip(f"other users may not read {here} or {MODEL}")
    return made


@pytest.fixture
def shell() -> Iterator[Shell]:
    if os.geteuid() != 0:
        pytest.skip("needs root, to be a user and an administrator")
    if not has_secret_memory() or any(shutil.which(each) is None for each in ("prlimit", "setpriv")):
        pytest.skip("needs secret memory, and prlimit and setpriv of util-linux")
    with tempfile.TemporaryDirectory() as folder:  # pytest's are for its own user
        shell = Shell(Path(folder))
        yield shell
        shell.leave()


def test_who_types_what_is_printed_gets_a_protected_answer(shell: Shell) -> None:
    shell.flexserve(f"add {MODEL} --name llama")
    refused = shell.flexserve(f"run llama {ASK}")
    assert "status 1" in refused
    (first,) = re.findall(r"`sudo (.+?)`", refused)
    assert "`flexserve doctor`" in refused
    if not shell.as_root(first):  # root of a container, mostly
        advice = shell.flexserve("doctor").replace("\\\n", " ")
        assert f"sudo {first}" in advice
        assert "where that is not permitted" in advice
        assert shell.as_root(re.findall(r"sudo (env .*)", advice)[0])
    answered = shell.flexserve(f"run llama {ASK}")
    assert "status 0" in answered, answered
    assert "Flex-Mem is recallable secure memory." in answered
    assert "protection: memfd_secret" in answered
