"""GET /v1/attestation: who the secure world is, for clients to verify (docs/private.md)."""

from __future__ import annotations

import base64
import binascii

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from flexserve.attestation.token import NONCE_SIZES
from flexserve.errors import CallerError
from flexserve.normal.api.operations import world_of

router = APIRouter(tags=["attestation"])


@router.get("/v1/attestation")
async def attestation(request: Request, nonce: str) -> Response:
    """Return a chain and a token with the client's nonce: 8 to 64 bytes, in hex; base64 in the answer.

    This server relays them. It can make neither, and a client that verifies them need not believe it.
    """
    said = await world_of(request).attest(_bytes(nonce))
    return JSONResponse({"chain": [_text(each) for each in said.chain], "token": _text(said.token)})


def _bytes(nonce: str) -> bytes:
    try:
        value = binascii.unhexlify(nonce)
    except (binascii.Error, ValueError):
        value = b""
    if len(value) not in NONCE_SIZES:
        raise CallerError(
            "The nonce is not 8 to 64 bytes as hexadecimal digits.", hint="Send 32 random bytes as 64 digits."
        )
    return value


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
