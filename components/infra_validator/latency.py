"""Latency of sequential requests of one client."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import numpy as np

# Properties of the blessing, in milliseconds; missing if no latency was measured.
P50_PROPERTY = "latency_p50_ms"
P99_PROPERTY = "latency_p99_ms"

REQUESTS = 400
ROUNDS = 3
# A slow model gets fewer requests, so that no validation takes minutes.
LONGEST_ROUND_S = 20.0
FEWEST = 100


@dataclasses.dataclass(frozen=True)
class Latency:
    """Latency percentiles of one round of requests."""

    p50_ms: float
    p99_ms: float
    requests: int


def measure(call: Callable[[int], object], limit_ms: float | None) -> Latency:
    """Measure the latency of sequential requests, after warm-up requests that are not counted.

    A round over the threshold is repeated up to twice, and the best round counts: other load on the machine can only
    increase the latency.

    Args:
        call: Sends request number i and returns after its response.
        limit_ms: Threshold of the p99; None without a threshold.
    """
    for number in range(REQUESTS // 10):
        call(number)
    best: Latency | None = None
    for _ in range(ROUNDS):
        found = _round(call)
        if best is None or found.p99_ms < best.p99_ms:
            best = found
        if limit_ms is None or best.p99_ms <= limit_ms:
            break
    assert best is not None
    return best


def _round(call: Callable[[int], object]) -> Latency:
    seconds: list[float] = []
    end = time.monotonic() + LONGEST_ROUND_S
    while len(seconds) < REQUESTS and (len(seconds) < FEWEST or time.monotonic() < end):
        start = time.perf_counter()
        call(len(seconds))
        seconds.append(time.perf_counter() - start)
    p50, p99 = np.percentile(seconds, [50, 99]) * 1000
    return Latency(p50_ms=float(p50), p99_ms=float(p99), requests=len(seconds))
