"""The boot ROM, played by whoever starts the emulator: layer 0, which nothing measures.

On a board, fuses hold the digest of the key that signs firmware, and a ROM starts no other. Here the builder
signs what it has built with a key of this user's, and before a machine starts its firmware is checked with
it. So a firmware that somebody else put into the build's folder is not started. It is no more than that:
whoever is this user can sign, too, and the emulator does what its host says.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flexserve.errors import NormalWorldError

_KEY_SIZE, _PURPOSE = 32, b"flexserve firmware 1\0"


@dataclasses.dataclass(frozen=True, slots=True)
class StartedFirmware:
    """What was verified before it is started: SHA-512 of the firmware and of the key that signed it."""

    digest: bytes
    authority: bytes


def sign(firmware: Path, key: Path) -> None:
    """Put a signature beside `firmware`, by the key in the file `key`, which is made if there is none."""
    _signature(firmware).write_bytes(_key(key).sign(_PURPOSE + firmware.read_bytes()))


def verified(firmware: Path, key: Path) -> tuple[bytes, StartedFirmware]:
    """Return the firmware, and what a machine that starts it is to be known by.

    Raises NormalWorldError (code "firmware_forged") when it is not what was signed.
    """
    signer = _key(key).public_key()
    image = firmware.read_bytes()
    try:
        signer.verify(_signature(firmware).read_bytes(), _PURPOSE + image)
    except (InvalidSignature, OSError):
        raise NormalWorldError(
            f"The firmware {firmware} is not the one that was signed when it was built.",
            hint="Delete it: `flexserve boot` builds another.",
            code="firmware_forged",
        ) from None
    authority = hashlib.sha512(signer.public_bytes_raw()).digest()
    return image, StartedFirmware(hashlib.sha512(image).digest(), authority)


def reference_layers(firmware: Path, el2: Path) -> dict[str, bytes]:
    """Return the code digests of the layers below the secure world, for a policy."""
    image = el2.read_bytes()
    image += bytes(-len(image) % 8)  # as monitor/el3/image.S has it
    return {
        "el3": hashlib.sha512(firmware.read_bytes()).digest(),
        "el2": hashlib.sha256(image).digest().ljust(64, b"\0"),
    }


def _signature(firmware: Path) -> Path:
    return firmware.with_name(f"{firmware.name}.signature")


def _key(path: Path) -> Ed25519PrivateKey:
    """Return the key in a private file. Raises NormalWorldError for a file that holds none."""
    if not path.exists():
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(os.urandom(_KEY_SIZE))
        try:
            os.link(partial, path)  # of two that make it, the first counts
        except FileExistsError:
            pass
        finally:
            os.unlink(partial)
    raw = path.read_bytes()
    if len(raw) != _KEY_SIZE:
        raise NormalWorldError(f"{path} holds no key.", hint="Delete it: `flexserve boot` makes another.")
    return Ed25519PrivateKey.from_private_bytes(raw)
