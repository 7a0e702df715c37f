"""Commands that measure: synth, bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from flexserve.cli import terminal
from flexserve.errors import CallerError, NormalWorldError
from flexserve.units import format_size


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command("synth", epilog="Example: flexserve synth --shape tinyllama-1.1b --quant q4_0 -o model.gguf")(
        synth
    )


def synth(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The GGUF file to write.")],
    shape: Annotated[str, typer.Option(help="Whose shape it has.")] = "tinyllama-1.1b",
    quant: Annotated[Literal["f16", "q8_0", "q4_0", "q4_k_m"], typer.Option(help="Of its weights.")] = "q4_0",
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same file.")] = 0,
) -> None:
    """Write a model of random weights, to measure with.

    It has the shape of a real one, and so its speed and its memory.
    """
    from flexserve.bench.shapes import SHAPES
    from flexserve.bench.synth import write_synthetic

    if shape not in SHAPES:
        raise CallerError(f"There is no shape {shape!r}.", hint=f"Choose one of: {', '.join(SHAPES)}.")
    try:
        with terminal.progress(f"writing {output.name}") as show_progress:
            write_synthetic(output, SHAPES[shape], quant, seed=seed, progress=show_progress)
    except OSError as error:
        raise NormalWorldError(
            f"{output} cannot be written: {error.strerror}.", hint="Choose another."
        ) from None
    terminal.say(f"wrote {output}: {format_size(output.stat().st_size)}")
