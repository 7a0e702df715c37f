"""The trusted application as a process of the guest, which protects nothing: the baseline NW-Base."""

from __future__ import annotations

from test_inner_on_a_machine import AtSEl0

from flexserve.emulator.machine import Machine


class Unprotected(AtSEl0):
    """The application's file as a program of the guest's, driven through the same ring.

    The machine must have been booted with it, and without a secure OS, whose ring it would be.
    """

    def __init__(self, machine: Machine, *, threads: int = 1) -> None:
        self._job = machine.agent.ask("start", "application")["job"]
        super().__init__(machine, threads=threads)

    def _told(self) -> None:
        """Nobody waits to be told: the process looks each millisecond."""
