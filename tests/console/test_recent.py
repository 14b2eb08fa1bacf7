"""What the first line and the charts say, from views alone."""

import datetime as dt

import pytest
from snapshot_kit import snapshot

from relay.console.recent import Recent, series
from relay.console.verdict import verdict
from relay.doctor.findings import Level, fail, ok, warn
from relay.overview.snapshot import Interval, Quantiles
from relay.overview.watch import View

AT = dt.datetime(2026, 11, 22, 3, 14, tzinfo=dt.UTC)
INTERVAL = Interval(
    seconds=2.0,
    published=200.52,
    settled={"acknowledged": 199.0},
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


@pytest.mark.parametrize(
    ("findings", "trouble", "level", "headline"),
    [
        ([ok("lanes", "driven")], None, Level.OK, "Updates flow"),
        ([ok("lanes", "driven"), warn("clock", "off", "set it")], None, Level.WARN, "Updates flow, have a look"),
        ([warn("clock", "off", "set it"), fail("lanes", "free", "start")], None, Level.FAIL, "Updates do not flow"),
        ([ok("lanes", "driven")], "for 2 s now: away", Level.FAIL, "No news from NATS"),
        ([], None, Level.WARN, "Looking"),
    ],
)
def test_verdict(findings, trouble, level, headline):
    """The worst finding decides, and without news nothing is green."""
    found = verdict(findings, trouble)
    assert (level, headline) == (found.level, found.headline)
