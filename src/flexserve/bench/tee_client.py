"""A client of the trusted application that is no product: python -m flexserve.bench.tee_client WHICH OPTION…

`WHICH` is one of flexserve.bench.inside_baselines. The options are those of flexserve.protocol.launch. The
product has no way to start one.
"""

from __future__ import annotations

import sys

from flexserve.bench.inside_baselines import BASELINES, maker
from flexserve.protocol.ending import leave
from flexserve.protocol.launch import SecureOptions
from flexserve.tee_client.main import main

if __name__ == "__main__":
    which, *options = sys.argv[1:]
    if which not in BASELINES:
        sys.exit(f"{which!r} is no baseline; there are {', '.join(BASELINES)}")
    leave(main(options, maker(which, SecureOptions.parse(options).device_key.read_bytes)))
