"""The machine that the paper measures on, as numbers: a NanoPC-T6 (RK3588, 16 GB).

Sources. [F] is FlexServe's own evaluation (arXiv 2603.09046), [T] is TZ-LLM (EuroSys '26) on the
same family of boards. Every constant is one that they publish, or is computed from one in the
place where it stands; the few that neither publishes say so. In their tables 8 GB are 2^33 bytes:
271 ns for each of 2^21 pages of 4 KiB are the published 568.58 ms.
"""

from __future__ import annotations

import dataclasses

from flexserve.units import GIB, KIB

_TABLE = 8 * GIB  # bytes that the published tables are for
_CALIBRATION = 8.03e9  # parameters of Llama-3-8B, for which compute speeds are published


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """Speeds and costs. Bytes, seconds, tokens per second."""

    memory: int = 16 * GIB  # [F]
    page: int = 4 * KIB

    # Memory. [F], 8 GB with 8 GB of background load.
    allocate: float = 0.56858 / _TABLE  # seconds per byte: ordinary pages, one by one
    reclaim: float = 0.08050 / _TABLE
    contiguous_allocate: float = 6.44067 / _TABLE  # CMA: with migration of what lives there
    contiguous_reclaim: float = 0.73285 / _TABLE
    contiguous_load: int = 8 * GIB  # background load that the CMA figures hold for
    protect: float = 0.43548 / _TABLE  # taking pages out of the SMMU tables

    # Restore. [F]; [T] has 2 GB/s and 9.0 GB/s for the same steps on its board.
    load: float = 3.265 / _TABLE  # seconds per byte from flash
    decrypt: float = 1.319 / _TABLE  # on the CPU

    # Compute. [T], Llama-3-8B INT8: 512 tokens take the CPU 164.6 s, which is 3.1 tokens/s, and the
    # NPU is 12.5 times as fast (39 tokens/s); decode on the NPU is 1.3 times as fast.
    cpu_prefill: float = 512 / 164.6  # tokens per second, for a model of _CALIBRATION parameters
    npu_prefill_gain: float = 12.5
    npu_decode_gain: float = 1.3
    # Neither paper's public pages give an absolute decode speed. Decode reads all weights for each
    # token; public RKLLM runs of INT8 models on RK3588 (a 4.5 GB Qwen3-4B at 4.75 tokens/s) come to
    # some 20 GB/s. Only end-to-end times depend on it, never a TTFT.
    decode_bandwidth: float = 20e9  # bytes per second, NPU
    working_memory: float = 0.17 * 1.9e9 / _CALIBRATION
    """Bytes per parameter for KV cache and activations: [T] allocates them in 0.17 s at 1.9 GB/s."""

    # Protection. [F]
    mode_switch: float = 0.21e-3  # the NPU into secure mode, or out of it
    task_launch: float = 1.28e-3  # one NPU task; taken as one forward pass
    driver_handover: float = 32e-3  # [T]: detach and attach the whole driver
    stage2_slowdown: float = 0.02  # [T]: of everything that runs while Stage-2 is on, at 4 KiB
    stage2_wake: float = 0.13e-3 + 2.83e-3  # on-demand protection: re-enable, check the hash
    stage2_window: float = 10.0  # seconds without secure work before it sleeps; not published

    framework_start: float = 2.3  # [T]: only in the variant that restarts the framework

    def contiguous_seconds(self, size: int, background: int) -> float:
        """Return how long CMA takes for `size` bytes beside `background` bytes of other load.

        Published for one load only. What CMA costs beyond ordinary allocation is the migration of
        pages that live in its region; it is taken as proportional to how many live in memory.
        """
        migration = (self.contiguous_allocate - self.allocate) * background / self.contiguous_load
        return size * (self.allocate + migration)

    def prefill_speed(self, parameters: float, *, npu: bool) -> float:
        """Return prompt tokens per second: inversely proportional to the parameters."""
        gain = self.npu_prefill_gain if npu else 1.0
        return self.cpu_prefill * gain * _CALIBRATION / parameters

    def decode_seconds(self, weights: int, *, npu: bool) -> float:
        """Return the seconds of one token, of one or several sequences: all weights are read once."""
        return weights / self.decode_bandwidth * (1.0 if npu else self.npu_decode_gain)


RK3588 = Machine()


@dataclasses.dataclass(frozen=True, slots=True)
class SimModel:
    """A model as the machine sees it. INT8: a byte for each parameter; layers are equally large."""

    name: str
    parameters: float
    layers: int

    @property
    def weights(self) -> int:
        """Bytes of weights."""
        return int(self.parameters)


# Parameters and layers are those of the published configurations.
QWEN3_1_7B = SimModel("Qwen3-1.7B", 1.72e9, 28)
LLAMA_3_2_3B = SimModel("Llama-3.2-3B", 3.21e9, 28)
LLAMA_3_1_8B = SimModel("Llama-3.1-8B", 8.03e9, 32)
QWEN3_8B = SimModel("Qwen3-8B", 8.19e9, 36)
PAPER_MODELS = (QWEN3_1_7B, LLAMA_3_2_3B, LLAMA_3_1_8B, QWEN3_8B)
