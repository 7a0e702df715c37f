"""What models of the trusted application are opened and used with."""

from __future__ import annotations

import dataclasses

from flexserve.protocol.statuses import KvStatus
from flexserve.tee_client.application import Application
from flexserve.tee_client.files import SealedFiles
from flexserve.tee_client.images import Images
from flexserve.tee_client.kept_kv import KeptKv
from flexserve.tee_client.memory import Memory
from flexserve.tee_client.sealed import SealedRequests
from flexserve.tee_client.streaming import Streaming
from flexserve.trusted.limits import ModelLimits
from flexserve.trusted.text.rendering.renderer import Renderer


@dataclasses.dataclass(frozen=True, slots=True)
class Services:
    """One application and its memory, the store, who renders templates, models' limits.

    `images`, `kept_kv`: where images of weights and sealed conversations are.
    `sealed`: what passes requests to it that it alone reads. `counters`: of KV. `overlaps`: a graph begins
    before all of its weights are there.
    """

    app: Application
    memory: Memory
    sealed: SealedRequests
    files: SealedFiles
    images: Images
    kept_kv: KeptKv
    renderer: Renderer
    limits: ModelLimits
    counters: KvStatus
    streaming: Streaming
    overlaps: bool = True
