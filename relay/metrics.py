"""What the relay counts and times, for Prometheus. No label ever carries a job's UUID."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, disable_created_metrics
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from relay.subjects import Reason
from relay.wire import Repair

PushKind = Literal["request", "cheated", "other"]

_BUCKETS_S: Final = (
    *(0.000_05, 0.000_1, 0.000_2, 0.000_35, 0.000_5, 0.000_75),
    *(0.001, 0.002, 0.003_5, 0.005, 0.007_5, 0.01, 0.02, 0.035, 0.05, 0.075),
    *(0.1, 0.2, 0.35, 0.5, 0.75, 1, 2, 5, 10, 20, 30, 60),
)
"""50 microseconds to 60 seconds; narrow below 100 milliseconds, where the relay's own share of a latency lies."""


class Metrics:
    """The metrics of one worker, in a registry of their own.

    Methods are named after what happened. Durations are in seconds; lanes count from 0 to `lanes` - 1.
    Every series exists from the start, with value 0, and is looked up once, here: the hot path calls no `labels()`.
    """

    def __init__(self, lanes: int) -> None:
        disable_created_metrics()  # a `_created` series beside every counter and histogram tells nobody anything
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._count()
        self._gauge(lanes)
        self._time()

    def _count(self) -> None:
        updates = self._counters(
            "relay_updates",
            "Updates settled, by how they ended.",
            "outcome",
            ("acknowledged", "duplicate", "dead_lettered"),
        )
        self._acknowledged = updates["acknowledged"]
        self._duplicates = updates["duplicate"]
        self._dead_lettered = updates["dead_lettered"]
        self._replayed = self._counters(
            "relay_replayed_updates",
            "Those of the updates settled that were dead letters before and were replayed, by how they ended.",
            "outcome",
            ("acknowledged", "duplicate", "dead_lettered"),
        )
        self._retries = Counter(
            "relay_retries", "Attempts that failed and will be made again.", registry=self._registry
        )
        self._dead_letters = self._counters("relay_dead_letters", "Updates dead-lettered, by reason.", "reason", Reason)
        self._repairs = self._counters("relay_repairs", "Repairs made to updates, by rule.", "rule", Repair)
        self._pushes = self._counters(
            "relay_pushes", "Messages pushed by the Facilitator.", "kind", ("request", "cheated", "other")
        )
        connections = self._counters(
            "relay_facilitator_connections",
            "Connections to the Facilitator: opened (signed in), lost after that, or refused before it.",
            "outcome",
            ("opened", "lost", "refused"),
        )
        self._opened = connections["opened"]
        self._lost = connections["lost"]
        self._refused = connections["refused"]

    def _gauge(self, lanes: int) -> None:
        self._in_flight = Gauge("relay_in_flight", "Updates sent and not yet answered.", registry=self._registry)
        at_hand = Gauge(
            "relay_at_hand", "Updates received from NATS and not yet settled.", ["lane"], registry=self._registry
        )
        oldest = Gauge(
            "relay_oldest_unrelayed_seconds",
            "Age of the oldest update at hand, 0 without one; what was not pulled yet is not in it.",
            ["lane"],
            registry=self._registry,
        )
        self._at_hand = [at_hand.labels(str(lane)) for lane in range(lanes)]
        self._oldest = [oldest.labels(str(lane)) for lane in range(lanes)]

    def _time(self) -> None:
        self._hot_path = self._timing("relay_hot_path_seconds", "Received from NATS to first written to the socket.")
        self._end_to_end = self._timing("relay_end_to_end_seconds", "Stored by JetStream to acknowledged.")
        self._round_trip = self._timing("relay_facilitator_round_trip_seconds", "Written to the socket to answered.")

    def _counters(self, name: str, text: str, label: str, values: Iterable[str]) -> dict[str, Counter]:
        family = Counter(name, text, [label], registry=self._registry)
        return {str(value): family.labels(str(value)) for value in values}

    def _timing(self, name: str, text: str) -> "_Timing":
        timing = _Timing(name, text)
        self._registry.register(timing)
        return timing

    def sent(self, hot_path_s: float) -> None:
        """An update was written to the socket, `hot_path_s` after it came from NATS."""
        self._hot_path.observe(hot_path_s)

    def answered(self, round_trip_s: float) -> None:
        """The Facilitator answered an update, whatever the answer, `round_trip_s` after it was written."""
        self._round_trip.observe(round_trip_s)

    def acknowledged(self, end_to_end_s: float) -> None:
        """An update was stored by the Facilitator, `end_to_end_s` after JetStream stored it."""
        self._acknowledged.inc()
        self._end_to_end.observe(end_to_end_s)

    def duplicate(self, end_to_end_s: float) -> None:
        """The Facilitator had the update already, which is an acknowledgement too."""
        self._duplicates.inc()
        self._end_to_end.observe(end_to_end_s)

    def dead_lettered(self, reason: Reason) -> None:
        self._dead_lettered.inc()
        self._dead_letters[reason].inc()

    def replayed(self, outcome: str) -> None:
        """A replayed update was settled; it is counted with the others as well."""
        self._replayed[outcome].inc()

    def retried(self) -> None:
        self._retries.inc()

    def repaired(self, rule: Repair) -> None:
        self._repairs[rule].inc()

    def pushed(self, kind: PushKind) -> None:
        self._pushes[kind].inc()

    def connection_opened(self) -> None:
        """A connection to the Facilitator is signed in."""
        self._opened.inc()

    def connection_lost(self) -> None:
        """A connection that was signed in is gone."""
        self._lost.inc()

    def connection_refused(self) -> None:
        """A connection failed before it was signed in."""
        self._refused.inc()

    def in_flight(self, updates: int) -> None:
        self._in_flight.set(updates)

    def at_hand(self, lane: int, updates: int) -> None:
        self._at_hand[lane].set(updates)

    def oldest_unrelayed(self, lane: int, age_s: float) -> None:
        self._oldest[lane].set(age_s)

    def render(self) -> tuple[bytes, str]:
        """The text exposition and its content type."""
        encode, content_type = choose_encoder("")  # the form that every scraper reads
        return encode(self._registry), content_type


class _Timing(Collector):
    """A histogram of durations in seconds, for one thread: three of them are fed by every update.

    The library's own takes a lock twice for each, which makes it six times as slow.
    """

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._text = text
        self._counts = [0] * (len(_BUCKETS_S) + 1)
        self._sum_s = 0.0

    def observe(self, duration_s: float) -> None:
        self._counts[bisect_left(_BUCKETS_S, duration_s)] += 1
        self._sum_s += duration_s

    def collect(self) -> Iterator[HistogramMetricFamily]:
        bounds = (*(str(float(bound)) for bound in _BUCKETS_S), "+Inf")
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets, self._sum_s)
