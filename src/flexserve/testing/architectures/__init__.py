"""Tiny models of random weights, of every architecture that the pinned llama.cpp knows.

llama.cpp's own loader says what an architecture needs: it is given a file, names the parameter or
tensor that it misses, gets it, and is asked again. So no knowledge of 150 families is kept here, only
values for parameters, and the few shapes that a loader takes for granted.

    python -m flexserve.testing.architectures FOLDER [NAME ...]
"""

from flexserve.testing.architectures.making import UnmakeableError, make_model, make_models
from flexserve.testing.architectures.parameters import ARCHITECTURES, ENCODERS, UNMADE

__all__ = ["ARCHITECTURES", "ENCODERS", "UNMADE", "UnmakeableError", "make_model", "make_models"]
