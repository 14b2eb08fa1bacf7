"""What passed between two looks at the relay: rates, and quantiles from histograms."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.contract.report import Report, Timing
from relay.dead_letters.reasons import ReasonCounts
from relay.overview.snapshot import LaneState, Overview, Quantiles, between, quantile

BOUNDS_S = [0.001, 0.01, 0.1]


def report(worker="w", updates=None, retries=0, counts=None, bounds_s=None) -> Report:
    timings = {} if counts is None else {"hot_path": Timing(bounds_s or BOUNDS_S, counts, 0.0)}
    return Report(worker, "1", 9.0, [], [], [], updates or {}, {}, retries, timings)


def overview(at_s: float, *reports: Report, published: int = 0, deliveries: int = 0) -> Overview:
    return Overview(
        taken_s=at_s,
        server_ahead_s=0.0,
        clock_error_s=0.0,
        lanes=(LaneState(0, "w", deliveries=deliveries),),
        streams={},
        workers=frozenset(),
        reports={each.worker: each for each in reports},
        asked=True,
        letters=ReasonCounts(),
        advisories=0,
        published=published,
    )


def test_rates():
    """What grew between two looks is divided by the seconds between them, for each outcome, lane and worker."""
    before = overview(10, report(updates={"acknowledged": 5, "duplicate": 1}, retries=2), published=7, deliveries=3)
    after = overview(14, report(updates={"acknowledged": 13, "duplicate": 1}, retries=4), published=27, deliveries=13)
    passed = between(before, after)
    assert (4, 5.0, 0.5) == (passed.seconds, passed.published, passed.retries)
    assert {"acknowledged": 2.0, "duplicate": 0.0, "dead_lettered": 0.0} == passed.settled
    assert ({0: 2.5}, {"w": 2.0}) == (passed.deliveries, passed.settled_by)


def test_restarts():
    """Who was not seen at both looks has no part in the rates, and what counts from 0 again makes none negative."""
    before = overview(1, report("old", {"acknowledged": 1000}), published=50, deliveries=50)
    after = overview(2, report("new", {"acknowledged": 3}), published=1, deliveries=1)
    passed = between(before, after)
    assert ({"acknowledged": 0, "duplicate": 0, "dead_lettered": 0}, 0, {0: 0}) == (
        passed.settled,
        passed.published,
        passed.deliveries,
    )
    assert {} == passed.settled_by


def test_no_time():
    """Two looks at the same moment divide by no zero."""
    assert 0 < between(overview(1), overview(1)).seconds


def test_latencies():
    """Quantiles are of the durations between the two looks, of all workers together; of none there are none."""
    before = overview(0, report("a", counts=[9, 0, 0, 0]), report("b", counts=[0, 0, 0, 0]))
    after = overview(1, report("a", counts=[9, 10, 0, 0]), report("b", counts=[0, 0, 10, 0]))
    (found,) = between(before, after).latencies.values()
    assert 20 == found.count
    assert pytest.approx(0.01) == found.p50_s
    assert pytest.approx(0.1 - 0.09 * 0.02) == found.p99_s
    assert {} == between(after, after).latencies


def test_other_bounds():
    """A worker whose histogram has other bounds, as one of another version may, is left out of the quantiles."""
    before = overview(0, report("a", counts=[0, 0, 0, 0]), report("b", counts=[0, 0], bounds_s=[5.0]))
    after = overview(1, report("a", counts=[1, 0, 0, 0]), report("b", counts=[7, 7], bounds_s=[5.0]))
    assert {"hot_path": Quantiles(1, 0.0005, 0.00099)} == between(before, after).latencies


@given(st.lists(st.integers(0, 50), min_size=4, max_size=4).filter(any), st.floats(0.01, 1))
def test_quantile(counts, share):
    """A quantile lies in the bucket in which that share of all is reached, and above the last bound it is infinite."""
    found = quantile(BOUNDS_S, counts, share)
    reached = next(index for index in range(4) if counts[index] and sum(counts[: index + 1]) >= share * sum(counts))
    lower_s, upper_s = [0.0, *BOUNDS_S][reached], [*BOUNDS_S, math.inf][reached]
    assert lower_s <= found <= upper_s * (1 + 1e-9)
    assert (reached == 3) == math.isinf(found)
