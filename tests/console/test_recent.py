"""The figures of now, and what the charts show, from views alone."""

import datetime as dt
from dataclasses import replace

from snapshot_kit import snapshot

from relay.console.recent import Recent, figures, series
from relay.overview.snapshot import Interval, LaneSnapshot, Quantiles
from relay.overview.watch import View

AT = dt.datetime(2026, 11, 22, 3, 14, tzinfo=dt.UTC)
INTERVAL = Interval(
    seconds=2.0,
    published=200.52,
    settled={"acknowledged": 199.0, "duplicate": 0.0, "dead_lettered": 0.0},
    retries=0.0,
    deliveries={},
    settled_by={},
    latencies={"end_to_end": Quantiles(400, 0.012, float("inf")), "round_trip": Quantiles(400, 0.001, 0.0123)},
)


def test_points():
    """A point has the rates and latencies of an interval; without one there is a gap, not a zero."""
    recent = Recent(2.0)
    recent.add(View(AT, snapshot(), INTERVAL))
    recent.add(View(AT, None, None, "for 2 s now: away"))
    at = "2026-11-22T03:14:00+00:00"
    assert [(at, 200.5), (at, None)] == series(recent.points, "published")
    assert [(at, 0.0), (at, None)] == series(recent.points, "dead_lettered")
    assert [(at, 60_000.0), (at, None)] == series(recent.points, "end_to_end")
    assert [(at, 12.3), (at, None)] == series(recent.points, "round_trip")
    assert [(at, None), (at, None)] == series(recent.points, "hot_path")


def test_bounded():
    """The points of 15 minutes are kept, and no more."""
    recent = Recent(2.0)
    for _ in range(1000):
        recent.add(View(AT, snapshot(), INTERVAL))
    assert 450 == len(recent.points)


def test_figures():
    """The figures of a view; what is not known now is neither a zero nor the figure of before."""
    waiting = snapshot(lanes=(LaneSnapshot(0, "a", 1200, 34, 0, 3.0), LaneSnapshot(1, None, 0, 0, 0, None)))
    assert {
        "published/s": "200.5",
        "acknowledged/s": "199.0",
        "dead-lettered/s": "0.0",
        "not settled": "1,234",
        "oldest": "3.0 s",
        "dead letters": "0",
    } == figures(View(AT, waiting, INTERVAL))
    assert {"-"} == set(figures(View(AT, waiting, None, "for 2 s now: away")).values())


def test_what_nobody_reports_is_unknown():
    """Without reports nobody knows what was settled, without its consumer nobody knows what waits in a lane."""
    recent, without = Recent(2.0), replace(INTERVAL, settled={}, latencies={})
    recent.add(View(AT, snapshot(), without))
    (dead_lettered,) = series(recent.points, "dead_lettered")
    assert dead_lettered[1] is None
    lost = snapshot(lanes=(LaneSnapshot(0, "a", 1200), LaneSnapshot(1, "a", trouble="its consumer is missing")))
    told = figures(View(AT, lost, without))
    assert {"published/s": "200.5", "dead letters": "0"} == {name: text for name, text in told.items() if text != "-"}
