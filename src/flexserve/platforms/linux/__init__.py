"""Linux: Flex-Mem from memfd_secret (or plain, labelled), memory pressure from /proc, the sandbox.

Trusted with: that Flex-Mem is what it says, and that the sandbox is closed.
Sees: addresses.
"""
