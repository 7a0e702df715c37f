"""Measurements: plain llama.cpp and FlexServe interleaved in one run."""
