"""Seconds, and ratios of seconds that were measured side by side."""

import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Seconds:
    """Time on the clock, and time that this process was computing: the steadier of the two on a busy machine."""

    wall: float
    cpu: float

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.wall - other.wall, self.cpu - other.cpu)


def now() -> Seconds:
    """Since some fixed moment."""
    return Seconds(time.perf_counter(), time.process_time())


def timed(call: Callable[[], object]) -> Seconds:
    """How long a call takes."""
    start = now()
    call()
    return now() - start


@dataclass(frozen=True)
class Spread:
    """The median of some measurements and their quartiles."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """From the measurements."""
        low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
        return cls(float(median), float(low), float(high), len(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g}-{self.high:.3g})"


def ratios(pairs: Sequence[tuple[Seconds, Seconds]]) -> dict[str, Spread]:
    """First over second, pair by pair, on both clocks."""
    return {clock: Spread.of([getattr(a, clock) / getattr(b, clock) for a, b in pairs]) for clock in ("wall", "cpu")}


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), model)
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("ich-federation", "flwr", "torch", "numpy", "ray")},
    }
