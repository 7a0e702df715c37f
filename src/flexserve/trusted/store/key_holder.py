"""A process that holds the device key, and uses it for one other that never has it.

The secure process starts it before anything else, and tells it the path of the key's file first. It reads the
file, gives up all but its memory and its end of a socket, and answers until the other end is gone:

    Unwrap(model, wrapped) → the model's key          Sign(record) → the signature

It wraps no key and signs nothing but records of what a model can do: who takes over the secure process can
open the models of its store as long as it has it, and neither carries the device key away, nor makes a sealed
model of its own, nor opens one later or elsewhere.
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

from flexserve.errors import CallerError, FlexServeError
from flexserve.platforms.linux.hardening import die_with_parent, harden
from flexserve.platforms.linux.sandbox import confine_holder
from flexserve.protocol.failures import failure_of
from flexserve.protocol.statuses import Failure
from flexserve.trusted.store.aead import MODEL_ID_SIZE
from flexserve.trusted.store.keys import WRAPPED_SIZE, DeviceKey
from flexserve.trusted.store.record import MAX_RECORD, Record

MAX_MESSAGE = 1 << 16  # bytes, either way


class Unwrap(msgspec.Struct, frozen=True, tag=True):
    """Ask for the key of a model."""

    model_id: Annotated[bytes, Meta(min_length=MODEL_ID_SIZE, max_length=MODEL_ID_SIZE)]
    wrapped: Annotated[bytes, Meta(max_length=WRAPPED_SIZE)]


class Sign(msgspec.Struct, frozen=True, tag=True):
    """Ask for the signature of a record."""

    record: Annotated[bytes, Meta(max_length=MAX_RECORD)]


class Held(msgspec.Struct, frozen=True, tag=True):
    """The first answer: the key is here. `identity`: DeviceKey.identity."""

    identity: str


class Done(msgspec.Struct, frozen=True, tag=True):
    """What was asked for."""

    data: bytes


class Refused(msgspec.Struct, frozen=True, tag=True):
    """Why not."""

    failure: Failure


Answer = Held | Done | Refused
_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(Unwrap | Sign)


def answer(key: DeviceKey, request: Unwrap | Sign) -> bytes:
    """Return what is asked for. Raises what DeviceKey raises, and CallerError for what is not signed."""
    if isinstance(request, Unwrap):
        return key.unwrap(request.model_id, request.wrapped)
    try:
        msgspec.json.decode(request.record, type=Record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise CallerError("The key's holder signs records only.", code="not_a_record") from None
    return key.sign(request.record)


def serve(key: DeviceKey, connection: socket.socket) -> None:
    """Answer requests until nobody asks any more; what is no request ends it."""
    while data := connection.recv(MAX_MESSAGE):
        try:
            said: Answer = Done(answer(key, _requests.decode(data)))
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
    serve(key, connection)
    return 0


if __name__ == "__main__":
    sys.exit(main())
