"""doctor: what this host keeps out, asked of its kernel, and what puts it right."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from servers import Cli

from flexserve.platforms.linux import doctor
from flexserve.platforms.linux.doctor import Finding, State

CHECKS = {
    *("memfd_secret", "locked memory", "Yama", "lockdown", "no instruments", "swap"),
    *("cgroup", "CPU", "seccomp", "Landlock", "namespaces"),
}


def test_every_check_has_a_state_and_what_is_not_good_a_remedy(cli: Cli):
    shown = json.loads(cli("doctor", "--json").stdout)
    assert {each["name"] for each in shown["checks"]} == CHECKS
    for each in shown["checks"]:
        assert each["state"] in ("good", "weak", "missing")
        assert each["keeps_out"]
        assert each["state"] == "good" or each["remedy"] or each["name"] == "CPU"
    assert shown["label"].startswith("Kept out: ")


def test_people_read_the_remedies_too(cli: Cli):
    shown = cli("doctor").stdout
    for each in json.loads(cli("doctor", "--json").stdout)["checks"]:
        assert each["name"] in shown
        assert each["remedy"] in shown or each["state"] == "good"


@pytest.mark.parametrize(("state", "status"), [(State.GOOD, 0), (State.WEAK, 0), (State.MISSING, 1)])
def test_the_exit_status_says_whether_there_is_secure_memory(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, state: State, status: int
):
    def findings() -> Iterator[Finding]:
        yield Finding("memfd_secret", state, "as it is", "reads", "boot another kernel")

    monkeypatch.setattr(doctor, "findings", findings)
    assert cli("doctor").exit_code == status
