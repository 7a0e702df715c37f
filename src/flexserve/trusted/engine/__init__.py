"""llama.cpp with all its memory in Flex-Mem and the residency barrier as its compute hook.

Trusted with: weights, KV, activations, tokens.
Sees: all of it.
"""

import os

# llama.cpp's threads wait for each other spinning, libgomp's 300,000 rounds by default: some 20 ms of
# a core. When compute stops for weights, that core is one that the loaders need (a quarter of the
# weights restored: 1 CPU second more than restoring and computing apart). The few milliseconds that are
# left outlast what lies between two graphs of a decode; less than that costs a percent of its speed. What
# spinning costs beside other busy programs is the matter of policy.thread_count. The library reads this when
# it is loaded, which is after this package.
os.environ.setdefault("GOMP_SPINCOUNT", "50000")
