"""Figures from pairs of times: percentiles, throughput, and the spread over several rounds. No I/O."""

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

QUANTILES: Final = (*(n / 100 for n in range(100)), 0.995, 0.998, 0.999, 0.9995, 0.9998, 0.9999)
"""The quantiles that are kept of each distribution, for the charts."""
SKIPPED: Final = 0.1
"""The first part of a backlog, which is not counted in the throughput because the system is still starting."""
_NS_PER_MS: Final = 1e6
_NS_PER_S: Final = 1e9


@dataclass(frozen=True, slots=True)
class Spread:
    """One figure over several rounds."""

    median: float
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Pairs:
    """When updates were due and when they arrived, in nanoseconds of the same clock, in order of arrival."""

    sent_ns: Sequence[int]
    arrived_ns: Sequence[int]

    def __len__(self) -> int:
        return len(self.sent_ns)

    @property
    def duplicates(self) -> int:
        """How many arrivals were of updates that had arrived before. No two updates are due at the same time."""
        return len(self) - len(set(self.sent_ns))

    @property
    def latencies_ms(self) -> list[float]:
        return [(arrived - sent) / _NS_PER_MS for sent, arrived in self._zipped()]

    @property
    def per_s(self) -> float:
        """Updates a second, without the first tenth; 0 if there are too few to tell."""
        first = int(len(self) * SKIPPED)
        if len(self) - first < 2:  # noqa: PLR2004 - it takes two to make an interval
            return 0.0
        # The first of these only starts the clock.
        return (len(self) - first - 1) / ((self.arrived_ns[-1] - self.arrived_ns[first]) / _NS_PER_S)

    def last_late_ns(self, tolerance_ms: float) -> int | None:
        """When the last update arrived that was more than `tolerance_ms` late; None if none was."""
        limit_ns = tolerance_ms * _NS_PER_MS
        return max((arrived for sent, arrived in self._zipped() if arrived - sent > limit_ns), default=None)

    def _zipped(self) -> Iterator[tuple[int, int]]:
        return zip(self.sent_ns, self.arrived_ns, strict=True)


def read_pairs(path: Path) -> Pairs:
    """Read the file that `Arrivals.take` wrote."""
    flat = array("q", path.read_bytes())
    return Pairs(flat[::2], flat[1::2])


def quantiles(values: Sequence[float], at: Sequence[float] = QUANTILES) -> list[float]:
    """For each `q` the smallest value that at least the part `q` of all does not exceed.

    Raises ValueError without values.
    """
    if not values:
        raise ValueError("nothing has no quantiles")
    ordered = sorted(values)
    return [ordered[max(0, math.ceil(q * len(ordered)) - 1)] for q in at]


def spread(values: Sequence[float]) -> Spread:
    """Raises ValueError without values."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no round, no figure")
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return Spread(median, ordered[0], ordered[-1])
