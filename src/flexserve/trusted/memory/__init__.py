"""Flex-Mem: chunks of secure memory and who owns them.

Trusted with: that memory is in use only while it is ours.
Sees: addresses.
"""
