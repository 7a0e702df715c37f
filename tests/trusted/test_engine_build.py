"""What is installed of llama.cpp is what a secure world loads, and nothing beside it."""

from __future__ import annotations

from pathlib import Path

import llama_cpp


def test_no_server_no_tools_and_no_second_copies_are_installed() -> None:
    installed = Path(llama_cpp.__file__).parent
    libraries = {path.name for path in (installed / "lib").iterdir()}
    assert libraries == {
        "libllama.so",
        "libggml.so",  # which llama-cpp-python opens by this name
        *("libggml.so.0", "libggml-base.so.0", "libggml-cpu.so.0"),
    }
    assert not (installed / "server").exists()
    assert not list(installed.parent.glob("lib/libllama*"))
