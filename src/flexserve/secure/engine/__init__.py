"""llama.cpp with all its memory in Flex-Mem and the residency barrier as its compute hook."""
