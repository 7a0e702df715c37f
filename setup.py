"""What pyproject.toml cannot say: a wheel has the sources of the emulated machine, too."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
SOURCES = ("abi", "monitor", "secure-os", "driver")  # flexserve.emulator.build.sources_folder finds them
LEFT_OUT = shutil.ignore_patterns("__pycache__", "build", "tests", "*.o", "*.ko", ".*")


class WithSources(build_py):
    """Copies them beside what builds them; not for an editable install, which has them in the checkout."""

    def run(self) -> None:
        """Build."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "flexserve" / "emulator" / "sources"
        shutil.rmtree(target, ignore_errors=True)
        for name in SOURCES:
            shutil.copytree(HERE / name, target / name, ignore=LEFT_OUT)


setup(cmdclass={"build_py": WithSources})
