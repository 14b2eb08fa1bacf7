"""What the relay counts and times, for Prometheus. No label ever carries a job's UUID.

To add a metric, for example of the bytes forwarded (CONTRIBUTING.md has the rest, such as where updates are written):

1. Define it here, in the section of its subject: `self._forwarded = self._counter("relay_forwarded_bytes", "...")`.
2. Add a method beside it that says what happened, `def forwarded(self, size_bytes: int)`; call it where it happens,
   and in tests/observability/test_metrics.py.
3. Describe it in docs/metrics.md, in the section of the same name; tests/docs/test_metrics_md.py compares the two.
4. If somebody should watch it, add a panel to deploy/grafana/ or an alert; tests/docs/ checks their queries.

`relay_worker_up` and `relay_worker_restarts` are metrics of a parent: service/worker_probes.py has them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from platform import python_version
from typing import Final, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from relay.contract.facilitator_messages import PushKind
from relay.contract.report import Timing
from relay.contract.subjects import Reason
from relay.contract.wire import Repair
from relay.core.verdict import Outcome
from relay.observability.collectors import Collected, DurationHistogram, KnownGauge, LogMetrics

HowTaken = Literal["handed_over", "expired", "free"]
"""How a worker got a lane: its owner gave it up, the owner's lease expired, or no earlier owner is known."""
HowLeft = Literal["given_up", "given_up_undrained", "lost"]
"""How a worker left a lane: drained, not drained within the time for that, or because its lease was not renewed."""

Holder = Literal["dead_letters", "pushes", "requests"]
"""What holds bytes besides the updates at hand."""
ControlOutcome = Literal["passed", "lost", "missing"]
"""What became of a control: it was answered as it should be, the connection was lost at it, or there was none."""

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
"""The content type of what `Metrics.render` returns. Every scraper can read it."""


