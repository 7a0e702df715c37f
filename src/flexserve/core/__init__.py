"""Pure decisions: no I/O, no clock, no thread, no ctypes. Same code on every platform."""
