from collections.abc import Iterable, Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from relay.contract.facilitator_messages import PushKind
from relay.contract.subjects import Reason
from relay.contract.wire import Repair
from relay.core.verdict import Outcome
from relay.observability.metrics import Metrics


def series(metrics: Metrics) -> Iterator[tuple[str, float]]:
    """Every sample as `name{label=value}` and its value."""
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            labels = ",".join(f"{label}={value}" for label, value in sample.labels.items())
            yield f"{sample.name}{{{labels}}}" if labels else sample.name, sample.value


ELSEWHERE = {"relay_build_info", "relay_log_lines_dropped_total"}
"""What no method of Metrics tells of."""


def names(series: Iterable[str]) -> set[str]:
    return {name.partition("{")[0] for name in series}


def test_what_happens_is_counted():
    """Every event is counted in its series, and in no other; no metric is left out here."""
    metrics = Metrics(lanes=2)
    before = dict(series(metrics))
    metrics.answered([0.000_3], [0.011], {Outcome.ACKNOWLEDGED: [0.003], Outcome.DUPLICATE: [0.004]})
    metrics.dead_lettered(Reason.JOB_NOT_FOUND)
    metrics.replayed("duplicate")
    metrics.retried()
    metrics.repaired(Repair.NUL_REPLACED)
    metrics.pushed(PushKind.REQUEST)
    metrics.connection_opened()
    metrics.connection_lost()
    metrics.connection_refused()
    metrics.in_flight(7, 700, 28)
    metrics.memory(900, 300)
    metrics.at_hand(1, 9)
    metrics.lane_taken(0, "expired")
    metrics.lane_taken(1, "handed_over")
    metrics.backlog(0, 3, 1.5)
    metrics.lane_left(0, "lost")
    metrics.backlog(1, 11, 2.5)
    metrics.dead_letters_stored(4)
    metrics.receipt_dropped()
    metrics.nats_reconnected(slow_consumer=True)
    metrics.traceparents_malformed(1)
    metrics.state(ready=True, nats=True, facilitator=2, intake=True)
    metrics.copies(3)
    metrics.clock(-2.5)
    metrics.loop_lagged(0.2)
    metrics.in_trouble(1, troubled=True)
    metrics.hold("requests", lambda: 12)
    metrics.unexplained()
    metrics.pushes_state(up=False)
    metrics.markers_ended(2)
    metrics.not_permitted(5)
    metrics.controlled("passed")
    after = {name: value for name, value in series(metrics) if name.startswith("relay_") and "_bucket{" not in name}
    changed = {name: value for name, value in after.items() if value != before.get(name)}
    assert ELSEWHERE == names(after) - names(changed)
    assert changed == {
        "relay_updates_total{outcome=acknowledged}": 1,
        "relay_updates_total{outcome=duplicate}": 1,
        "relay_updates_total{outcome=dead_lettered}": 1,
        "relay_dead_letters_total{reason=job_not_found}": 1,
        "relay_replayed_updates_total{outcome=duplicate}": 1,
        "relay_receipts_dropped_total": 1,
        "relay_retries_total": 1,
        "relay_repairs_total{rule=nul_replaced}": 1,
        "relay_pushes_total{kind=request}": 1,
        "relay_facilitator_connections_total{outcome=opened}": 1,
        "relay_facilitator_connections_total{outcome=lost}": 1,
        "relay_facilitator_connections_total{outcome=refused}": 1,
        "relay_in_flight": 7,
        "relay_in_flight_bytes": 700,
        "relay_at_hand_bytes": 900,
        "relay_on_request_bytes": 300,
        "relay_window_use_ratio": 0.25,
        "relay_lane_owned{lane=1}": 1,
        "relay_lag{lane=1}": 11,
        "relay_dead_letters_stored": 4,
        "relay_takeovers_total{how=expired}": 1,
        "relay_takeovers_total{how=handed_over}": 1,
        "relay_lanes_left_total{how=lost}": 1,
        "relay_nats_reconnects_total": 1,
        "relay_nats_slow_consumer_total": 1,
        "relay_malformed_traceparents_total": 1,
        "relay_ready": 1,
        "relay_nats_connected": 1,
        "relay_intake_up": 1,
        "relay_missing_copies": 3,
        "relay_nats_clock_ahead_seconds": -2.5,
        "relay_facilitator_connected": 2,
        "relay_event_loop_lag_seconds_count": 1,
        "relay_event_loop_lag_seconds_sum": 0.2,
        "relay_at_hand{lane=1}": 9,
        "relay_oldest_unrelayed_seconds{lane=1}": 2.5,
        "relay_hot_path_seconds_count": 1,
        "relay_hot_path_seconds_sum": 0.000_3,
        "relay_end_to_end_seconds_count": 2,
        "relay_end_to_end_seconds_sum": 0.007,
        "relay_facilitator_round_trip_seconds_count": 1,
        "relay_facilitator_round_trip_seconds_sum": 0.011,
        "relay_lane_in_trouble{lane=1}": 1,
        "relay_held_bytes{by=requests}": 12,
        "relay_unexplained_duplicates_total": 1,
        "relay_pushes_up": 0,
        "relay_markers_total": 2,
        "relay_not_permitted": 5,
        "relay_controls_total{outcome=passed}": 1,
    }


