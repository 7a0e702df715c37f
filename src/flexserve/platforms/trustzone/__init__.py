"""The secure side of the emulated Arm machine: its pages, its mailbox, its NPU.

Trusted with: that a page is used only while the monitor says that it is ours; it can write to all of the
machine's RAM.
Sees: addresses.
"""
