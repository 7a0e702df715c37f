"""`flexserve bench paper --platform trustzone`: the paper's measurements on the emulated machine."""