def test_every_series_exists_from_the_start():
    """Each reason, repair and kind has its series from the start, so that the increase from 0 is seen."""
    names = {name for name, _ in series(Metrics(lanes=2))}
    expected = {
        *(f"relay_updates_total{{outcome={outcome}}}" for outcome in ("acknowledged", "duplicate", "dead_lettered")),
        *(f"relay_dead_letters_total{{reason={reason}}}" for reason in Reason),
        *(f"relay_repairs_total{{rule={rule}}}" for rule in Repair),
        *(f"relay_pushes_total{{kind={kind}}}" for kind in ("request", "cheated", "other")),
        *(f"relay_facilitator_connections_total{{outcome={outcome}}}" for outcome in ("opened", "lost", "refused")),
        *(f"relay_at_hand{{lane={lane}}}" for lane in range(2)),
        *(f"relay_takeovers_total{{how={how}}}" for how in ("handed_over", "expired", "free")),
        *(f"relay_lanes_left_total{{how={how}}}" for how in ("given_up", "given_up_undrained", "lost")),
        "relay_retries_total",
        "relay_in_flight",
    }
    assert expected - names == set()


def test_nobody_says_0_of_what_is_not_known():
    """What only somebody who looks can know has no series before, and none when it is not known any more."""
    metrics = Metrics(lanes=2)
    before = set(dict(series(metrics)))
    metrics.backlog(0, 3, 1.5)
    metrics.dead_letters_stored(4)
    metrics.state(ready=True, nats=True, facilitator=2, intake=False)
    metrics.copies(0)
    metrics.clock(0.0)
    known = set(dict(series(metrics))) - before
    metrics.lane_left(0, "lost")
    metrics.dead_letters_stored(None)
    metrics.state(ready=True, nats=True, facilitator=2, intake=None)
    metrics.copies(None)
    metrics.clock(None)
    expected = {
        "relay_lag{lane=0}",
        "relay_oldest_unrelayed_seconds{lane=0}",
        "relay_dead_letters_stored",
        "relay_intake_up",
        "relay_missing_copies",
        "relay_nats_clock_ahead_seconds",
    }
    assert (expected, before) == (known, set(dict(series(metrics))))


@pytest.mark.parametrize("name", ["hot_path", "end_to_end", "facilitator_round_trip", "event_loop_lag"])
def test_buckets(name):
    """Histograms have buckets from 50 microseconds to 60 seconds."""
    prefix = f"relay_{name}_seconds_bucket{{le="
    bounds = [key.removeprefix(prefix)[:-1] for key, _ in series(Metrics(lanes=1)) if key.startswith(prefix)]
    assert (bounds[0], bounds[-2], bounds[-1]) == ("5e-05", "60.0", "+Inf")


def test_durations_fall_into_their_buckets():
    """A duration is counted in every bucket with a bound at or above it, and in no other."""
    metrics = Metrics(lanes=1)
    metrics.loop_lagged(0.000_2)
    metrics.loop_lagged(0.000_3)
    metrics.loop_lagged(61)
    found = dict(series(metrics))
    counts = [found[f"relay_event_loop_lag_seconds_bucket{{le={le}}}"] for le in ("0.0001", "0.0002", "60.0", "+Inf")]
    assert counts == [0, 1, 2, 3]
