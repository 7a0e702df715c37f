"""Commands that measure: synth, bench, bench paper, bench application."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from flexserve.cli import terminal
from flexserve.cli.options import AsJson, MemoryKind, Threads
from flexserve.errors import CallerError, NormalWorldError
from flexserve.units import format_size

Quant = Literal["f16", "q8_0", "q4_0", "q4_k_m"]

DEFAULT_SHAPE = "tinyllama-1.1b"
DEFAULT_QUANT: Quant = "q4_0"
_MAX_PROMPT = 1 << 20  # tokens


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command("synth", epilog="Example: flexserve synth --shape tinyllama-1.1b --quant q4_0 -o model.gguf")(
        synth
    )
    app.command("bench", epilog="Example: flexserve bench model.gguf --prompts 32,128 --runs 5")(bench)
    app.command("bench paper", epilog="Example: flexserve bench paper --quick --plot paper.png")(bench_paper)
    app.command("bench application", epilog="Example: flexserve bench application --rounds 9")(
        bench_application
    )


def synth(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The GGUF file to write.")],
    shape: Annotated[str, typer.Option(metavar="NAME", help="Whose shape it has.")] = DEFAULT_SHAPE,
    quant: Annotated[Quant, typer.Option(help="Of its weights.")] = DEFAULT_QUANT,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same file.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Write a model of random weights, to measure with.

    It has the shape of a real one, and so its speed and its memory.
    """
    _synthesize(output, shape, quant, seed=seed, silent=as_json)
    size = output.stat().st_size
    if as_json:
        terminal.show_json({"path": str(output), "size": size})
    else:
        terminal.say(f"wrote {output}: {format_size(size)}")


def bench(
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE.gguf", show_default=False, help="What to measure [a synthetic 1.1 B model]."
        ),
    ] = None,
    *,
    runs: Annotated[int, typer.Option(min=1, max=1000, help="Repetitions of each measurement.")] = 5,
    prompts: Annotated[str, typer.Option(metavar="N,N,…", help="Lengths of prompts, in tokens.")] = "32,128",
    memory: MemoryKind = None,
    threads: Threads = None,
    output: Annotated[Literal["md", "json", "csv"], typer.Option("--output", "-o", help="Form.")] = "md",
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the results, too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure FlexServe against plain llama.cpp on this machine."""
    from flexserve import settings

    lengths = _lengths(prompts)
    try:
        from flexserve.bench.main import BenchOptions, run
    except ModuleNotFoundError as error:
        raise NormalWorldError(
            f"This installation cannot measure: {error.name} is missing.", hint="Install flexserve again."
        ) from None
    chosen = settings.load(platform="linux", memory=memory, threads=threads)
    if chosen.memory == "plain":
        terminal.warn(terminal.UNPROTECTED)
    options = BenchOptions(
        model=model or _default_model(silent=as_json),
        runs=runs,
        prompts=lengths,
        threads=chosen.threads,
        memory=chosen.memory,
        output="json" if as_json else output,
        plot=plot,
    )
    raise typer.Exit(run(options))


def bench_paper(
    *,
    platform: Annotated[
        Literal["linux", "sim", "trustzone"],
        typer.Option(
            help="linux: measured here. sim: the paper's board, modelled. trustzone: an emulated machine."
        ),
    ] = "linux",
    secure_world: Annotated[
        Literal["inside", "host"],
        typer.Option(
            help="On trustzone. inside: four systems compute on the machine's CPUs. host: one process of the "
            "host computes; memory, calls and the NPU are measured, too."
        ),
    ] = "inside",
    quick: Annotated[
        bool, typer.Option("--quick", help="Some minutes instead of half an hour; two models, one round.")
    ] = False,
    memory: MemoryKind = None,
    threads: Threads = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the results, as PNG and as SVG.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after the last whole round, if a run was stopped.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure FlexServe against the paper's three baselines, beside the paper's numbers.

    The models are synthetic and kept in the cache folder from run to run: 6 GB (quick: 2 GB; on the
    emulated machine: 0.3 GB).
    """
    from flexserve import settings
    from flexserve.bench.paper.main import PaperOptions, run
    from flexserve.folders import cache_folder

    machine = {"platform": "trustzone", "secure_world": secure_world}
    chosen = settings.load(
        **(machine if platform == "trustzone" else {"platform": "linux"}), memory=memory, threads=threads
    )
    if chosen.memory == "plain" and platform == "linux":
        terminal.warn(terminal.UNPROTECTED)
    options = PaperOptions(
        folder=cache_folder() / "paper",
        platform=platform,
        secure_world=secure_world,
        quick=quick,
        threads=chosen.threads,
        memory=chosen.memory,
        as_json=as_json,
        plot=plot,
        resume=resume,
    )
    raise typer.Exit(run(options))


def bench_application(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="One short round.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, max=100, metavar="N", help="Repetitions [7].")] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="FILE.gguf", help="The model beside it [a synthetic 1.1 B model].")
    ] = None,
    access: Annotated[
        Literal["zipf", "uniform"], typer.Option(help="Which rows it uses: some often, or all alike.")
    ] = "zipf",
    as_json: AsJson = False,
) -> None:
    """Measure what SQLite keeps of its speed beside FlexServe, under memory pressure.

    Both share one memory cgroup, so this needs root. It takes a quarter of an hour and 8 GB of disk.
    """
    from flexserve.bench import application, application_report

    report = application.measure(terminal.note, quick=quick, rounds=rounds, model=model, access=access)
    if as_json:
        terminal.show_json(report)
    else:
        terminal.say(application_report.as_text(report))


def _lengths(text: str) -> tuple[int, ...]:
    try:
        lengths = tuple(int(length) for length in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of lengths, as in 32,128.") from None
    if not all(0 < length <= _MAX_PROMPT for length in lengths):
        raise typer.BadParameter(f"A prompt has 1 to {_MAX_PROMPT} tokens.")
    return lengths


def _default_model(*, silent: bool) -> Path:
    """Return the synthetic model of the cache folder, which is written when it is not there."""
    from flexserve.folders import cache_folder

    path = cache_folder() / "models" / f"{DEFAULT_SHAPE}-{DEFAULT_QUANT}.synth.gguf"
    if not path.exists():
        _synthesize(path, DEFAULT_SHAPE, DEFAULT_QUANT, seed=0, silent=silent)
    return path


def _synthesize(path: Path, shape: str, quant: Quant, *, seed: int, silent: bool) -> None:
    from flexserve.harness.shapes import SHAPES
    from flexserve.harness.synth import write_synthetic

    if shape not in SHAPES:
        raise CallerError(f"There is no shape {shape!r}.", hint=f"Choose one of: {', '.join(SHAPES)}.")
    try:
        with terminal.progress(f"writing {path.name}", silent=silent) as show_progress:
            write_synthetic(path, SHAPES[shape], quant, seed=seed, progress=show_progress)
    except OSError as error:
        raise NormalWorldError(
            f"{path} cannot be written: {error.strerror or 'the disk is full'}.", hint="Choose another place."
        ) from None
