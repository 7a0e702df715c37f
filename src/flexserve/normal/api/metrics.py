"""GET /metrics: what monitoring reads. It wakes no model and resets no idle timer."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import time
from collections.abc import Iterator

from fastapi import APIRouter, Request
from prometheus_client import ProcessCollector
from prometheus_client.metrics_core import GaugeMetricFamily, Metric, SummaryMetricFamily
from starlette.responses import Response

from flexserve import __version__
from flexserve.errors import FlexServeError
from flexserve.normal.api.operations import world_of
from flexserve.normal.metrics import (
    CONTENT_TYPE,
    PREFIX,
    by_model,
    gauge,
    running_and_waiting,
    total,
    totals,
)
from flexserve.normal.world import World, WorldReport
from flexserve.protocol.statuses import ComputeStatus, NpuStatus

_STARTED = str(int(time.time()))  # which process counts: its numbers begin at 0
_KV_OUTCOMES = ("sealed", "resumed", "damaged", "dropped")

router = APIRouter(tags=["operations"])


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Show numbers for Prometheus. While the secure world is down, only those that do not come from it."""
    world = world_of(request)
    figures = world.metrics
    state = [*_lasting(world)]
    computed = ComputeStatus()
    with contextlib.suppress(FlexServeError):
        report = await world.report()
        names = [model.name for model in report.status.models]
        world.metrics.forget(names)
        state += [*running_and_waiting(world.metrics, names), *_present(report)]
        computed = report.status.computed
    in_flight = {"running": figures.running.total(), "waiting": figures.waiting.total()}
    text = figures.text(state) + figures.llama.text(**in_flight, computed=computed)
    return Response(text, headers={"Process-Start-Time-Unix": _STARTED}, media_type=CONTENT_TYPE)


def _lasting(world: World) -> Iterator[Metric]:
    counters = world.counters
    yield _build(world)
    yield gauge("secure_world_up", "1 while requests can be served.", world.ready)
    yield total("secure_restarts", "Times that a dead secure world was replaced.", world.restarts)
    yield gauge("granted_bytes", "Memory granted to the secure world and not returned.", world.granted)
    yield total("recalled_bytes", "Memory that came back on demand.", counters.recalled)
    yield total("returned_bytes", "Memory that came back unasked.", counters.returned)
    yield SummaryMetricFamily(
        f"{PREFIX}_recall_seconds",
        "From a recall's demand to its answer.",
        count_value=counters.recalls,
        sum_value=counters.recall_seconds,
    )
    yield totals("grant_refusals", "Demands for memory refused, by why.", "reason", counters.refusals)
    with contextlib.suppress(FlexServeError):
        budget = world.budget()
        family = GaugeMetricFamily(
            f"{PREFIX}_budget_bytes", "What may be granted in all, by what bounds it.", labels=["bound"]
        )
        family.add_metric([budget.bound.value], budget.size)
        yield family


def _build(world: World) -> Metric:
    said = {
        "version": __version__,
        "engine": importlib.metadata.version("llama-cpp-python"),
        "python": platform.python_version(),
        "protection": world.protection.name,
    }
    family = GaugeMetricFamily(
        f"{PREFIX}_build_info", "1: what serves, as its labels say.", labels=list(said)
    )
    family.add_metric(list(said.values()), 1)
    return family


def _present(report: WorldReport) -> Iterator[Metric]:
    status = report.status
    yield gauge("secure_bytes", "Secure memory in use, by the secure world's account.", status.memory.secure)
    # Of the secure process, what the server's own process_… tell of it.
    yield from ProcessCollector(f"{PREFIX}_secure", lambda: report.pid, registry=None).collect()
    yield gauge("secure_resident_bytes", "Memory of the secure process, by the OS's count.", report.os.rss)
    kv = {outcome: getattr(status.kv, outcome) for outcome in _KV_OUTCOMES}
    yield totals("kv_sequences", "KV of ended requests, by what became of it.", "outcome", kv)
    if status.npu is not None:
        yield from _npu(status.npu)
    models = status.models
    yield by_model("weights_bytes", "Size of a model's weights.", [(m.name, m.weights) for m in models])
    yield by_model(
        "weights_resident_bytes", "Weights that are in memory.", [(m.name, m.resident) for m in models]
    )
    yield by_model("kv_bytes", "Memory of KV caches.", [(m.name, m.kv) for m in models])
    yield by_model("scratch_bytes", "Memory of compute scratch.", [(m.name, m.scratch) for m in models])


def _npu(npu: NpuStatus) -> Iterator[Metric]:
    yield gauge("npu_held", "1 while the secure world has the NPU.", npu.state == "held")
    yield total("npu_switches", "Times that the secure world got the NPU.", npu.switches)
    yield total("npu_held_seconds", "Time that it had it.", npu.held / 1000)
    yield total("npu_jobs", "Jobs that the NPU did for it.", npu.jobs)
    products = {"npu": npu.products, "cpu": npu.fallbacks}
    yield totals("npu_products", "Matrix products that the NPU began, by what finished them.", "by", products)
    yield total("npu_jobs_lost", "Jobs of the NPU that did not end well.", npu.lost)
