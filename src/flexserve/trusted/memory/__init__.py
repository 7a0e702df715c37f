"""Flex-Mem: chunks of secure memory and who owns them."""
