"""The program of the trusted application's client: it serves in place of a secure world that is inside.

Started by flexserve.normal.launcher, by the same contract as the secure world's program
(flexserve.protocol.launch). It has no device key. Of the machine's RAM it maps the ring of messages and the
buffer of the guest's disk, and closes the descriptor before it hears anybody. It enters the same sandbox as
the secure world: prompts and answers of requests that are not sealed pass through it.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from flexserve.errors import FlexServeError
from flexserve.platforms.linux.hardening import die_with_parent, harden
from flexserve.platforms.linux.sandbox import isolate
from flexserve.protocol.ending import leave, say_why_not
from flexserve.protocol.launch import EXIT_CANNOT_START, SecureOptions, descriptors
from flexserve.trusted.sidecar import start_helper

if TYPE_CHECKING:
    from flexserve.tee_client.app import InsideApp


def main(arguments: Sequence[str] | None = None, make_app: Callable[..., InsideApp] | None = None) -> int:
    """Run it; return its exit status. `make_app`: what drives the application, if it is not InsideApp."""
    try:
        words = sys.argv[1:] if arguments is None else arguments
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the normal world's to handle
        not_isolated = isolate()
        harden(keep=descriptors(words))
        die_with_parent(signal.SIGKILL)
        helper = start_helper()
        from flexserve.tee_client import program

        client = program.prepare(SecureOptions.parse(words), helper, not_isolated, make_app)
    except FlexServeError as error:
        say_why_not(error)
        return EXIT_CANNOT_START
    return program.serve(client)


if __name__ == "__main__":
    leave(main())
