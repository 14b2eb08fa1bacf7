"""What the relay counts and times, for Prometheus. No label ever carries a job's UUID."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import accumulate
from typing import Final, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, disable_created_metrics
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from relay.contract.report import Timing
from relay.contract.subjects import Reason
from relay.contract.wire import PushKind, Repair

Taken = Literal["handed_over", "expired", "free"]
"""How a worker came by a lane: its owner gave it up, the owner's lease ran out, or nobody is known to have had it."""
Left = Literal["given_up", "given_up_undrained", "lost"]

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
"""Of what `Metrics.render` returns: the form that every scraper reads."""
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
        updates = self._updates = self._counters(
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
        self._pushes = self._counters("relay_pushes", "Messages pushed by the Facilitator.", "kind", PushKind)
        connections = self._counters(
            "relay_facilitator_connections",
            "Connections to the Facilitator: opened (signed in), lost after that, or refused before it.",
            "outcome",
            ("opened", "lost", "refused"),
        )
        self._receipts_dropped = Counter(
            "relay_receipts_dropped",
            "Receipts that were not published, because NATS was away or behind.",
            registry=self._registry,
        )
        self._takeovers = self._counters(
            "relay_takeovers",
            "Lanes taken: handed over, or after their owner's lease expired, or free.",
            "how",
            get_args(Taken),
        )
        self._lanes_left = self._counters(
            "relay_lanes_left", "Lanes that are not driven here any more, by how that came.", "how", get_args(Left)
        )
        self._reconnects = Counter(
            "relay_nats_reconnects", "Times that a lost connection to NATS was made anew.", registry=self._registry
        )
        self._malformed_traceparents = Counter(
            "relay_malformed_traceparents",
            "Updates whose traceparent header is none, so that it was ignored.",
            registry=self._registry,
        )
        self._opened = connections["opened"]
        self._lost = connections["lost"]
        self._refused = connections["refused"]

    def _gauge(self, lanes: int) -> None:
        for_lane = partial(self._lane_gauges, lanes)
        self._owned = for_lane("relay_lane_owned", "1 if this worker drives the lane, else 0.")
        self._at_hand = for_lane("relay_at_hand", "Updates received from NATS and not yet settled.")
        self._lag = for_lane("relay_lag", "Updates stored and not yet settled, as the lane's owner last saw it.")
        self._oldest = for_lane(
            "relay_oldest_unrelayed_seconds",
            "Age of the lane's oldest update that is stored and not settled, as its owner last saw it; 0 without one.",
        )
        self._in_flight = self._plain_gauge("relay_in_flight", "Updates sent and not yet answered.")
        self._window_use = self._plain_gauge(
            "relay_window_use_ratio", "Updates in flight, as a share of what the windows of all connections take."
        )
        self._ready = self._plain_gauge("relay_ready", "1 while /readyz answers 200, else 0.")
        self._nats_connected = self._plain_gauge("relay_nats_connected", "1 while connected to NATS, else 0.")
        self._facilitator_connected = self._plain_gauge(
            "relay_facilitator_connected", "Connections to the Facilitator that are signed in."
        )

    def _plain_gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self._registry)

    def _lane_gauges(self, lanes: int, name: str, text: str) -> list[Gauge]:
        family = Gauge(name, text, ["lane"], registry=self._registry)
        return [family.labels(str(lane)) for lane in range(lanes)]

    def _time(self) -> None:
        self._loop_lag = self._timing("relay_event_loop_lag_seconds", "How late the event loop called a timer.")
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

    def receipt_dropped(self) -> None:
        """A receipt could not be published at once."""
        self._receipts_dropped.inc()

    def nats_reconnected(self) -> None:
        self._reconnects.inc()

    def traceparent_malformed(self) -> None:
        self._malformed_traceparents.inc()

    def lane_taken(self, lane: int, how: Taken) -> None:
        self._takeovers[how].inc()
        self._owned[lane].set(1)

    def lane_left(self, lane: int, how: Left) -> None:
        self._lanes_left[how].inc()
        self._owned[lane].set(0)
        self.backlog(lane, 0, 0)

    def loop_lagged(self, lag_s: float) -> None:
        """The event loop called a timer `lag_s` too late."""
        self._loop_lag.observe(lag_s)

    def state(self, *, ready: bool, nats: bool, facilitator: int) -> None:
        """How the worker stands: ready or not, connected to NATS or not, and how many connections are signed in."""
        self._ready.set(ready)
        self._nats_connected.set(nats)
        self._facilitator_connected.set(facilitator)

    def in_flight(self, updates: int, places: int) -> None:
        """So many updates are unanswered, and there is room for `places` of them at once."""
        self._in_flight.set(updates)
        self._window_use.set(updates / places if places else 0)

    def at_hand(self, lane: int, updates: int) -> None:
        self._at_hand[lane].set(updates)

    def backlog(self, lane: int, unsettled: int, oldest_s: float) -> None:
        """So many updates of a lane are stored and not settled; the oldest was stored `oldest_s` ago."""
        self._lag[lane].set(unsettled)
        self._oldest[lane].set(oldest_s)

    def updates(self) -> dict[str, int]:
        """How many updates were settled, by outcome."""
        return {outcome: _value(counter) for outcome, counter in self._updates.items()}

    def dead_letters(self) -> dict[str, int]:
        """How many updates were dead-lettered, by reason."""
        return {reason: _value(counter) for reason, counter in self._dead_letters.items()}

    def retries(self) -> int:
        """How many attempts failed and were made again."""
        return _value(self._retries)

    def timings(self) -> dict[str, Timing]:
        """How long things took, by name: hot_path, end_to_end, round_trip."""
        return {
            "hot_path": self._hot_path.timing,
            "end_to_end": self._end_to_end.timing,
            "round_trip": self._round_trip.timing,
        }

    def render(self) -> bytes:
        """The text exposition, of CONTENT_TYPE."""
        return b"".join(self.pieces())

    def pieces(self) -> Iterator[bytes]:
        """The text exposition metric by metric, each in a fraction of a millisecond, for who has work to do between."""
        return (generate_latest(Collected([metric])) for metric in self._registry.collect())


class Collected(Collector):
    """Metrics as they were collected, for an encoder that wants a registry."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


class _Timing(Collector):
    """A histogram of durations in seconds, for one thread: most of them are fed by every update.

    The library's own takes a lock twice for each, which makes it six times as slow.
    """

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._text = text
        self._counts = [0] * (len(_BUCKETS_S) + 1)
        self._sum_s = 0.0

    @property
    def timing(self) -> Timing:
        """What it holds now."""
        return Timing(list(_BUCKETS_S), list(self._counts), self._sum_s)

    def observe(self, duration_s: float) -> None:
        self._counts[bisect_left(_BUCKETS_S, duration_s)] += 1
        self._sum_s += duration_s

    def collect(self) -> Iterator[HistogramMetricFamily]:
        bounds = (*(str(float(bound)) for bound in _BUCKETS_S), "+Inf")
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets, self._sum_s)


def _value(counter: Counter) -> int:
    """What one series of a counter stands at."""
    samples = (sample for family in counter.collect() for sample in family.samples)
    return int(next(sample.value for sample in samples if sample.name.endswith("_total")))
