"""A program that is started this way does not outlive its parent, whatever that one ends of."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from flexserve.testing.processes import ends

PARENT = """
import subprocess, sys
from flexserve.platforms.linux import parent_death
words = parent_death.command("sh", "-c", "echo $$; exec sleep 600")
subprocess.Popen(words, stdin=subprocess.DEVNULL)
sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_program_started_this_way_does_not_outlive_its_parent(number: signal.Signals) -> None:
    words = [sys.executable, "-c", PARENT]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.send_signal(number)
        assert ends(child)
