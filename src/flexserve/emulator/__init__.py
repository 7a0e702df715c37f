"""What plays the hardware of the TrustZone machine: QEMU, its build, its NPU. Nothing trusted imports it."""
