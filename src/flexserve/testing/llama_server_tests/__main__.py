"""Runs llama.cpp's own server tests against FlexServe, and writes what came of them.

    python -m flexserve.testing.llama_server_tests FOLDER [--llama-server PROGRAM] [--document FILE]

The tests come with the sources of the pinned llama-cpp-python, which pip brings into FOLDER. With PROGRAM, a
llama-server built of the same sources, they run against it first: what it answers with the models at hand
is what is expected, and a test that it fails with them does not apply.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from flexserve.testing.llama_server_tests.left_out import LEFT_OUT
from flexserve.testing.llama_server_tests.report import report

_PARTS = ("/tools/server/tests/", "/models/")
_PLUGIN = "flexserve.testing.llama_server_tests.adapter"
_SECONDS = 3600  # for a file of tests
_TEST_SECONDS = 300  # for one of them


def main() -> None:
    """Fetch, run and report."""
    parser = argparse.ArgumentParser(prog="python -m flexserve.testing.llama_server_tests")
    parser.add_argument("folder", type=Path, help="where sources, models and results are kept")
    parser.add_argument("--llama-server", metavar="PROGRAM", help="learn from it first what is expected")
    parser.add_argument("--document", type=Path, help="where the report goes [standard output]")
    parser.add_argument("--only", metavar="NAME", action="append", help="this file of tests, as test_basic")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    suite = _suite(folder)
    names = arguments.only or sorted(path.stem for path in (suite / "unit").glob("test_*.py"))
    if arguments.llama_server:
        _run(suite, folder, "peer", names, arguments.llama_server)
    _run(suite, folder, "ours", [name for name in names if name not in LEFT_OUT], None)
    text = report(sorted((folder / "peer").glob("*.xml")), sorted((folder / "ours").glob("*.xml")))
    if arguments.document is None:
        sys.stdout.write(text)
    else:
        arguments.document.write_text(text)


def _suite(folder: Path) -> Path:
    """Return the folder of the suite; the sources are fetched if they are not there."""
    sources = folder / "llama.cpp"
    if not sources.exists():
        folder.mkdir(parents=True, exist_ok=True)
        version = importlib.metadata.version("llama-cpp-python")
        with tempfile.TemporaryDirectory() as download:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--no-build-isolation",
            ]
            command += ["--no-binary", ":all:", "--dest", download, f"llama-cpp-python=={version}"]
            subprocess.run(command, check=True)
            [archive] = Path(download).glob("*.tar.gz")
            _unpack(archive, sources)
    return sources / "tools" / "server" / "tests"


def _unpack(archive: Path, target: Path) -> None:
    """Unpack what the tests need of llama.cpp."""
    with tarfile.open(archive) as sources:
        for member in sources.getmembers():
            _, vendored, name = member.name.partition("/vendor/llama.cpp")
            if vendored and member.isfile() and name.startswith(_PARTS):
                member.name = name.lstrip("/")
                sources.extract(member, target, filter="data")


def _run(suite: Path, folder: Path, whose: str, names: list[str], peer: str | None) -> None:
    """Run files of tests, one after the other; each has its results in `folder`/`whose`."""
    results = folder / whose
    results.mkdir(exist_ok=True)
    environment = {**os.environ, "LLAMA_SUITE_FOLDER": str(folder)}
    if peer is not None:
        environment["LLAMA_SUITE_PEER"] = peer
        environment["LLAMA_ARG_REPACK"] = "0"  # kernels for AMX, which our build leaves out, round otherwise
    for name in names:
        command = [sys.executable, "-m", "pytest", "-c", "pytest.ini", "-p", _PLUGIN]
        command += [
            "-q",
            "--timeout",
            str(_TEST_SECONDS),
            "-p",
            "no:cacheprovider",
            "--junit-xml",
            str(results / f"{name}.xml"),
        ]
        with (results / f"{name}.log").open("w") as log:
            subprocess.run(
                [*command, f"unit/{name}.py"],
                cwd=suite,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=_SECONDS,
                check=False,
            )
        sys.stderr.write(f"{whose} {name}: done\n")


if __name__ == "__main__":
    main()
