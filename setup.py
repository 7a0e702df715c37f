"""What pyproject.toml cannot say: a wheel has the sources of the emulated machine, too."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
# flexserve.emulator.build.sources_folder finds them.
SOURCES = ("abi", "monitor", "secure-os", "trusted-app", "driver")
MADE = ("__pycache__", "build", "*.o", "*.ko", ".*")


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
            tests = () if name == "trusted-app" else ("tests",)  # it is made with its own
            shutil.copytree(HERE / name, target / name, ignore=shutil.ignore_patterns(*MADE, *tests))
        shutil.copy(HERE / "requirements.lock", target)  # which pins llama.cpp


setup(cmdclass={"build_py": WithSources})
