"""A process that holds the device key, and uses it for one other that never has it.

The secure process starts it before anything else, and tells it the path of the key's file first. It reads the
file, gives up all but its memory and its end of a socket, and answers until the other end is gone:

    Unwrap(model, wrapped) → the model's key       Sign(record) → the signature
    Attest(nonce, facts) → a chain and a token     Unseal(sealed, info) → what was sealed to the token's key
    SignReceipt(receipt) → it, signed
    Unlock(block, licence, entry) → the key of a vendor's model, and the ledger's next entry

It wraps no key and signs nothing but tokens, receipts and records of what a model can do: who takes over the
secure process can open the models of its store as long as it has it, and neither carries a key away, nor
makes a sealed model of its own, nor opens one later or elsewhere.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from flexserve.attestation.licence import MAX_SIZE
from flexserve.errors import CallerError, FlexServeError
from flexserve.platforms.linux.hardening import die_with_parent, harden
from flexserve.platforms.linux.sandbox import confine_holder
from flexserve.protocol.failures import failure_of
from flexserve.protocol.statuses import Failure
from flexserve.trusted.identity.identity import Evidence, Facts, Identity, MachineLayer
from flexserve.trusted.identity.measurer import Measurer, program_of, start_of
from flexserve.trusted.sessions.clock import steady_clock
from flexserve.trusted.store.aead import MODEL_ID_SIZE
from flexserve.trusted.store.keys import WRAPPED_SIZE, DeviceKey, Unlocked
from flexserve.trusted.store.licences import MAX_ENTRY, Licences
from flexserve.trusted.store.manifest import BLOCK_SIZE
from flexserve.trusted.store.record import MAX_RECORD, Record

MAX_MESSAGE = 1 << 16  # bytes, either way
MAX_SEALED = 1 << 12  # bytes: a key that opens something larger


class Unwrap(msgspec.Struct, frozen=True, tag=True):
    """Ask for the key of a model."""

    model_id: Annotated[bytes, Meta(min_length=MODEL_ID_SIZE, max_length=MODEL_ID_SIZE)]
    wrapped: Annotated[bytes, Meta(max_length=WRAPPED_SIZE)]


class Sign(msgspec.Struct, frozen=True, tag=True):
    """Ask for the signature of a record."""

    record: Annotated[bytes, Meta(max_length=MAX_RECORD)]


class Attest(msgspec.Struct, frozen=True, tag=True):
    """Ask for a token with a client's nonce."""

    nonce: Annotated[bytes, Meta(max_length=64)]
    facts: Facts


class Unseal(msgspec.Struct, frozen=True, tag=True):
    """Ask for what a client sealed to the key that a token showed. `info`: HPKE's."""

    sealed: Annotated[bytes, Meta(max_length=MAX_SEALED)]
    info: Annotated[bytes, Meta(max_length=256)]


class SignReceipt(msgspec.Struct, frozen=True, tag=True):
    """Ask for a receipt, signed by the world's key."""

    receipt: Annotated[bytes, Meta(max_length=MAX_SEALED)]


class Unlock(msgspec.Struct, frozen=True, tag=True):
    """Ask for the key of a vendor's model. `entry`: of the ledger. `machine`: the layers below the world."""

    block: Annotated[bytes, Meta(max_length=BLOCK_SIZE)]
    licence: Annotated[bytes, Meta(max_length=MAX_SIZE)]
    entry: Annotated[bytes, Meta(max_length=MAX_ENTRY)]
    machine: list[MachineLayer] = []


class Held(msgspec.Struct, frozen=True, tag=True):
    """The first answer: the key is here. `identity`: DeviceKey.identity."""

    identity: str


class Done(msgspec.Struct, frozen=True, tag=True):
    """What was asked for."""

    data: bytes


class Refused(msgspec.Struct, frozen=True, tag=True):
    """Why not."""

    failure: Failure


Request = Unwrap | Sign | Attest | Unseal | SignReceipt | Unlock
Answer = Held | Done | Refused | Evidence | Unlocked
_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(Request)


def answer(key: DeviceKey, identity: Identity, licences: Licences, request: Request) -> Answer:
    """Return what is asked for. Raises as those who have it, and CallerError for what is not signed."""
    match request:
        case Unwrap():
            return Done(key.unwrap(request.model_id, request.wrapped))
        case Attest():
            return identity.attest(request.nonce, request.facts)
        case Unseal():
            return Done(identity.unseal(request.sealed, request.info))
        case SignReceipt():
            return Done(identity.sign_receipt(request.receipt))
        case Unlock():
            lock = identity.licence_key(request.machine)
            licence, entry = licences.judge(request.block, request.licence, request.entry, lock.digest)
            return Unlocked(lock.open(licence), key.local_key(licence.model), entry)
    try:
        msgspec.json.decode(request.record, type=Record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise CallerError("The key's holder signs records only.", code="not_a_record") from None
    return Done(key.sign(request.record))


def serve(key: DeviceKey, identity: Identity, connection: socket.socket) -> None:
    """Answer requests until nobody asks any more; what is no request ends it."""
    clock = steady_clock()
    licences = Licences(key, lambda: clock() // 1000)
    while data := connection.recv(MAX_MESSAGE):
        try:
            said = answer(key, identity, licences, _requests.decode(data))
        except FlexServeError as error:
            said = Refused(failure_of(error))
        connection.sendall(_encoder.encode(said))


def main(arguments: list[str] | None = None) -> int:
    """Hold the key of the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="flexserve.trusted.store.key_holder", description=__doc__)
    parser.add_argument("--fd", type=int, required=True)
    options = parser.parse_args(arguments)
    die_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    harden(keep={options.fd})
    connection = socket.socket(fileno=options.fd)
    measurer, started, program = Measurer(), start_of(os.getppid()), program_of(os.getppid())
    try:
        path = connection.recv(MAX_MESSAGE)
        if not path:
            return 0  # whoever started it went away
        key = DeviceKey.load_or_create(Path(os.fsdecode(path)))
        confine_holder()
    except FlexServeError as error:
        connection.sendall(_encoder.encode(Refused(failure_of(error))))
        return 1
    connection.sendall(_encoder.encode(Held(key.identity)))
    serve(key, Identity(key.attestation_root, measurer.measure, started, program), connection)
    return 0


if __name__ == "__main__":
    sys.exit(main())
