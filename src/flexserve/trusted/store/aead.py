"""AES-256-GCM over the numbered chunks of one file, in place.

Why counter nonces are sound here: GCM needs every nonce to be used once per key. A file's key is
derived from the model key and 32 random bytes drawn for that file alone, so no two files, and no
two attempts at the same file, share a key. Within a file the nonce is (stream, index), and the
writers encrypt each (stream, index) at most once: a writer that failed is never resumed, its file
is thrown away with its salt. Nothing random is left that could repeat.

What a chunk is bound to, as associated data: the kind of file, the format version, the model,
the stream, its index in the stream and the stream's length in chunks. A chunk that was moved,
repeated, taken from another file or from another version does not authenticate.
"""

from __future__ import annotations

import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from flexserve.errors import StoredDataError

KEY_SIZE = 32
TAG_SIZE = 16
SALT_SIZE = 32
MODEL_ID_SIZE = 16

_NONCE = struct.Struct("<IQ")
_BINDING = struct.Struct("<16sI16sIQQ")  # kind, version, model, stream, index, total


def derive_key(secret: bytes | memoryview, salt: bytes, purpose: bytes) -> bytes:
    """Return 32 bytes that depend on all three and reveal nothing about `secret`."""
    return HKDF(algorithm=SHA256(), length=KEY_SIZE, salt=salt, info=b"flexserve " + purpose).derive(secret)


def derive_into(secret: bytes | memoryview, salt: bytes, purpose: bytes, target: memoryview) -> None:
    """Put what `derive_key` would return into `target`, of KEY_SIZE bytes, and nowhere else."""
    kdf = HKDF(algorithm=SHA256(), length=KEY_SIZE, salt=salt, info=b"flexserve " + purpose)
    kdf.derive_into(secret, target)


class ChunkCipher:
    """Encrypts and decrypts the chunks of one file. Thread-safe; each call stands alone."""

    def __init__(self, model_key: bytes, salt: bytes, kind: bytes, version: int, model_id: bytes) -> None:
        self._algorithm = algorithms.AES(derive_key(model_key, salt, kind))
        self._kind = kind
        self._version = version
        self._model_id = model_id

    def encrypt(
        self, stream: int, index: int, total: int, plaintext: memoryview | bytes, target: memoryview
    ) -> bytes:
        """Write the ciphertext of `plaintext` into `target`, of the same length; return the tag.

        The caller must never encrypt a second text under the same (stream, index).
        """
        encryptor = Cipher(self._algorithm, modes.GCM(_NONCE.pack(stream, index))).encryptor()
        encryptor.authenticate_additional_data(self._binding(stream, index, total))
        encryptor.update_into(plaintext, target)
        encryptor.finalize()
        return encryptor.tag

    def decrypt(self, stream: int, index: int, total: int, data: memoryview, tag: bytes | memoryview) -> None:
        """Replace the ciphertext in `data` by its plaintext.

        Raises StoredDataError when it is not exactly what was encrypted at this place of this
        file; `data` is zeroed then, so that no unauthenticated byte can be used by mistake.
        """
        mode = modes.GCM(_NONCE.pack(stream, index), bytes(tag))
        decryptor = Cipher(self._algorithm, mode).decryptor()
        decryptor.authenticate_additional_data(self._binding(stream, index, total))
        decryptor.update_into(data, data)
        try:
            decryptor.finalize()
        except InvalidTag:
            wipe(data)
            raise StoredDataError(
                f"Chunk {index} of {total} is damaged, forged or out of place.",
                hint="Remove the model and add it again.",
            ) from None

    def _binding(self, stream: int, index: int, total: int) -> bytes:
        return _BINDING.pack(self._kind, self._version, self._model_id, stream, index, total)


def wipe(data: memoryview | bytearray) -> None:
    """Overwrite `data` with zeros."""
    data[:] = bytes(len(data))
