"""Requests made up from /openapi.json: whatever they are, the answer is one that the document allows.

Schemathesis takes seconds to import: by the test that needs it, not by each process that collects tests.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from real_server import KEY, Server

if TYPE_CHECKING:
    import schemathesis

pytestmark = pytest.mark.engine
HEADERS = {"Authorization": f"Bearer {KEY}"}


@pytest.mark.timeout(900)  # some forty operations, each asked dozens of times
def test_no_request_gets_an_answer_that_is_not_described(server: Server) -> None:
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    judges: Any = (
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    )
    document: Any = schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=HEADERS)
    # What is left out changes what the server may do for everybody else: a cap of zero is obeyed.
    document = document.exclude(path_regex="^/memory/", method=["PUT", "POST"])
    tried = 0
    for found, mode in itertools.product(document.get_all_operations(), schemathesis.GenerationMode):
        operation = found.ok()

        @settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def try_out(case: schemathesis.Case) -> None:
            _name_a_model(case)
            case.call_and_validate(headers=HEADERS, checks=judges)

        with contextlib.suppress(Unsatisfiable):  # nothing can be wrong in a request that has nothing
            try_out()
            tried += 1
    assert tried >= 12


def _name_a_model(case: schemathesis.Case) -> None:
    """Have a request go to a model that exists, as made-up names hardly do, and have it end soon."""
    if case.path == "/events":
        case.query = {}  # with `follow` it would not end
    body = case.body
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        body["model"] = "tiny"
        limits = {
            "/v1/responses": "max_output_tokens",
            "/completion": "n_predict",
            "/completions": "n_predict",
        }
        if case.path.startswith("/api/"):
            body["options"] = {"num_predict": 4}
        elif "embed" not in case.path:
            body[limits.get(case.path, "max_tokens")] = 4
        for name in {"n", "best_of"} & body.keys():
            count = body[name]
            if isinstance(count, int):
                body[name] = min(count, 2)


def test_the_document_asks_for_a_key_where_the_server_does(server: Server) -> None:
    paths = httpx.get(f"{server.url}/openapi.json", headers=HEADERS).json()["paths"]
    for path, operations in paths.items():
        for operation in operations.values():
            assert bool(operation.get("security")) == (path != "/health"), path
            assert "422" not in operation["responses"]
