"""The changes between two snapshots: rates, and quantiles from histograms."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from snapshot_kit import report, snapshot

from relay.contract.report import Report, Timing
from relay.overview.snapshot import LaneSnapshot, Quantiles, Snapshot, between, quantile

BOUNDS_S = [0.001, 0.01, 0.1]


def taken(at_s: float, *reports: Report, published: int = 0, canaries: int = 0, deliveries: int = 0) -> Snapshot:
    lanes = (LaneSnapshot(0, "w", deliveries=deliveries),)
    return snapshot(*reports, stream={"last_sequence": published, "canaries": canaries}, taken_s=at_s, lanes=lanes)


def timed(worker: str, *counts: int, bounds_s: list[float] = BOUNDS_S) -> Report:
    return report(worker, timings={"hot_path": Timing(bounds_s, [*counts], 0.0)})


def test_rates():
    """The increase between two snapshots is divided by the seconds between them, for each outcome, lane and worker."""
    first = report("w", updates={"acknowledged": 5, "duplicate": 1}, retries=2)
    second = report("w", updates={"acknowledged": 13, "duplicate": 1}, retries=4)
    found = between(taken(10, first, published=7, deliveries=3), taken(14, second, published=27, deliveries=13))
    assert (4, 5.0, 0.5) == (found.seconds, found.published, found.retries)
    assert {"acknowledged": 2.0, "duplicate": 0.0, "dead_lettered": 0.0} == found.settled
    assert ({0: 2.5}, {"w": 2.0}) == (found.deliveries, found.settled_by)


@pytest.mark.parametrize(("before", "after"), [((7, 2), (12, 4)), ((7, 2), (10, 1))], ids=["new", "too old"])
def test_canaries_are_not_published_updates(before, after):
    """Canaries that came are not counted, and those that were removed because of their age are not counted off."""
    earlier, later = (taken(at_s, published=now[0], canaries=now[1]) for at_s, now in ((1, before), (2, after)))
    assert 3 == between(earlier, later).published


def test_restarts():
    """A worker that is not in both snapshots is not counted, and a counter that starts again gives no negative rate.

    Without any worker in both, nobody knows what was settled.
    """
    before = taken(1, report("old", updates={"acknowledged": 1000}), published=50, deliveries=50)
    after = taken(2, report("new", updates={"acknowledged": 3}), published=1, deliveries=1)
    found = between(before, after)
    assert ({}, None) == (found.settled, found.retries)
    assert (0, {0: 0}, {}) == (found.published, found.deliveries, found.settled_by)


def test_lane_whose_consumer_is_made_again():
    """While a lane's consumer was missing, nobody counted its deliveries: they are no burst afterwards."""
    missing = snapshot(lanes=(LaneSnapshot(0, "w", trouble="its consumer is missing"),))
    assert {} == between(missing, taken(1, deliveries=1000)).deliveries
    assert {} == between(taken(0, deliveries=1000), missing).deliveries


def test_no_time():
    """Two snapshots of the same moment cause no division by zero."""
    assert 0 < between(taken(1), taken(1)).seconds


def test_latencies():
    """Quantiles are of the durations between the snapshots, over all workers; without durations there are none."""
    before = taken(0, timed("a", 9, 0, 0, 0), timed("b", 0, 0, 0, 0))
    after = taken(1, timed("a", 9, 10, 0, 0), timed("b", 0, 0, 10, 0))
    expected = {"hot_path": Quantiles(20, pytest.approx(0.01), pytest.approx(0.1 - 0.09 * 0.02))}
    assert expected == between(before, after).latencies
    assert {} == between(after, after).latencies


def test_other_bounds():
    """A worker whose histogram has other bounds, such as one of another version, is left out of the quantiles."""
    before = taken(0, timed("a", 0, 0, 0, 0), timed("b", 0, 0, bounds_s=[5.0]))
    after = taken(1, timed("a", 1, 0, 0, 0), timed("b", 7, 7, bounds_s=[5.0]))
    assert {"hot_path": Quantiles(1, 0.0005, 0.00099)} == between(before, after).latencies


@given(st.lists(st.integers(0, 50), min_size=4, max_size=4).filter(any), st.floats(0.01, 1))
def test_quantile(counts, share):
    """A quantile is in the bucket in which that share is reached; above the last bound it is infinite."""
    found = quantile(BOUNDS_S, counts, share)
    reached = next(index for index in range(4) if counts[index] and sum(counts[: index + 1]) >= share * sum(counts))
    lower_s, upper_s = [0.0, *BOUNDS_S][reached], [*BOUNDS_S, math.inf][reached]
    assert lower_s <= found <= upper_s * (1 + 1e-9)
    assert (reached == 3) == math.isinf(found)
