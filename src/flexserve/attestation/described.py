"""What was verified of a secure world, as it stands in JSON."""

from __future__ import annotations

from typing import Any

from flexserve.attestation.verification import Verified


def described(verified: Verified) -> dict[str, Any]:
    """Return what was verified, as JSON has it; bytes are hex."""
    return {
        "root": verified.root.hex(),
        "world_key": verified.world_key.hex(),
        "world": verified.world.hex(),
        "layers": [
            {"name": each.name, "code": each.code.hex(), "mode": each.mode.name.lower()}
            for each in verified.layers
        ],
        "measurements": {name: digest.hex() for name, digest in verified.measurements.items()},
        "platform": verified.platform,
        "hardware": verified.hardware,
        "version": verified.version,
        "debug": verified.debug,
        "models": [
            {"sha256": each.digest, "signer": each.signer, "generation": each.generation}
            for each in verified.models
        ],
        "sealing_key": {"public": verified.sealing.public.hex(), "end": verified.sealing.end},
        "issued": verified.issued,
        "expires": verified.expires,
        "unchecked": list(verified.unchecked),
    }
