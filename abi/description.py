"""What flex.toml says, read and checked."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

DESCRIPTION = Path(__file__).resolve().parent / "flex.toml"
NOTE = "Made by abi/generate.py from abi/flex.toml: do not edit."
NUMBERED = ("state", "status", "call", "notice", "command", "event", "byte")
MEASURED = (
    "measured",
)  # in a header of their own: a change leaves the one that the proved core reads as it is
RUN = ("run_answer",)  # for the same reason
OF_NPU = (
    "npu_state",
    "npu_register",
    "npu_interrupt",
    "npu_mmu_status",
    "npu_mmu_command",
    "npu_target",
    "npu_operand",
    "npu_format",
)

Abi = dict[str, Any]


class AbiError(Exception):
    """flex.toml contradicts itself; the text says where."""


def load(path: Path = DESCRIPTION) -> Abi:
    """Read the description. Raises AbiError when it is not consistent."""
    with path.open("rb") as file:
        abi = tomllib.load(file)
    for kind in NUMBERED + MEASURED + RUN + OF_NPU:
        for each in abi[kind]:
            each.setdefault("value", each.get("number"))
        for field in ("name", "value"):
            given = [each[field] for each in abi[kind]]
            if len(set(given)) != len(given):
                raise AbiError(f"two entries of [[{kind}]] share a {field}")
    states = {state["name"] for state in abi["state"]}
    moves = [(move["from"], move["event"]) for move in abi["transition"]]
    if len(set(moves)) != len(moves):
        raise AbiError("two transitions leave one state by one event")
    for move in abi["transition"]:
        if not {move["from"], move["to"]} <= states:
            raise AbiError(f"transition {move['event']} names an unknown state")
    if abi["run"]["number"] in [call["number"] for call in abi["call"]]:
        raise AbiError("RUN and another call share a number")
    _check_mailbox(abi)
    _end_of_fields(abi["npu_control"])
    return abi


def _end_of_fields(fields: list[dict[str, Any]]) -> int:
    end = 0
    for field in sorted(fields, key=lambda field: field["offset"]):
        if field["offset"] < end or field["offset"] % field["bytes"]:
            raise AbiError(f"field {field['name']} overlaps or is not aligned")
        end = field["offset"] + field["bytes"]
    return end


def _check_mailbox(abi: Abi) -> None:
    if _end_of_fields(abi["field"]) > abi["mailbox"]["header_bytes"]:
        raise AbiError("the mailbox's fields do not fit its header")
    slots = abi["mailbox"]["slots"]
    if slots & (slots - 1):
        raise AbiError("the number of slots is not a power of two")
