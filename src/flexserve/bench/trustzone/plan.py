"""What is measured on the emulated machine; in full, or quickly."""

from __future__ import annotations

import dataclasses
import enum

from flexserve.bench.paper import plan as paper
from flexserve.bench.paper.plan import Workflow
from flexserve.units import GIB, MIB


class Allocator(enum.Enum):
    """Where the driver has memory for the secure world from. Values are the names in the report."""

    FLEXMEM = "flexmem"  # pages of the buddy allocator, wherever they lie
    CMA = "cma"  # one run for each request, in an area from which whatever lies there is moved away


@dataclasses.dataclass(frozen=True, slots=True)
class Kernel:
    """How the guest's kernel is configured where memory is measured; and of which sizes, in bytes."""

    name: str
    bootargs: str
    sizes: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """A program of the normal world (driver/guest), and its words but for the seconds that it takes."""

    name: str
    before: tuple[str, ...] = ()  # the seconds
    after: tuple[str, ...] = ()

    def words(self, seconds: int) -> tuple[str, ...]:
        """Return the command that runs it for `seconds`."""
        return (self.name, *self.before, str(seconds), *self.after)


@dataclasses.dataclass(frozen=True, slots=True)
class NpuPart:
    """What is measured of the NPU in a round."""

    shape: str  # of a model in q8_0
    prompts: tuple[int, ...]  # tokens, with and without it
    handovers: int
    launches: int  # of jobs, in each handover
    turns: int  # that programs of both worlds use it in
    tokens: int = 8  # of the answers that are compared


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """All that is measured in each of `rounds`."""

    ram_bytes: int
    background: int  # percent of RAM in anonymous memory while memory and requests are measured
    kernels: tuple[Kernel, ...]
    repeats: int  # of each call's measurement
    seconds: int  # that a program runs
    rounds: int
    requests: paper.Plan  # models and prompts
    npu: NpuPart
    cpus: int = 2
    programs: tuple[Program, ...] = (
        Program("memory", before=("64",)),
        Program("syscalls"),
        Program("btree", after=("65536",)),
    )

    @property
    def area(self) -> int:
        """Bytes of the CMA area: half of RAM, so that half of what the background takes lies in it."""
        return self.ram_bytes // 2


# Debian's kernel clears pages in both allocators, which hides what they cost themselves. The settings of
# the paper's board are not known; its 271 ns a page leave no time for clearing. Without huge pages nobody
# needs the compaction ahead that goes with them: kcompactd would work for them whenever free memory is in
# pieces, on the guest's other core, for which this host has none to spare.
NO_CLEARING = "init_on_alloc=0 transparent_hugepage=never sysctl.vm.compaction_proactiveness=0"


def full(threads: int) -> Plan:
    """Return the plan whose figures are worth quoting: a quarter of an hour and more."""
    return Plan(
        ram_bytes=3 * GIB,
        background=50,
        kernels=(
            Kernel(
                "no clearing, 4 KiB", NO_CLEARING, tuple(size * MIB for size in (64, 128, 256, 512, 1024))
            ),
            Kernel("Debian's defaults", "", (256 * MIB,)),
        ),
        repeats=9,
        seconds=3,
        rounds=3,
        requests=_requests(threads, rounds=3, prompts=(32, 128)),
        npu=NpuPart("medium-llama", prompts=(128, 448), handovers=20, launches=10, turns=2),
    )


def quick(threads: int) -> Plan:
    """Return a plan of some minutes that touches everything once."""
    return Plan(
        ram_bytes=2 * GIB,
        background=50,
        kernels=(Kernel("no clearing, 4 KiB", NO_CLEARING, (128 * MIB, 512 * MIB)),),
        repeats=3,
        seconds=1,
        rounds=1,
        requests=_requests(threads, rounds=1, prompts=(32,)),
        npu=NpuPart("medium-llama", prompts=(128,), handovers=5, launches=5, turns=1),
    )


def _requests(threads: int, *, rounds: int, prompts: tuple[int, ...]) -> paper.Plan:
    return paper.Plan(
        shapes=("medium-llama", "medium-qwen2"),
        prompts=prompts,
        kept=(1.0, 0.0),
        workflows=(Workflow("two-model loop", (0, 1) * 2, hints=True),),
        rounds=rounds,
        threads=threads,
        memory="trustzone",
        call_prompt=32,
        call_tokens=4,
        context=512,
    )
