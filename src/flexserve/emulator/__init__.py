"""What plays the hardware of the TrustZone machine: QEMU, its build, its device tree. Nothing trusted
imports it.

Trusted with: being the hardware: it could read everything, as QEMU can.
Sees: nothing.
"""
