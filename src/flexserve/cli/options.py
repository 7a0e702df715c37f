"""Options that several commands share. None means: not given, so the configuration decides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from flexserve.cli.terminal import JSON_ASKED
from flexserve.protocol.launch import LinuxMemory
from flexserve.protocol.model_options import KvType


def _note_json(ctx: typer.Context, wanted: bool) -> bool:
    """Remember that JSON is wanted, for an error that ends the command."""
    ctx.meta[JSON_ASKED] = wanted
    return wanted


AsJson = Annotated[bool, typer.Option("--json", callback=_note_json, help="Print JSON, errors included.")]

ModelName = Annotated[str, typer.Argument(metavar="MODEL", show_default=False, help="A model's name.")]
ModelsFolder = Annotated[
    Path | None, typer.Option("--models", metavar="DIR", help="Folder of the sealed models.")
]
DeviceKeyFile = Annotated[
    Path | None, typer.Option("--device-key", metavar="FILE", help="File of the key that opens them.")
]

Host = Annotated[
    str | None, typer.Option("--host", metavar="ADDRESS", help="Address [127.0.0.1]; none: Unix socket only.")
]
Port = Annotated[int | None, typer.Option("--port", metavar="N", min=0, max=65535, help="TCP port [7077].")]
UnixSocket = Annotated[
    Path | None,
    typer.Option(
        "--unix-socket",
        "--socket",
        metavar="PATH",
        help="Unix socket of the server [one of this user's alone].",
    ),
]

MemoryKind = Annotated[
    LinuxMemory | None,
    typer.Option("--memory", help="On linux. secret: the OS cannot read it [secret]. plain: unprotected."),
]
Platform = Annotated[
    Literal["linux", "trustzone"] | None,
    typer.Option("--platform", help="linux: this machine [linux]. trustzone: an emulated Arm machine."),
]
SecureWorld = Annotated[
    Literal["inside", "host"] | None,
    typer.Option(
        "--secure-world",
        help="On trustzone. inside: models compute on the machine's CPUs [inside]. host: beside it, faster.",
    ),
]
GuestMemory = Annotated[
    str | None,
    typer.Option("--guest-memory", metavar="SIZE", help="RAM of the emulated machine, 256M to 3G [1GiB]."),
]
GuestCpus = Annotated[
    int | None, typer.Option("--guest-cpus", metavar="N", min=1, max=8, help="CPUs of it [2].")
]
Npu = Annotated[
    bool | None, typer.Option("--npu/--no-npu", help="Whether it has an NPU, and models use it [yes].")
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", min=0, max=1024, help="Threads that compute [one per free core]."),
]
Context = Annotated[
    int | None,
    typer.Option("--context", metavar="TOKENS", min=0, max=1 << 20, help="Tokens of context [4096]."),
]
KvTypeName = Annotated[
    KvType | None,
    typer.Option("--kv-type", help="How KV is kept; q8_0 takes about half of the memory [f16]."),
]
