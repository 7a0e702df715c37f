"""`python -m flexserve.cli` is `flexserve`."""

from flexserve.cli import main

main()
