"""What a secure process imports of llama-cpp-python and of llguidance: not all of them."""

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

GUIDED = """
import sys
from flexserve.trusted.text.grammar import Confinement
import flexserve.trusted.text.rendering.compiling
print("importlib.metadata" in sys.modules)
import llguidance
print(llguidance.LLMatcher is llguidance._lib.LLMatcher, llguidance.StructTag.__name__)
"""


def test_the_rest_is_imported_only_for_who_asks_for_it():
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "Llama", "True", "False"]


def test_grammars_are_followed_without_the_package_of_llguidance():
    done = subprocess.run([sys.executable, "-c", GUIDED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "StructTag"]


def test_the_version_is_read_without_importing_the_package():
    assert library.VERSION == abi.PINNED_VERSION
