"""The state of the relay at one moment, as it can be read over NATS, and what happened between two moments.

Ages and durations are in seconds. Ages are measured on the clock of NATS, which stored the updates.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from relay.contract.report import Report, Timing
from relay.contract.subjects import ADVISORY_STREAM, STATUS_STREAM
from relay.dead_letters.reasons import ReasonCounts

OUTCOMES: Final = ("acknowledged", "duplicate", "dead_lettered")
TIMINGS: Final = ("hot_path", "end_to_end", "round_trip")


@dataclass(frozen=True, slots=True)
class LaneSnapshot:
    """One lane, from its consumer and its lease. `LaneReport` is what its owner reports."""

    lane: int
    owner: str | None
    """The worker that holds the lease; None if no worker drives the lane."""
    waiting: int = 0
    """Updates that are stored and not delivered yet."""
    delivered: int = 0
    """Updates that are delivered and not settled."""
    deliveries: int = 0
    """All deliveries since the consumer was made, redeliveries included."""
    oldest_s: float | None = None
    """Age of the oldest update that is not settled; None if all are."""
    trouble: str | None = None
    """Why only the owner is known, in words; None if everything is known."""

    @property
    def unsettled(self) -> int:
        return self.waiting + self.delivered


@dataclass(frozen=True, slots=True)
class StreamSnapshot:
    """What a stream holds, and its limits; a limit of 0 or less means no limit."""

    name: str
    messages: int
    bytes: int
    last_sequence: int
    max_messages: int
    max_bytes: int
    max_age_s: float
    replicas: int
    """How many servers are configured to keep it."""
    behind: tuple[str, ...] = ()
    """Servers that keep it and are offline or not up to date."""
    canaries: int = 0
    """How many of its messages are no updates, but were published to see whether it stores: see topology/intake.py."""
    idle_s: float | None = 0.0
    """How long it has stored nothing; None if nobody knows, because the server's clock was set back."""
    copies: int | None = None
    """How many servers keep it, those that are behind included; None if the server is in no cluster."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole relay at one moment."""

    taken_s: float
    """On the reader's monotonic clock."""
    server_ahead_s: float
    """How far the clock of NATS is ahead of the reader's clock; negative if it is behind."""
    clock_error_s: float
    """The largest possible error of `server_ahead_s`: half of the round trip."""
    lanes: tuple[LaneSnapshot, ...]
    streams: Mapping[str, StreamSnapshot]
    """By name: every stream of the relay."""
    workers: frozenset[str]
    """Workers that are alive, according to the lease bucket."""
    reports: Mapping[str, Report]
    """By worker; a worker that did not answer is missing."""
    silent_s: Mapping[str, float]
    """How long ago each worker that is alive last announced itself."""
    may_ask_workers: bool
    """Whether the NATS user may ask for reports; if not, `reports` is empty."""
    dead_letters: ReasonCounts

    @property
    def advisories(self) -> int:
        """Updates that reached `max_deliver` and are not dead-lettered yet."""
        return self.streams[ADVISORY_STREAM].messages


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Quantiles of the durations in an interval, in seconds; infinite above the histogram's last bound."""

    count: int
    p50_s: float
    p99_s: float


@dataclass(frozen=True, slots=True)
class Interval:
    """What happened between two snapshots, per second. Lanes and workers that are not in both are left out."""

    seconds: float
    published: float
    settled: Mapping[str, float]
    """By outcome; empty if no worker has given a report at both moments."""
    retries: float | None
    """Likewise, then None."""
    deliveries: Mapping[int, float]
    """By lane."""
    settled_by: Mapping[str, float]
    """By worker."""
    latencies: Mapping[str, Quantiles]
    """By kind of timing; a kind without durations is left out."""


def between(before: Snapshot, after: Snapshot) -> Interval:
    """What happened from `before` to `after`."""
    seconds = max(after.taken_s - before.taken_s, 1e-3)
    pairs = [(before.reports[name], report) for name, report in after.reports.items() if name in before.reports]
    settled = {
        name: sum(new.updates.get(name, 0) - old.updates.get(name, 0) for old, new in pairs)
        for name in (OUTCOMES if pairs else ())
    }
    earlier = {lane.lane: lane.deliveries for lane in before.lanes if lane.trouble is None}
    # A consumer or a stream that was deleted and made again counts from 0.
    deliveries = {
        lane.lane: max(0, lane.deliveries - earlier[lane.lane])
        for lane in after.lanes
        if lane.lane in earlier and lane.trouble is None
    }
    settled_by = {new.worker: sum(new.updates.values()) - sum(old.updates.values()) for old, new in pairs}
    return Interval(
        seconds=seconds,
        published=_published(before.streams[STATUS_STREAM], after.streams[STATUS_STREAM]) / seconds,
        settled={name: count / seconds for name, count in settled.items()},
        retries=sum(new.retries - old.retries for old, new in pairs) / seconds if pairs else None,
        deliveries={lane: count / seconds for lane, count in deliveries.items()},
        settled_by={name: count / seconds for name, count in settled_by.items()},
        latencies={name: found for name in TIMINGS if (found := _latency(name, pairs)) is not None},
    )


def _published(before: StreamSnapshot, after: StreamSnapshot) -> int:
    stored = after.last_sequence - before.last_sequence
    return max(0, stored - max(0, after.canaries - before.canaries))


def quantile(bounds_s: list[float], counts: list[int], share: float) -> float:
    """The duration that the fraction `share` of the counted durations does not exceed.

    It is interpolated linearly within its bucket, and infinite above the last bound. `counts` is as in Timing, not all
    zero.
    """
    rank, below = share * sum(counts), 0
    lower_s = 0.0
    for upper_s, count in zip(bounds_s, counts, strict=False):
        if count and below + count >= rank:
            return lower_s + (upper_s - lower_s) * (rank - below) / count
        below += count
        lower_s = upper_s
    return math.inf


def _latency(name: str, pairs: list[tuple[Report, Report]]) -> Quantiles | None:
    both = [(old.timings[name], new.timings[name]) for old, new in pairs if name in old.timings and name in new.timings]
    if not both:
        return None
    # Workers of another version may have other bounds. Their counts cannot be added to these.
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
