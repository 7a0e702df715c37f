"""The trusted application of S-EL0 as a process under qemu-aarch64. `make trusted-app` builds it, no test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from inner_application import MODEL, ROOT, Application, Start, provide
from inner_judge import Judge
from inner_models import Made, Opened

from flexserve.emulator import trusted_app
from flexserve.emulator.trusted_app import Programs
from flexserve.harness.inner import Image, SealedFile
from flexserve.testing.architectures.making import make_model
from flexserve.testing.architectures.parameters import Parameters
from flexserve.trusted.sidecar import start_helper
from flexserve.trusted.store.keys import DeviceKey
from flexserve.trusted.store.sealing import seal_file
from flexserve.trusted.store.store import Store
from flexserve.trusted.text.rendering.renderer import Renderer


@pytest.fixture(scope="session")
def emulator() -> str:
    """The program that runs programs of the machine's."""
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("needs `apt-get install qemu-user`")
    return "qemu-aarch64"


@pytest.fixture(scope="session")
def programs() -> Programs:
    """What was built."""
    found = trusted_app.built(trusted_app.default_cache(), for_tests=True)
    if found is None:
        pytest.skip("the trusted application is not built of these sources: `make trusted-app`")
    return found


@pytest.fixture(scope="session")
def judge(emulator: str, programs: Programs) -> Judge:
    """What the application is compared with."""
    return Judge(emulator, programs)


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


@pytest.fixture(scope="session")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> SealedFile:
    """The demo's model, sealed as the store does it."""
    device = DeviceKey(ROOT)
    path = tmp_path_factory.mktemp("sealed") / "tiny.flex"
    seal_file(MODEL, path, "tiny", device, lambda _done, _total: None)
    return SealedFile.read(path, device)


@pytest.fixture
def opened(start: Start, sealed: SealedFile) -> Opened:
    """The demo's model, open without weights in an application with much memory."""
    app = start()
    provide(app)
    return Opened(app, sealed, sequences=2)


@pytest.fixture
def loaded(opened: Opened, image: Image) -> Opened:
    """The same with its weights."""
    opened.load(image)
    return opened


@pytest.fixture(scope="module")
def listening(emulator: str, programs: Programs, sealed: SealedFile) -> Iterator[Opened]:
    """An open model as `opened`, for tests that change nothing."""
    app = Application([emulator, "-cpu", "cortex-a76", programs.application])
    provide(app)
    yield Opened(app, sealed)
    app.end()


@pytest.fixture(scope="session")
def image(emulator: str, programs: Programs, sealed: SealedFile) -> Image:
    """The image of the demo's model."""
    app = Application([emulator, "-cpu", "cortex-a76", programs.application])
    try:
        provide(app)
        model = Opened(app, sealed)
        model.write()
        return model.seal()
    finally:
        app.end()


@pytest.fixture
def made(start: Start, tmp_path: Path) -> Made:
    """Open a model of random weights, with them; its file is `tmp_path / "model.gguf"`."""

    def opened(architecture: str, parameters: Parameters | None = None, **how: Any) -> Opened:
        path, device = tmp_path / "model.gguf", DeviceKey(ROOT)
        make_model(architecture, path, parameters=parameters, quantised=False)
        seal_file(path, tmp_path / "model.flex", "model", device, lambda _done, _total: None)
        app = start()
        provide(app, chunks=256)
        model = Opened(app, SealedFile.read(tmp_path / "model.flex", device), **how)
        model.write()
        return model

    return opened


@pytest.fixture(scope="module")
def sealed_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "store"
    Store(folder, DeviceKey(ROOT)).add(MODEL, "tiny", lambda _done, _total: None)
    return folder


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    made = Renderer(start_helper())
    made.wait_until_ready()
    yield made
    made.close()
