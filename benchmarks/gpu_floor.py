"""How fast a GPU can be at best: the larger of bytes / bandwidth and FLOPs / rate.

Bandwidth and clock are the device's own properties; operations a clock and multiprocessor are of
its architecture, dense, as NVIDIA's tuning guides and data sheets give them. Nothing reaches such a
floor: it says how much is left to gain.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}
# Operations (2 a multiply-add) a clock and multiprocessor: fp32 without tensor cores, 16 bits with
# them, 8 bits with them (0: they do not compute fp8).
OPERATIONS: dict[int, dict[str, int]] = {
    75: {"fp32": 128, "half": 1024, "int8": 2048, "fp8": 0},
    80: {"fp32": 128, "half": 2048, "int8": 4096, "fp8": 0},
    86: {"fp32": 256, "half": 1024, "int8": 2048, "fp8": 0},
    87: {"fp32": 256, "half": 2048, "int8": 4096, "fp8": 0},
    89: {"fp32": 256, "half": 1024, "int8": 2048, "fp8": 2048},
    90: {"fp32": 256, "half": 4096, "int8": 8192, "fp8": 8192},
    100: {"fp32": 256, "half": 8192, "int8": 16384, "fp8": 16384},
    120: {"fp32": 256, "half": 1024, "int8": 2048, "fp8": 2048},
}


@dataclass(frozen=True)
class Rates:
    """What a GPU does in a second at most."""

    bandwidth: float  # bytes
    operations: Mapping[str, float]  # precision -> FLOPs

    @classmethod
    def of(cls, gpu: Mapping[str, Any]) -> "Rates | None":
        """From a GPU's properties; None for an architecture that is not in the table."""
        known = OPERATIONS.get(gpu["sm"])
        if known is None or not gpu["memory_clock_khz"]:
            return None
        clocks = gpu["multiprocessors"] * gpu["clock_khz"] * 1e3
        a_clock = {"fp32": known["fp32"], "fp16": known["half"], "bf16": known["half"]}
        a_clock |= {kind: known[kind] or known["half"] for kind in ("int8", "fp8")}
        bandwidth = 2 * gpu["memory_clock_khz"] * 1e3 * gpu["bus_bits"] / 8  # twice a clock
        return cls(bandwidth, {kind: n * clocks for kind, n in a_clock.items()})

    def floor_ms(self, cost: "Cost", precision: str) -> float:
        """The least time of one part."""
        kind = arithmetic(precision)
        return 1e3 * max(cost.bytes(kind) / self.bandwidth, cost.flops / self.operations[kind])


def arithmetic(precision: str) -> str:
    """What a precision, or another form of one ("fp32-dispatch"), computes in."""
    return precision.partition("-")[0]


@dataclass(frozen=True)
class Cost:
    """What must be computed and moved: weights, inputs and outputs once each."""

    flops: float
    weights: float  # bytes in fp32
    activations: float  # bytes of inputs and outputs, which stay fp32 at every precision

    def bytes(self, precision: str) -> float:
        """Bytes that must cross the memory's bus."""
        return self.weights * BYTES[precision] / BYTES["fp32"] + self.activations


def part_cost(counted: Mapping[str, Any], batch: int) -> Cost:
    """Of one part (gpu_costs.py counted it) at a batch."""
    moved = counted["inputs"] + counted["outputs"]
    return Cost(batch * counted["flops"], counted["weights"], batch * moved)


def sffm_cost(size: Mapping[str, int], batch: int) -> Cost:
    """Of one SFFM, whatever its form: the filters that were chosen, the shared one, the router."""
    tokens, dim, rank = batch * size["tokens"], size["dim"], size["rank"]
    filters = size["active"] + size["shared"]
    flops = 2 * tokens * (filters * 2 * dim * rank + dim * size["filters"])
    held = (size["filters"] + size["shared"]) * (2 * dim * rank + rank + dim)
    return Cost(flops, 4 * (held + dim * size["filters"]), 2 * 4 * tokens * dim)


def stream_floor_ms(
    rates: Rates, costs: Mapping[str, Mapping[str, Any]], frames: int, precision: str
) -> float:
    """Of one step of a stream's networks: its parts one after another, uploads not counted."""
    low = ("vision", "appearance", "motion", "decoder")
    there = [part for part in costs if part != "text"]
    return sum(
        rates.floor_ms(part_cost(costs[part], frames), precision if part in low else "fp32")
        for part in there
    )
