"""What the boot ROM hands on to S-EL0: the secret of the application's layer, and what certifies its key.

The ROM is played by whoever starts the emulator (boot_rom). It has verified the whole image, so it knows each
layer before one starts, and computes for all of them what each would compute for the next one (Open DICE).
"""

from __future__ import annotations

import dataclasses
import hashlib

import cbor2

from flexserve.attestation.layers import DIGEST_SIZE, Layer, Mode, chain_of
from flexserve.attestation.measurement import world_digest
from flexserve.emulator import secure_os

APPLICATION = "application"  # the name of the last layer, and of what is measured of it


@dataclasses.dataclass(frozen=True, slots=True)
class HandedOn:
    """`secret`: for the application alone. `chain` and `measurements` (CBOR): for who asks who it is."""

    secret: bytes = dataclasses.field(repr=False)
    chain: list[bytes]
    measurements: bytes


def handed_on(root: bytes | memoryview, image: bytes, el2: bytes, authority: bytes) -> HandedOn:
    """Return what a machine that starts `image` hands on.

    `root`: the secret that the keys of attestation begin with. `image`: the verified firmware, with a secure
    OS and its application. `el2`: what EL2 is started from. `authority`: SHA-512 of the signer's key.
    """
    layers = [
        Layer(
            code,
            authority=authority if name == "el3" else bytes(DIGEST_SIZE),
            mode=Mode.DEBUG,
            code_descriptor=name.encode(),
        )
        for name, code in reference_layers(image, el2).items()
    ]
    chain, cdi = chain_of(root, layers)
    return HandedOn(bytes(cdi), chain, cbor2.dumps(reference_measurements(image)))


def reference_layers(image: bytes, el2: bytes) -> dict[str, bytes]:
    """Return the code digests of the layers, for a policy. `el3`: of the whole image, as it is signed."""
    padded = el2 + bytes(-len(el2) % 8)  # as monitor/el3/image.S has it
    return {
        "el3": hashlib.sha512(image).digest(),
        "el2": hashlib.sha256(padded).digest().ljust(DIGEST_SIZE, b"\0"),
        "secure-os": hashlib.sha512(secure_os.kernel_of(image)).digest(),
        APPLICATION: world_digest(reference_measurements(image)),
    }


def reference_measurements(image: bytes) -> dict[str, bytes]:
    """Return what is measured of the application, for a policy."""
    return {APPLICATION: hashlib.sha512(secure_os.application_of(image)).digest()}
