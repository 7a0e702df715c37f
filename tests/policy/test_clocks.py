"""A clock that is set while FlexServe runs changes no decision of policy or memory."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import flexserve

PACKAGE = Path(flexserve.__file__).parent
WALL = {"time", "time_ns", "now", "utcnow", "today", "localtime", "gmtime", "CLOCK_REALTIME"}
MODULES = {"time", "datetime", "date"}
# What shows a person or a client a date, and does nothing else with it.
DATES = {
    "cli/attestation.py",
    "normal/api/forms.py",
    "normal/api/metrics.py",
    "normal/api/ollama.py",
    "normal/api/ollama_form.py",
    "normal/api/responses_form.py",
    "normal/audit_file.py",
    "normal/audit_log.py",
    "normal/request_log.py",
    "normal/sampler.py",
    "trusted/text/rendering/template.py",
    "trusted/store/sealing.py",
}
# Until when tokens, certificates, licences and sealed requests count: two machines have to agree on that.
VALIDITY = {
    "attacks/relay.py",
    "attacks/sealed.py",
    "attacks/trustzone/inside/client.py",
    "attacks/trustzone/inside/exposure.py",
    "attestation/verification.py",
    "bench/classifier.py",
    "cli/vendor.py",
    "cli/vendor_models.py",
    "normal/remote_world.py",
    "tee_client/sealed.py",
    "testing/licensed_device.py",
    "trusted/identity/identity.py",
    "trusted/identity/measurer.py",
    "trusted/sessions/clock.py",
    "trusted/store/licences.py",
    "vendor/licensing.py",
}


def asks(tree: ast.AST) -> Iterator[int]:
    """Yield the lines on which the time of day is asked for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in WALL:
            owner = node.value
            if (owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")) in MODULES:
                yield node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            yield from (node.lineno for name in node.names if name.name in WALL)


def test_the_time_of_day_is_asked_for_only_where_a_date_is_shown_or_bounds_what_is_valid():
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if any(asks(ast.parse(path.read_text())))
    }
    assert found == DATES | VALIDITY


def test_the_time_of_day_is_recognised_in_every_form():
    for text in ("import time\ntime.time()", "from time import time", "datetime.datetime.now()"):
        assert list(asks(ast.parse(text)))
    assert not list(asks(ast.parse("import time\ntime.monotonic()\nself.clock.now()")))