class Metrics:
    """The metrics of one worker, in a registry of their own.

    Methods are named after what happened. Durations are in seconds; lanes count from 0 to `lanes` - 1.
    Every series exists from the start, with value 0, and is looked up once, here: the hot path calls no `labels()`.
    Only the series of a `KnownGauge` exist as long as their values are known.
    """

    def __init__(self, lanes: int) -> None:
        disable_created_metrics()  # a `_created` series beside every counter and histogram, which nobody reads
        self._lanes = lanes
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(LogMetrics())
        self._define_promise()
        self._define_lanes()
        self._define_flow()
        self._define_latency()
        self._define_connections()

    # --- The promise

    def _define_promise(self) -> None:
        self._updates = self._counters("relay_updates", "Settled updates, by how they ended.", "outcome", Outcome)
        self._dead_letters = self._counters("relay_dead_letters", "Dead-lettered updates.", "reason", Reason)
        self._replayed = self._counters(
            "relay_replayed_updates",
            "Those of the settled updates that were replayed dead letters, by how they ended.",
            "outcome",
            Outcome,
        )
        self._lag = self._known_gauge(
            "relay_lag", "Updates stored and not settled, as the lane's owner last saw it; absent elsewhere.", "lane"
        )
        self._oldest = self._known_gauge(
            "relay_oldest_unrelayed_seconds",
            "Age of the lane's oldest update that is stored and not settled, as its owner last saw it; 0 without one.",
            "lane",
        )
        self._letters_stored = self._known_gauge(
            "relay_dead_letters_stored", "Dead letters that are in JOB_DLQ; absent while that cannot be seen."
        )
        self._ready = self._gauge("relay_ready", "1 while /readyz answers 200, else 0.")

    def answered(
        self,
        hot_path_s: Sequence[float],
        round_trip_s: Sequence[float],
        end_to_end_s: Mapping[Outcome, Sequence[float]],
    ) -> None:
        """The Facilitator answered updates that were read together.

        `round_trip_s` has one duration for each: from written to answered. `end_to_end_s` has one for each that it
        acknowledged, by outcome: from stored by JetStream to acknowledged. `hot_path_s` has one for each that is
        settled: from received from NATS to first written.
        """
        self._hot_path.observe(hot_path_s)
        self._round_trip.observe(round_trip_s)
        for outcome, durations_s in end_to_end_s.items():
            self._updates[outcome].inc(len(durations_s))
            self._end_to_end.observe(durations_s)

    def dead_lettered(self, reason: Reason) -> None:
        self._updates[Outcome.DEAD_LETTERED].inc()
        self._dead_letters[reason].inc()

    def replayed(self, outcome: str) -> None:
        """A replayed update was settled; it is counted with the others as well."""
        self._replayed[outcome].inc()

    def backlog(self, lane: int, unsettled: int, oldest_s: float) -> None:
        """`unsettled` updates of a lane are stored and not settled; the oldest was stored `oldest_s` ago."""
        self._lag.set(unsettled, str(lane))
        self._oldest.set(oldest_s, str(lane))

    def dead_letters_stored(self, letters: int | None) -> None:
        """How many dead letters there are; None if that cannot be seen."""
        self._letters_stored.set(letters)

    # --- Lanes

    def _define_lanes(self) -> None:
        self._owned = self._lane_gauges("relay_lane_owned", "1 if this worker drives the lane, else 0.")
        self._takeovers = self._counters(
            "relay_takeovers",
            "Lanes taken: handed over by their owner, after its lease expired, or free.",
            "how",
            get_args(HowTaken),
        )
        self._lanes_left = self._counters(
            "relay_lanes_left", "Lanes that this worker stopped driving, by how that came.", "how", get_args(HowLeft)
        )
        self._at_hand = self._lane_gauges("relay_at_hand", "Updates received from NATS and not yet settled.")

        self._in_trouble = self._lane_gauges(
            "relay_lane_in_trouble", "1 if nothing is given to this worker of what waits in its lane, else 0."
        )
        self._at_hand_bytes = self._gauge("relay_at_hand_bytes", "Bytes of the updates at hand, of all lanes.")
        self._on_request_bytes = self._gauge(
            "relay_on_request_bytes", "Bytes that NATS may still deliver without being asked again."
        )

    def lane_taken(self, lane: int, how: HowTaken) -> None:
        self._takeovers[how].inc()
        self._owned[lane].set(1)

    def lane_left(self, lane: int, how: HowLeft) -> None:
        self._lanes_left[how].inc()
        self._owned[lane].set(0)
        self._in_trouble[lane].set(0)
        self._lag.set(None, str(lane))
        self._oldest.set(None, str(lane))

    def at_hand(self, lane: int, updates: int) -> None:
        self._at_hand[lane].set(updates)

    def in_trouble(self, lane: int, *, troubled: bool) -> None:
        """Whether a lane cannot be pulled, or nothing is given of what waits in it."""
        self._in_trouble[lane].set(troubled)

    def memory(self, at_hand_bytes: int, on_request_bytes: int) -> None:
        """How many bytes all lanes have at hand, and may still get without asking again."""
        self._at_hand_bytes.set(at_hand_bytes)
        self._on_request_bytes.set(on_request_bytes)

    # --- Flow

    def _define_flow(self) -> None:
        self._in_flight = self._gauge("relay_in_flight", "Updates sent and not yet answered.")
        self._in_flight_bytes = self._gauge("relay_in_flight_bytes", "Memory of the updates sent and not yet answered.")
        self._window_use = self._gauge(
            "relay_window_use_ratio", "Updates in flight, as a share of the windows of all connections."
        )
        self._retries = self._counter("relay_retries", "Attempts that failed and will be made again.")
        self._unexplained = self._counter(
            "relay_unexplained_duplicates", "Answers job.integrity_error to updates that were not sent before."
        )
        self._repairs = self._counters("relay_repairs", "Repairs made to updates, by rule.", "rule", Repair)
        self._pushes = self._counters("relay_pushes", "Messages pushed by the Facilitator.", "kind", PushKind)
        self._pushes_up = self._gauge(
            "relay_pushes_up", "0 if a push of the Facilitator cannot be stored in JOB_REQUESTS, else 1."
        )
        self._pushes_up.set(1)
        self._receipts_dropped = self._counter(
            "relay_receipts_dropped", "Receipts that were not published, because NATS was away or slow."
        )
        self._held = Gauge(
            "relay_held_bytes", "Bytes held for other things than updates at hand.", ["by"], registry=self._registry
        )
        for holder in get_args(Holder):
            self._held.labels(holder)
        self._markers = self._counter(
            "relay_markers", "Markers that stood in the stream for messages that are gone, and were acknowledged."
        )
        self._malformed_traceparents = self._counter(
            "relay_malformed_traceparents", "Updates with a malformed traceparent header, which was ignored."
        )

    def in_flight(self, updates: int, size_bytes: int, places: int) -> None:
        """How many updates are unanswered, their bytes, and how many may be (`places`), on all connections."""
        self._in_flight.set(updates)
        self._in_flight_bytes.set(size_bytes)
        self._window_use.set(updates / places if places else 0)

    def hold(self, by: Holder, held_bytes: Callable[[], int]) -> None:
        """`held_bytes` returns how many bytes are held now."""
        self._held.labels(by).set_function(held_bytes)

    def retried(self) -> None:
        self._retries.inc()

    def unexplained(self) -> None:
        """The Facilitator said that it had an update already, and nothing explains that."""
        self._unexplained.inc()

    def repaired(self, rule: Repair) -> None:
        self._repairs[rule].inc()

    def pushed(self, kind: PushKind) -> None:
        self._pushes[kind].inc()

    def pushes_state(self, *, up: bool) -> None:
        """Whether the last push could be stored."""
        self._pushes_up.set(up)

    def receipt_dropped(self) -> None:
        """A receipt could not be published at once."""
        self._receipts_dropped.inc()

    def markers_ended(self, markers: int) -> None:
        """How many deliveries of a batch were no updates, but markers in the place of messages that are gone."""
        self._markers.inc(markers)

    def traceparents_malformed(self, updates: int) -> None:
        """How many updates of a batch had a traceparent header that cannot be read."""
        self._malformed_traceparents.inc(updates)

    # --- Latency

    def _define_latency(self) -> None:
        self._hot_path = self._histogram("relay_hot_path_seconds", "Received from NATS to first written to the socket.")
        self._round_trip = self._histogram("relay_facilitator_round_trip_seconds", "Written to the socket to answered.")
        self._end_to_end = self._histogram("relay_end_to_end_seconds", "Stored by JetStream to acknowledged.")
        self._loop_lag = self._histogram("relay_event_loop_lag_seconds", "How late the event loop called a timer.")

    def loop_lagged(self, lag_s: float) -> None:
        """The event loop called a timer `lag_s` too late."""
        self._loop_lag.observe((lag_s,))

    # --- Connections and processes

    def _define_connections(self) -> None:
        build = Gauge(
            "relay_build_info", "1; the labels say what runs.", ["version", "python"], registry=self._registry
        )
        build.labels(version("job-status-relay"), python_version()).set(1)
        self._nats_connected = self._gauge("relay_nats_connected", "1 while connected to NATS, else 0.")
        self._intake = self._known_gauge(
            "relay_intake_up", "0 if JOB_STATUS stores nothing of what is published, else 1; absent while unknown."
        )
        self._not_permitted = self._gauge(
            "relay_not_permitted", "Subjects on which NATS does not let this worker publish or listen."
        )
        self._server_ahead = self._known_gauge(
            "relay_nats_clock_ahead_seconds", "How far the clock of NATS is ahead of this machine's; negative: behind."
        )
        self._missing_copies = self._known_gauge(
            "relay_missing_copies",
            "Copies of streams and lane consumers that are lost, away or behind; absent while that cannot be seen.",
        )
        self._reconnects = self._counter("relay_nats_reconnects", "Reconnects after a lost connection to NATS.")
        self._slow_consumer = self._counter(
            "relay_nats_slow_consumer", "Those of the reconnects that probably followed a drop as a slow consumer."
        )
        self._facilitator_connected = self._gauge(
            "relay_facilitator_connected", "Connections to the Facilitator that are signed in."
        )
        self._connections = self._counters(
            "relay_facilitator_connections",
            "Connections to the Facilitator: opened (signed in), lost after that, or refused before it.",
            "outcome",
            ("opened", "lost", "refused"),
        )
        self._controls = self._counters(
            "relay_controls",
            "Drops of the connection that were looked into by sending an acknowledged update again, by the result.",
            "outcome",
            get_args(ControlOutcome),
        )

    def clock(self, server_ahead_s: float | None) -> None:
        """The clock of NATS is so far ahead of that of this machine; None if that is not known yet."""
        self._server_ahead.set(server_ahead_s)

    def not_permitted(self, subjects: int) -> None:
        """The permissions of the NATS user lack so many subjects, as far as they were tried lately."""
        self._not_permitted.set(subjects)

    def copies(self, missing: int | None) -> None:
        """So many copies of streams and consumers are lost, away or behind; None while that cannot be seen."""
        self._missing_copies.set(missing)

    def state(self, *, ready: bool, nats: bool, facilitator: int, intake: bool | None) -> None:
        """Whether the worker is ready, NATS is connected, and its stream stores; how many connections are signed in.

        `intake` is None while nobody knows.
        """
        self._intake.set(intake)
        self._ready.set(ready)
        self._nats_connected.set(nats)
        self._facilitator_connected.set(facilitator)

    def nats_reconnected(self, *, slow_consumer: bool) -> None:
        """`slow_consumer`: the server ended the connection among large messages, gave no reason, and runs on."""
        self._reconnects.inc()
        self._slow_consumer.inc(slow_consumer)

    def connection_opened(self) -> None:
        """A connection to the Facilitator is signed in."""
        self._connections["opened"].inc()

    def connection_lost(self) -> None:
        """A connection that was signed in is gone."""
        self._connections["lost"].inc()

    def connection_refused(self) -> None:
        """A connection failed before it was signed in."""
        self._connections["refused"].inc()

    def controlled(self, outcome: ControlOutcome) -> None:
        """A control was to tell whose fault a drop of the connection is."""
        self._controls[outcome].inc()

    # --- What is read from them

    def updates(self) -> dict[str, int]:
        """How many updates were settled, by outcome."""
        return {outcome: _value(counter) for outcome, counter in self._updates.items()}

    def dead_letters(self) -> dict[str, int]:
        """How many updates were dead-lettered, by reason."""
        return {reason: _value(counter) for reason, counter in self._dead_letters.items()}

    def slow_consumer(self) -> int:
        """How often nats-server probably dropped us as a slow consumer."""
        return _value(self._slow_consumer)

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
        """The text exposition, metric by metric. Each takes a fraction of a millisecond: do other work in between."""
        return (generate_latest(Collected([metric])) for metric in self._registry.collect())

    # --- How they are made

    def _counter(self, name: str, help_text: str) -> Counter:
        """Prometheus appends `_total` to the name of every counter."""
        return Counter(name, help_text, registry=self._registry)

    def _counters(self, name: str, help_text: str, label: str, values: Iterable[str]) -> dict[str, Counter]:
        family = Counter(name, help_text, [label], registry=self._registry)
        return {str(value): family.labels(str(value)) for value in values}

    def _gauge(self, name: str, help_text: str) -> Gauge:
        return Gauge(name, help_text, registry=self._registry)

    def _known_gauge(self, name: str, help_text: str, label: str | None = None) -> KnownGauge:
        gauge = KnownGauge(name, help_text, label)
        self._registry.register(gauge)
        return gauge

    def _lane_gauges(self, name: str, help_text: str) -> list[Gauge]:
        """One for each lane, by its number, with the label `lane`."""
        family = Gauge(name, help_text, ["lane"], registry=self._registry)
        return [family.labels(str(lane)) for lane in range(self._lanes)]

    def _histogram(self, name: str, help_text: str) -> DurationHistogram:
        histogram = DurationHistogram(name, help_text)
        self._registry.register(histogram)
        return histogram


def _value(counter: Counter) -> int:
    """The current value of one series of a counter."""
    samples = (sample for family in counter.collect() for sample in family.samples)
    return int(next(sample.value for sample in samples if sample.name.endswith("_total")))
