"""What came of llama.cpp's server tests, as docs/llama-server-tests.md has it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from flexserve.testing.llama_server_tests.left_out import unmet_reason

_LEFT_OUT = "not applicable: "
_NO_MODEL = "no such model is at hand"
_OTHER_MODEL = (
    "llama-server itself fails it with the models at hand: its body has words or counts of another model"
)
_HEAD = """# llama.cpp's own server tests

The tests of llama-server, from the sources of the pinned llama-cpp-python, run against `flexserve serve`.
Nothing of them is changed; an adapter (`flexserve.testing.llama_server_tests`) starts FlexServe where they
start llama-server. Written in a checkout after `make setup` by

    .venv/bin/python -m flexserve.testing.llama_server_tests FOLDER --llama-server PROGRAM \\
        --document docs/llama-server-tests.md

which fetches the sources by pip. It takes about an hour; `--only test_basic` runs one file of tests, and the
report counts what FOLDER has results of. PROGRAM is a llama-server of the same sources:

    pip download --no-deps --no-build-isolation --no-binary :all: llama-cpp-python==VERSION
    tar xf llama_cpp_python-VERSION.tar.gz
    cmake -S llama_cpp_python-VERSION/vendor/llama.cpp -B BUILD -DCMAKE_BUILD_TYPE=Release \\
        -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_WEBUI=OFF
    cmake --build BUILD --target llama-server     # it is BUILD/bin/llama-server

- **Models**: random weights in the shapes that the tests need, with llama.cpp's own vocabularies.
- **Words and counts**: where a test expects words of its model, or a number of tokens by a parameter, what
  llama-server says with the same model of ours is expected instead: to the letter, by the same seed.
  (It keeps its weights as the file has them, `LLAMA_ARG_REPACK=0`: kernels for AMX, which FlexServe's
  build leaves out, round otherwise.)
- **Options**: what llama-server gets by its command line and FlexServe by the request (seed, temperature,
  length, whether to think) is put into requests that do not say it. A `model` that the request makes up is
  replaced by the name of the one that is served: FlexServe refuses a name that it does not know.
- **Applicable** is a test that llama-server passes with these models, and that is about something that
  FlexServe has. All others are counted below, with the reason.

"""


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """What became of one test: `outcome` is "passed", "failed" or "skipped"; `reason`: why it was skipped."""

    outcome: str
    reason: str = ""


def results_of(files: Sequence[Path]) -> dict[str, Result]:
    """Return the results in pytest's reports, by test, as test_basic::test_server_props."""
    found = {}
    for file in files:
        for case in ElementTree.parse(file).iter("testcase"):  # noqa: S314  # our own pytest wrote it
            name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
            skipped = case.find("skipped")
            if skipped is not None:
                found[name] = Result("skipped", skipped.get("message", ""))
            else:
                bad = case.find("failure") is not None or case.find("error") is not None
                found[name] = Result("failed" if bad else "passed")
    return found


def report(peer_files: Sequence[Path], our_files: Sequence[Path]) -> str:
    """Return the document. `peer_files`: what llama-server made of the tests; without any, all may apply."""
    peer, ours = results_of(peer_files), results_of(our_files)
    left_out: Counter[str] = Counter()
    passed: list[str] = []
    failed: list[str] = []
    missing: list[str] = []
    for name in peer or ours:
        reason = _reason(peer.get(name), ours.get(name))
        if reason is not None:
            left_out[reason] += 1
        elif name not in ours:
            missing.append(name)
        else:
            (passed if ours[name].outcome == "passed" else failed).append(name)
    parts = [_HEAD, *_table(passed, failed, missing), *_failures(failed)]
    parts.append("\n## Not applicable\n\n| tests | reason |\n|---:|---|\n")
    parts += [f"| {count} | {reason} |\n" for reason, count in left_out.most_common()]
    parts += _every(passed, failed, missing)
    return "".join(parts)


def _reason(peer: Result | None, ours: Result | None) -> str | None:
    """Return why a test does not apply; None if it does."""
    for result in (peer, ours):
        if result is not None and result.outcome == "skipped":
            if _NO_MODEL in result.reason:
                return "a model of others that is not at hand"
            return result.reason.removeprefix("Skipped: ").removeprefix(_LEFT_OUT)
    if peer is not None and peer.outcome == "failed":
        return _OTHER_MODEL
    return None


def _table(*outcomes: Sequence[str]) -> list[str]:
    """Return how many tests passed, failed and were not run."""
    files = sorted({name.partition("::")[0] for names in outcomes for name in names})
    rows = ["| file | applicable | run | pass |\n|---|---:|---:|---:|\n"]
    for file in files:
        good, bad, rest = (sum(name.startswith(f"{file}::") for name in names) for names in outcomes)
        rows.append(f"| `{file}` | {good + bad + rest} | {good + bad} | {good} |\n")
    good, bad, rest = map(len, outcomes)
    share = 100 * good / (good + bad) if good + bad else 0
    whole = f"**{good + bad + rest}** | **{good + bad}** | **{good}** ({share:.0f} % of those run)"
    return [*rows, f"| **all** | {whole} |\n"]


def _failures(failed: Sequence[str]) -> list[str]:
    reasons: Counter[tuple[str, str]] = Counter()
    for name in failed:
        test = name.partition("[")[0]
        reasons[test, unmet_reason(test)] += 1
    rows = ["\n## Applicable, and not passed\n\n| test | cases | reason |\n|---|---:|---|\n"]
    return rows + [
        f"| `{test}` | {count} | {reason} |\n" for (test, reason), count in sorted(reasons.items())
    ]


def _every(passed: Sequence[str], failed: Sequence[str], missing: Sequence[str]) -> list[str]:
    """Return what became of each applicable test, its cases counted."""
    cases = Counter(name.partition("[")[0] for name in [*passed, *failed, *missing])
    good = Counter(name.partition("[")[0] for name in passed)
    rows = ["\n## Each applicable test\n\n| test | cases | pass |\n|---|---:|---:|\n"]
    return rows + [f"| `{test}` | {count} | {good[test]} |\n" for test, count in sorted(cases.items())]
