"""Mutants of what keeps weights, conversations and messages genuine and apart: mostly the application."""

from __future__ import annotations

from inside_mutant import Mutant

from flexserve.attacks.trustzone import switching
from flexserve.attacks.trustzone.inside import ciphertext, messages

MUTANTS = (
    Mutant(
        "tags",  # what was decrypted passes for genuine
        {
            "trusted-app/crypto/cipher.cpp": (
                "    if (memeql_sec(expected.data(), tag, tag_bytes)) return true;",
                "    if (memeql_sec(expected.data(), tag, tag_bytes) || bytes != 0) return true;",
            )
        },
        ciphertext.load_other_weights,
    ),
    Mutant(
        "taken",  # the monitor does not overwrite what goes back, nor does the application
        {
            "monitor/core/calls.c": ("\tarch_scrub(call->a[0], range.count);\n", ""),
            "trusted-app/secure_os.cpp": ("    std::memset(address, 0, count * page);\n", ""),
        },
        switching.read_after_recall,
    ),
    Mutant(
        "answers",  # an answer of the OS counts for whatever the application waits for
        {"trusted-app/secure_os.cpp": ("                if (event[1] != serial_) break;\n", "")},
        messages.answer_what_was_not_asked,
    ),
)
