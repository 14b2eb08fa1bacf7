"""The waits between attempts to connect, in virtual time: fleets of up to 100 workers, and outages of any length."""

import heapq
import itertools
import random
from bisect import bisect_left

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay.core.backoff import Backoff
from relay.core.connect_pace import ConnectPace, Place, any_place, place_of

PER_S = 20
BACK_WITHIN_S = 5.0
ROUNDING_S = 1e-6  # the resolution of a double near the present time
REFUSALS = Backoff(0.5, 30.0, lambda: 1.0)
EPOCH_S = 1.7e9


def paces(workers, connections=1):
    return [
        ConnectPace(lambda rank=rank: Place(rank, workers), number, connections, REFUSALS)
        for rank in range(workers)
        for number in range(connections)
    ]


def attempts_of(fleet, lost_s, until_s, lasts_s=0.0):
    """When each of the fleet's connections is tried, from when it is lost until the first attempt after `until_s`.

    An attempt takes `lasts_s` until it has failed.
    """
    due = [(lost + pace.wait_s(lost), number) for number, (pace, lost) in enumerate(zip(fleet, lost_s, strict=True))]
    heapq.heapify(due)
    tried = [[] for _ in fleet]
    while due:
        now_s, number = heapq.heappop(due)
        tried[number].append(now_s)
        if now_s < until_s:
            failed_s = now_s + lasts_s
            heapq.heappush(due, (failed_s + fleet[number].wait_s(failed_s), number))
    return tried


def most_in_a_second(times):
    times = sorted(times)
    return max(bisect_left(times, begin + 1 - ROUNDING_S) - number for number, begin in enumerate(times))


@given(
    workers=st.integers(1, 100),
    start_s=st.floats(0, 100),
    outage_s=st.floats(0, 40),
    spread_s=st.sampled_from([0.0, 0.01, 3.0]),
    lasts_s=st.sampled_from([0.0, 0.3, 2.0]),
    rng=st.randoms(use_true_random=False),
)
@settings(max_examples=50)
@example(workers=100, start_s=0.0, outage_s=10.0, spread_s=0.0, lasts_s=0.0, rng=random.Random(1))
def test_back_soon_and_no_storm(*, workers, start_s, outage_s, spread_s, lasts_s, rng):
    """However long an outage was, each of 1 to 100 workers tries within 5 s of its end, and never over 20 a second.

    They lose the Facilitator all at once or one after another, and an attempt fails at once or takes a while.
    """
    began_s = EPOCH_S + start_s
    lost_s = [began_s + rng.random() * spread_s for _ in range(workers)]
    over_s = began_s + outage_s
    tried = attempts_of(paces(workers), lost_s, over_s, lasts_s)
    late_s = [times[-1] - max(over_s, lost) for times, lost in zip(tried, lost_s, strict=True)]
    assert max(late_s) <= BACK_WITHIN_S + ROUNDING_S
    assert most_in_a_second([each for times in tried for each in times]) <= PER_S


def test_a_small_fleet_is_back_at_once():
    """Up to ten connections are tried twice a second each."""
    for workers, connections in ((1, 1), (10, 1), (2, 4)):
        tried = attempts_of(paces(workers, connections), [EPOCH_S] * workers * connections, EPOCH_S + 60)
        gaps = {round(after - before, 3) for times in tried for before, after in itertools.pairwise(times)}
        assert {0.5} == gaps


@pytest.mark.parametrize(
    ("connections", "round_s"), [(1, 0.05), (2, 0.1), (3, 0.25), (5, 0.25), (6, 0.5), (10, 0.5), (40, 2.0)]
)
def test_after_a_drop_at_a_suspect(connections, round_s):
    """The next wait, and no later one, is as short as it can be if others do the same, each in slots of its own."""
    fleet = paces(connections)
    used, now_s = [set() for _ in fleet], [EPOCH_S] * connections
    for _ in range(3):
        for number, pace in enumerate(fleet):
            for hurries, longest_s in ((False, max(0.5, round_s)), (True, round_s)):
                if hurries:
                    pace.dropped_at_suspect()
                wait_s = pace.wait_s(now_s[number])
                assert 0.025 <= wait_s <= longest_s + 0.075, "the slot of the last attempt is not used again"
                now_s[number] += wait_s
                used[number].add(int(now_s[number] * PER_S))
    assert 6 * connections == len(set().union(*used)) == sum(map(len, used))


def test_connections_count_like_workers():
    """100 workers with two connections each take ten seconds for a round: the limit is the Facilitator's."""
    tried = attempts_of(paces(100, 2), [EPOCH_S] * 200, EPOCH_S + 30)
    assert PER_S == most_in_a_second([each for times in tried for each in times])
    assert max(times[0] for times in tried) <= EPOCH_S + 10


@given(early_s=st.floats(-0.02, 0.02), step_s=st.sampled_from([0.0, -3600.0, 3600.0]))
def test_clock(early_s, step_s):
    """A timer that is early or late, and a clock that is set, cause no second attempt in a slot, and no longer wait."""
    [pace] = paces(1)
    now_s = EPOCH_S
    for _ in range(20):
        wait_s = pace.wait_s(now_s)
        assert -0.001 <= wait_s <= 0.5 + 0.03
        now_s += wait_s + early_s
    waited_s = pace.wait_s(now_s + step_s)
    assert 0 <= waited_s <= 1.0


def test_refused():
    """After sign-ins that were refused the waits grow, and after one that was accepted they are short again."""
    [pace] = paces(1)
    waits_s = []
    for _ in range(8):
        pace.refused()
        waits_s.append(pace.wait_s(EPOCH_S))
    assert [0.5, 1, 2, 4, 8, 16, 30, 30] == pytest.approx(waits_s, abs=0.55)
    pace.signed_in()
    assert pace.wait_s(EPOCH_S) <= 0.5 + 0.05


def test_refused_together():
    """If all are refused at once, as when their validator is removed, they come back in slots of their own as well."""
    fleet = paces(100)
    for pace in fleet:
        pace.refused()
    tried = [EPOCH_S + pace.wait_s(EPOCH_S) for pace in fleet]
    assert most_in_a_second(tried) <= PER_S


def test_place():
    """Workers that know the same others have places of their own; one that knows nobody is alone."""
    alive = {"c", "a", "b"}
    assert [Place(0, 3), Place(1, 3), Place(2, 3)] == [place_of(worker, alive) for worker in sorted(alive)]
    assert Place(1, 4) == place_of("aa", alive)
    assert Place(0, 1) == place_of("a", set())


def test_place_of_a_stranger():
    """Workers that know nobody yet are spread over many places, so that they do not all use the same slots."""
    rng = random.Random(1)
    places = [any_place(rng.random) for _ in range(100)]
    assert {100} == {place.workers for place in places}
    assert len({place.rank for place in places}) > 50
    assert [Place(0, 100), Place(99, 100)] == [any_place(lambda: 0.0), any_place(lambda: 0.999999)]
