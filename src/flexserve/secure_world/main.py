"""The secure world's program: harden, enter the sandbox, shake hands, serve until the normal world goes away.

Started by flexserve.normal.launcher; not meant to be run by hand. When it cannot start it
prints why as one line of JSON on standard error (flexserve.protocol.launch).

The key holder and the helper are started first. This process imports its libraries while they import theirs.
"""

from __future__ import annotations

import itertools
import signal
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flexserve.errors import FlexServeError
from flexserve.platforms.linux.hardening import die_with_parent, harden
from flexserve.platforms.linux.sandbox import isolate
from flexserve.protocol.ending import leave, say_why_not
from flexserve.protocol.launch import EXIT_CANNOT_START, SecureOptions, descriptors
from flexserve.trusted.sidecar import start_helper, start_key_holder

if TYPE_CHECKING:
    from flexserve.secure_world.program import Memories
    from flexserve.secure_world.world import MakeResidency

# The interpreter hands the lock over this often (seconds); the default of 5 ms is longer than
# a loader takes for a chunk.
_SWITCH_INTERVAL = 0.0005
_MAX_WORDS = 1 << 16  # bytes taken at a time


def main(
    arguments: Sequence[str] | None = None,
    make_residency: MakeResidency | None = None,
    memories: Memories | None = None,
) -> int:
    """Run the secure world; return its exit status. `make_residency`, `memories`: if not FlexServe's own."""
    try:
        words = sys.argv[1:] if arguments is None else arguments
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the normal world's to handle
        sys.setswitchinterval(_SWITCH_INTERVAL)
        not_isolated = isolate()
        harden(keep=descriptors(words))
        die_with_parent(signal.SIGKILL)
        holder, helper = start_key_holder(), start_helper()
        from flexserve.secure_world import program

        options = SecureOptions.parse(_complete(words))
        world = program.prepare(
            options, holder, helper, not_isolated, make_residency=make_residency, memories=memories
        )
    except FlexServeError as error:
        say_why_not(error)
        return EXIT_CANNOT_START
    except EOFError:
        return 0  # the normal world went away before it said anything
    return program.serve(world)


def _complete(words: Sequence[str]) -> list[str]:
    """Return `words` behind those that come from their `--options-fd`, if they have one; wait for these.

    Raises EOFError when none come: whoever was to send them is gone.
    """
    descriptor = dict(itertools.pairwise(words)).get("--options-fd", "")
    if not descriptor.isdecimal():
        return list(words)
    with socket.socket(fileno=int(descriptor)) as options:
        text = b"".join(iter(lambda: options.recv(_MAX_WORDS), b""))
    if not text:
        raise EOFError
    return [*text.decode(errors="surrogateescape").split("\0"), *words]


if __name__ == "__main__":
    leave(main())
