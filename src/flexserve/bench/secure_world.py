"""A secure world with another policy for its weights: python -m flexserve.bench.secure_world BASELINE OPTION…

`BASELINE` is one of flexserve.bench.baselines, the options are those of flexserve.protocol.launch. The
product has no way to start one.
"""

from __future__ import annotations

import functools
import sys

from flexserve.bench.baselines import BASELINES, make_residency
from flexserve.secure_world.main import leave, main

if __name__ == "__main__":
    baseline, *options = sys.argv[1:]
    if baseline not in BASELINES:
        sys.exit(f"{baseline!r} is no baseline; there are {', '.join(BASELINES)}")
    leave(main(options, functools.partial(make_residency, baseline)))
