"""The C interface of llama.cpp without the rest of llama-cpp-python."""

from __future__ import annotations

import subprocess
import sys

from flexserve.trusted.engine import abi, library

LOOK = """
import sys
from flexserve.trusted.engine.library import lib
assert "llama_cpp.llama" not in sys.modules
import llama_cpp
assert llama_cpp.llama_cpp is lib
print("llama_cpp.llama" in sys.modules, llama_cpp.Llama.__name__, llama_cpp.llama_decode is lib.llama_decode)
print(hasattr(llama_cpp, "no_such_name"))
"""


def test_the_rest_is_imported_only_for_who_asks_for_it():
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "Llama", "True", "False"]


def test_the_version_is_read_without_importing_the_package():
    assert library.VERSION == abi.PINNED_VERSION
