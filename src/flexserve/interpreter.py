"""Runs a program of the secure world by its source files, whatever compiled copies of them lie beside.

    python -I -X pycache_prefix=/dev/null -c "from flexserve.interpreter import main; main()" MODULE ARGUMENT…

Python runs a compiled copy (`.pyc`) that names the size and the time of its source, whatever else is in it:
who can write one decides what runs, and no measurement of sources shows it. With these options Python looks
for copies where none can be. What it compiles is kept in a folder of this user's, and used again for a source
with the same digest only. Without such a folder each start compiles anew, which takes a second. Modules come
from folders only: not from archives, and not from compiled files that have no source.

What is imported before `load_from_sources` is compiled at each start. So this module imports little.
"""

from __future__ import annotations

import _frozen_importlib_external as machinery  # importlib.machinery imports sources besides
import hashlib
import marshal
import os
import pwd
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType

_PROGRAM = "from flexserve.interpreter import main; main()"
OPTIONS = ("-I", "-X", "pycache_prefix=/dev/null", "-c", _PROGRAM)
_DIGEST = 32  # bytes
_FORMAT = f"{sys.implementation.cache_tag} {sys.version}\0".encode()  # of compiled code


def command(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs `module` so."""
    return [sys.executable, *OPTIONS, module, *arguments]


class KeptLoader(machinery.SourceFileLoader):
    """Loads a module from its source, or from what was compiled of a source with the same digest.

    In `folder` each source has a file: SHA-256 of Python's version and the source, then the code.
    """

    def __init__(self, folder: str, fullname: str, path: str) -> None:
        super().__init__(fullname, path)
        self._folder = folder

    def get_code(self, fullname: str) -> CodeType:
        """Return the module's code. Raises OSError for a source that cannot be read, SyntaxError."""
        path = self.get_filename(fullname)
        source = self.get_data(path)
        digest = hashlib.sha256(_FORMAT + source).digest()
        place = os.path.join(self._folder, hashlib.sha256(os.fsencode(path)).hexdigest())
        try:
            kept = self.get_data(place)
            if kept[:_DIGEST] == digest:
                code: CodeType = marshal.loads(kept[_DIGEST:])  # noqa: S302  # this user's own
                return code
        except (OSError, EOFError, ValueError, TypeError):
            pass  # it is not there, or damaged
        code = self.source_to_code(source, path)
        self._keep(digest + marshal.dumps(code), place)
        return code

    def _keep(self, content: bytes, place: str) -> None:
        unfinished = f"{place}.{os.getpid()}"
        try:
            with open(unfinished, "wb") as file:
                file.write(content)
            os.replace(unfinished, place)
        except OSError:
            pass  # it is compiled again next time


def load_from_sources(folder: str) -> None:
    """Have this process load modules from sources and extensions in folders only, compiled in `folder`.

    Raises OSError, having changed nothing, when `folder` is not this user's alone.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    info = os.lstat(folder)
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or stat.S_IMODE(info.st_mode) & 0o077:
        raise PermissionError(f"{folder} is not this user's alone")
    extensions = (machinery.ExtensionFileLoader, machinery.EXTENSION_SUFFIXES)
    sources = (lambda name, path: KeptLoader(folder, name, path), machinery.SOURCE_SUFFIXES)
    sys.path_hooks[:] = [machinery.FileFinder.path_hook(extensions, sources)]  # type: ignore[arg-type]
    sys.path_importer_cache.clear()


def main() -> None:
    """Run the module of the command line with the arguments behind it."""
    try:
        home = pwd.getpwuid(os.geteuid()).pw_dir  # no variable of the environment decides it
        load_from_sources(os.path.join(home, ".cache", "flexserve", "code"))
    except (OSError, KeyError):
        pass  # all is compiled
    import runpy

    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
