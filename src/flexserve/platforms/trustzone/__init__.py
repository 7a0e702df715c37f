"""The paper's isolation on emulated Arm TrustZone: a machine of its own, its monitor, its mailbox."""
