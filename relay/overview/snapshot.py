"""The relay as it shows over NATS at one moment, and what passed between two such moments.

Ages and durations are in seconds; ages are measured on the clock of NATS, which stored the updates.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from relay.contract.report import Report, Timing
from relay.dead_letters.reasons import ReasonCounts

OUTCOMES: Final = ("acknowledged", "duplicate", "dead_lettered")
TIMINGS: Final = ("hot_path", "end_to_end", "round_trip")


@dataclass(frozen=True, slots=True)
class LaneState:
    """One lane, as its consumer and its lease tell."""

    lane: int
    owner: str | None
    """The worker that holds the lease; None if nobody drives the lane."""
    waiting: int = 0
    """Updates that are stored and not delivered yet."""
    delivered: int = 0
    """Updates that are delivered and not settled."""
    deliveries: int = 0
    """All there have been, redeliveries included."""
    oldest_s: float | None = None
    """Age of the oldest update that is not settled; None if all are."""
    trouble: str | None = None
    """Why nothing is known of it but its owner."""

    @property
    def unsettled(self) -> int:
        return self.waiting + self.delivered


@dataclass(frozen=True, slots=True)
class StreamState:
    """What a stream holds, and what it may hold; a limit of 0 or less is none."""

    name: str
    messages: int
    bytes: int
    last_sequence: int
    max_messages: int
    max_bytes: int
    max_age_s: float
    copies: int
    """How many servers are to keep it."""
    behind: tuple[str, ...] = ()
    """Servers that keep it and are away or not up to date."""


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything at one moment."""

    taken_s: float
    """On the monotonic clock of whoever looked."""
    server_ahead_s: float
    """How far the clock of NATS is ahead of ours."""
    clock_error_s: float
    """How wrong `server_ahead_s` may be: half of the time that the answer took."""
    lanes: tuple[LaneState, ...]
    streams: Mapping[str, StreamState]
    workers: frozenset[str]
    """Workers that say in the lease bucket that they are alive."""
    reports: Mapping[str, Report]
    """By worker; who did not answer is missing."""
    asked: bool
    """Whether the workers could be asked at all."""
    letters: ReasonCounts
    advisories: int
    """Updates that reached `max_deliver` and are not dead-lettered yet."""
    published: int
    """The last sequence of the status stream."""


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Of the durations in an interval; infinite above the histogram's last bound."""

    count: int
    p50_s: float
    p99_s: float


@dataclass(frozen=True, slots=True)
class Interval:
    """What passed between two looks, per second. Who was not seen at both has no part in it."""

    seconds: float
    published: float
    settled: Mapping[str, float]
    """By outcome."""
    retries: float
    deliveries: Mapping[int, float]
    """By lane."""
    settled_by: Mapping[str, float]
    """By worker."""
    latencies: Mapping[str, Quantiles]
    """By kind of timing; a kind without any durations is missing."""


def between(before: Overview, after: Overview) -> Interval:
    """What passed from `before` to `after`."""
    seconds = max(after.taken_s - before.taken_s, 1e-3)
    pairs = [(before.reports[name], report) for name, report in after.reports.items() if name in before.reports]
    settled = {name: sum(_grown(old.updates, new.updates, name) for old, new in pairs) for name in OUTCOMES}
    earlier = {lane.lane: lane.deliveries for lane in before.lanes}
    deliveries = {
        lane.lane: max(0, lane.deliveries - earlier[lane.lane]) for lane in after.lanes if lane.lane in earlier
    }
    settled_by = {new.worker: sum(new.updates.values()) - sum(old.updates.values()) for old, new in pairs}
    return Interval(
        seconds=seconds,
        published=max(0, after.published - before.published) / seconds,
        settled={name: count / seconds for name, count in settled.items()},
        retries=sum(new.retries - old.retries for old, new in pairs) / seconds,
        deliveries={lane: count / seconds for lane, count in deliveries.items()},
        settled_by={name: count / seconds for name, count in settled_by.items()},
        latencies={name: found for name in TIMINGS if (found := _latency(name, pairs)) is not None},
    )


def quantile(bounds_s: list[float], counts: list[int], share: float) -> float:
    """The duration that `share` of those counted do not exceed, interpolated within its bucket.

    `counts` is as in Timing, not all zero. Infinite if it lies above the last bound.
    """
    rank, below = share * sum(counts), 0
    lower_s = 0.0
    for upper_s, count in zip(bounds_s, counts, strict=False):
        if count and below + count >= rank:
            return lower_s + (upper_s - lower_s) * (rank - below) / count
        below += count
        lower_s = upper_s
    return math.inf


def _grown(old: Mapping[str, int], new: Mapping[str, int], name: str) -> int:
    return new.get(name, 0) - old.get(name, 0)


def _latency(name: str, pairs: list[tuple[Report, Report]]) -> Quantiles | None:
    both = [(old.timings[name], new.timings[name]) for old, new in pairs if name in old.timings and name in new.timings]
    if not both:
        return None
    # Workers of another version may have other bounds; theirs cannot be added to these.
    bounds_s = both[0][1].bounds_s
    total: Counter[int] = Counter()
    for old, new in both:
        if new.bounds_s == bounds_s == old.bounds_s:
            total.update(_counted(old, new))
    counts = [total[bucket] for bucket in range(len(bounds_s) + 1)]
    if not any(counts):
        return None
    return Quantiles(sum(counts), quantile(bounds_s, counts, 0.5), quantile(bounds_s, counts, 0.99))


def _counted(old: Timing, new: Timing) -> dict[int, int]:
    return {bucket: new.counts[bucket] - old.counts[bucket] for bucket in range(len(new.counts))}
