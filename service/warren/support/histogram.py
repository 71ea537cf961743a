"""Histograms of durations with fixed buckets. They are plain integers and cost a task about a microsecond."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

from pydantic import JsonValue

# Upper bounds in seconds, each included in its bucket; one more bucket takes the rest. From a commit to an
# agent that works for an hour.
BOUNDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
    600.0, 1800.0, 3600.0,
)  # fmt: skip
REST: Final = "+Inf"
LABELS: Final = (*(f"{bound:g}" for bound in BOUNDS), REST)


@dataclass(slots=True)
class Histogram:
    """Seconds that were observed: how many in each bucket, and their sum."""

    counts: list[int] = field(default_factory=lambda: [0] * len(LABELS))
    sum: float = 0.0

    def observe(self, seconds: float) -> None:
        """Count one observation. A negative one, caused by two clocks that differ, counts as 0."""
        if seconds < 0:
            seconds = 0.0
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds

    def as_json(self) -> dict[str, JsonValue]:
        """The buckets that hold something, by their upper bound, and the sum."""
        buckets: dict[str, JsonValue] = {
            label: count for label, count in zip(LABELS, self.counts, strict=True) if count
        }
        return {"buckets": buckets, "sum_s": round(self.sum, 6)}


@dataclass(slots=True)
class Times:
    """The times of one agent type in one worker.

    `run` is the time of one attempt, from the agent's call to its end, successful or not. `wait` is how long
    a task was ready before its first attempt; tasks without a creation time are left out.
    """

    run: Histogram = field(default_factory=Histogram)
    wait: Histogram = field(default_factory=Histogram)


def label_for(bound: str) -> str:
    """The label of our smallest bucket that contains the bucket with this upper bound.

    Another version of Warren may use other bounds. Raises ValueError if the text is no bound.
    """
    return bound if bound in LABELS else LABELS[bisect_left(BOUNDS, float(bound))]


def cumulative(buckets: Mapping[str, float]) -> list[tuple[str, float]]:
    """Each upper bound with the number of observations up to it, as Prometheus has them."""
    counts = accumulate(buckets.get(label, 0) for label in LABELS)
    return list(zip(LABELS, counts, strict=True))


def quantile(part: float, buckets: Mapping[str, float]) -> float | None:
    """Estimate the seconds below which this part (0.5: half) of the observations lies; None without any.

    It assumes an even spread within a bucket, as `histogram_quantile` of Prometheus does. A quantile above
    the last bound is returned as that bound.
    """
    counts: Sequence[float] = [count for _, count in cumulative(buckets)]
    rank = part * counts[-1]
    if not counts[-1]:
        return None
    index = bisect_left(counts, rank)
    while index < len(BOUNDS) and counts[index] == 0:  # a rank of nothing lies where the first one is
        index += 1
    if index >= len(BOUNDS):
        return BOUNDS[-1]
    below, lower = (counts[index - 1], BOUNDS[index - 1]) if index else (0.0, 0.0)
    return lower + (BOUNDS[index] - lower) * (rank - below) / (counts[index] - below)
