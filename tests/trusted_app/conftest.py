"""The trusted application of S-EL0 as a process under qemu-aarch64. `make trusted-app` builds it, no test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from inner_application import MODEL, Application, Opened, Start, grant_plenty

from flexserve.emulator import trusted_app
from flexserve.emulator.trusted_app import Programs


@pytest.fixture(scope="session")
def emulator() -> str:
    """The program that runs programs of the machine's."""
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("needs `apt-get install qemu-user`")
    return "qemu-aarch64"


@pytest.fixture(scope="session")
def programs() -> Programs:
    """What was built."""
    found = trusted_app.built(trusted_app.default_cache())
    if found is None:
        pytest.skip("the trusted application is not built of these sources: `make trusted-app`")
    return found


@pytest.fixture
def start(emulator: str, programs: Programs) -> Iterator[Start]:
    """Start applications, which end with the test."""
    running: list[Application] = []

    def started(*, threads: int = 1, hello: bool = True) -> Application:
        running.append(
            Application([emulator, "-cpu", "cortex-a76", programs.application], threads=threads, hello=hello)
        )
        return running[-1]

    yield started
    for each in running:
        each.end()


@pytest.fixture
def opened(start: Start) -> Opened:
    """The demo's model, open without weights in an application with much memory."""
    app = start()
    grant_plenty(app)
    return Opened(app, MODEL, sequences=2)


@pytest.fixture
def loaded(opened: Opened, image: list[bytes]) -> Opened:
    """The same with its weights."""
    opened.load(image)
    return opened


@pytest.fixture(scope="session")
def image(emulator: str, programs: Programs) -> list[bytes]:
    """The chunks of the demo's model."""
    app = Application([emulator, "-cpu", "cortex-a76", programs.application])
    try:
        grant_plenty(app)
        model = Opened(app, MODEL)
        model.write_weights()
        return model.image()
    finally:
        app.end()
