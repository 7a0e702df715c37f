"""Make models: python -m flexserve.testing.architectures FOLDER [NAME ...]."""

import sys
from pathlib import Path

from flexserve.testing.architectures import ARCHITECTURES, make_models


def main() -> None:
    """Make the models of the named architectures, or of all; say which could not be made."""
    folder, *names = sys.argv[1:]
    chosen = names or ARCHITECTURES
    problems = make_models(chosen, Path(folder))
    for name in chosen:
        sys.stdout.write(f"{name:20} {problems.get(name, 'made')}\n")


if __name__ == "__main__":
    main()
