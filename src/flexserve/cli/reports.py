"""What a server says of its models and memory, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flexserve.cli import terminal
from flexserve.units import format_duration, format_size

if TYPE_CHECKING:
    from flexserve.normal.reports import ModelState, NpuState, RecallResult, States


def show_states(states: States) -> None:
    """Print where every byte is, for people."""
    columns = ["MODEL", "STATE", "RESIDENT", "%", "OF", "KV", "SCRATCH", "CONTEXT", "KV TYPE", "UNTIL"]
    rows = [_row(model) for model in states.models]
    if rows:
        terminal.show_table(columns, rows, right=("RESIDENT", "%", "OF", "KV", "SCRATCH", "CONTEXT"))
        terminal.say()
    else:
        terminal.say("No models yet. Add one with `flexserve add FILE.gguf`.")
    for model in states.models:
        _show_notes(model)
    memory, counted = states.memory, states.os
    stall = "" if counted.stall is None else f", stalled {counted.stall:.1f} % of the time"
    terminal.say(
        f"secure memory  {format_size(memory.secure)} in use, {format_size(memory.unused)} unused, "
        f"{format_size(memory.recalling)} on its way back, of {format_size(memory.granted)} granted"
    )
    available = f"{format_size(counted.available)} of {format_size(counted.total)} available{stall}"
    if counted.guest:
        terminal.say(f"the guest      handed {format_size(counted.secure_rss)} over; {available}")
    else:
        held = f"{format_size(counted.secure_rss)} in the secure process ({counted.secure_pid})"
        terminal.say(f"the OS counts  {held}; {available}")
    if states.npu is not None:
        terminal.say(_npu(states.npu))
    terminal.say(f"requests       {states.running} running, {states.queued} waiting")
    terminal.say(f"protection     {states.protection.name}: {states.protection.summary}")
    if not states.protection.protected:
        terminal.warn("this server's model memory is UNPROTECTED.")


def _show_notes(model: ModelState) -> None:
    """Print what a model's row has no room for."""
    if model.error is not None:
        terminal.warn(f"{model.name}: {model.error.message} {model.error.hint}")
    if model.draft:
        terminal.say(f"draft          {model.draft} guesses the next tokens of {model.name}")
    if why := _why_not_loaded(model):
        terminal.say(f"not in memory  {model.name}: {why}")
    if model.rewarmed:
        rewarmed = format_size(model.rewarmed)
        terminal.say(f"came back      {rewarmed} of {model.name} without a request: {model.rewarmed_for}")


def show_recall(result: RecallResult) -> None:
    """Print what a recall brought, for people."""
    measured = result.measured
    asked = "" if result.asked is None else f", of {format_size(result.asked)} asked,"
    holder = "the secure world" if measured.after.guest else "the secure process"
    terminal.say(
        f"the OS got {format_size(measured.freed)} back{asked} in {result.elapsed_ms:.1f} ms: {holder} had "
        f"{format_size(measured.before.secure_rss)} and has {format_size(measured.after.secure_rss)}"
    )
    if result.plan:
        terminal.say(f"given up: {', '.join(result.plan)}")
    if result.protected:
        terminal.say(f"kept: {format_size(result.protected)}, in use by a running request")


def _npu(npu: NpuState) -> str:
    by_cpu = f", {npu.fallbacks} of its products by the CPU instead" if npu.fallbacks else ""
    return (
        f"the NPU        {npu.state}; {npu.products} products in {npu.jobs} jobs{by_cpu}; "
        f"here {npu.switches} times, {npu.held_ms / 1000:.1f} s"
    )


def _row(model: ModelState) -> list[str]:
    return [
        model.name,
        f"{model.state}, pinned" if model.pinned else model.state,
        format_size(model.resident),
        f"{100 * model.resident_fraction:.0f}",
        format_size(model.weights),
        format_size(model.kv),
        format_size(model.scratch),
        str(model.context or "?"),
        model.kv_type,
        _until(model),
    ]


def _until(model: ModelState) -> str:
    """Return until when a model keeps what it has."""
    if model.running:
        return "it has answered"
    if model.leaves_in_ms is not None:
        return f"in {format_duration(model.leaves_in_ms / 1000)}"
    return "others need it" if model.resident else ""


def _why_not_loaded(model: ModelState) -> str:
    """Return why a model, or a part of it, is not in memory; "": it is, or nobody knows more."""
    if model.state not in ("unloaded", "partial"):
        return ""
    if model.gone:
        missing = (
            "" if model.state == "unloaded" else f"lacks {format_size(model.weights - model.resident)}; "
        )
        return f"{missing}{model.gone}"
    return "nobody asked for it yet" if model.state == "unloaded" else ""
