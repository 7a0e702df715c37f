"""What holds for all tests."""

from __future__ import annotations

import signal

from hypothesis import settings

# Who starts the tests in the background of a script has them ignore SIGINT, and so would every program
# that they start to press Ctrl-C in it: it would wait for an answer's end that takes minutes.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test asserts a duration; on a busy machine, the first of a test's examples takes seconds.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
