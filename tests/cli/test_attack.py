"""attack: what was found is shown, also when the scene breaks down."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from servers import Cli

from flexserve.attacks import linux, trustzone
from flexserve.attacks.attempt import Attempt, Verdict
from flexserve.attacks.trustzone import inside
from flexserve.errors import NormalWorldError

STOPPED = Attempt("read", "Read a page", Verdict.STOPPED, "Stage-2 has no mapping")


def played(*attempts: Attempt, ending: Exception | None = None) -> Callable[..., Iterator[Attempt]]:
    def run(_say: object) -> Iterator[Attempt]:
        yield from attempts
        if ending is not None:
            raise ending

    return run


def test_a_machine_that_dies_leaves_what_was_found_and_its_last_words(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = NormalWorldError("The attack 'dma' broke the machine: gone. Its last words:\n  Oops")
    monkeypatch.setattr(trustzone, "run", played(STOPPED, ending=gone))
    shown = cli("attack", "--platform", "trustzone", "--secure-world", "host")
    assert shown.exit_code == 1
    assert "Read a page: Stage-2 has no mapping" in shown.stdout
    assert "Oops" in shown.stderr
    as_json = cli("attack", "--platform", "trustzone", "--secure-world", "host", "--json")
    assert as_json.exit_code == 1
    assert [each["verdict"] for each in json.loads(as_json.stdout)["attempts"]] == ["stopped"]
    assert "Oops" in json.loads(as_json.stderr)["error"]["message"]


@pytest.mark.parametrize(
    ("verdict", "status"),
    [(Verdict.STOPPED, 0), (Verdict.OPEN, 0), (Verdict.SUCCEEDED, 1), (Verdict.NOT_RUN, 3)],
)
def test_the_exit_status_says_whether_an_attack_succeeded(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, verdict: Verdict, status: int
) -> None:
    monkeypatch.setattr(trustzone, "run", played(Attempt("read", "Read a page", verdict, "so")))
    assert cli("attack", "--platform", "trustzone", "--secure-world", "host").exit_code == status


def test_the_platform_and_where_its_secure_world_is_say_what_is_attacked(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for attacked, aim in ((linux, "on linux"), (trustzone, "beside it"), (inside, "inside of it")):
        monkeypatch.setattr(attacked, "run", played(Attempt("read", aim, Verdict.STOPPED, "so")))
    machine = ("attack", "--platform", "trustzone", "--json")
    shown = [
        json.loads(cli(*words).stdout)
        for words in (
            ("attack", "--json"),
            (*machine, "--secure-world", "host"),
            machine,
        )
    ]
    assert [each["attempts"][0]["aim"] for each in shown] == ["on linux", "beside it", "inside of it"]
    assert [each.get("secure_world") for each in shown] == [None, "host", "inside"]


def test_what_is_attacked_has_protected_memory_whatever_is_configured(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trustzone, "run", played(STOPPED))
    monkeypatch.setenv("FLEXSERVE_MEMORY", "plain")
    monkeypatch.setenv("FLEXSERVE_SECURE_WORLD", "host")
    assert cli("attack", "--platform", "trustzone").exit_code == 0
