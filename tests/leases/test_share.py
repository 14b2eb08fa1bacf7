"""How lanes are assigned: evenly, with the same result in every worker, and with as few moves as possible."""

from collections import Counter
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from relay.leases.share import share_out

NAMES = [f"worker-{letter}" for letter in "abcdefg"]
GONE = ["gone-x", "gone-y"]

lane_counts = st.integers(1, 24)
crews = st.sets(st.sampled_from(NAMES), min_size=1)


@st.composite
def situations(draw):
    """Lanes, living workers, and any owners: uneven, dead, or of lanes that no longer exist."""
    lanes = draw(lane_counts)
    owners = draw(st.dictionaries(st.integers(0, lanes + 3), st.sampled_from(NAMES + GONE)))
    return lanes, draw(crews), owners


def moved(before, after):
    return {lane for lane in after if before.get(lane) != after[lane]}


def most_kept(lanes, workers, owners):
    """The largest number of driven lanes that can stay where they are, over all ways to assign the odd lanes."""
    has = Counter(owner for lane, owner in owners.items() if lane < lanes)
    even, left_over = divmod(lanes, len(workers))
    return max(
        sum(min(has[worker], even + (worker in favoured)) for worker in workers)
        for favoured in combinations(sorted(workers), left_over)
    )


@given(situations(), st.randoms(use_true_random=False))
def test_everybody_agrees(situation, rng):
    """The order in which a worker learns of workers and owners does not matter."""
    lanes, workers, owners = situation
    shuffled_workers, shuffled_owners = list(workers), list(owners.items())
    rng.shuffle(shuffled_workers)
    rng.shuffle(shuffled_owners)
    assert share_out(lanes, sorted(workers), owners) == share_out(lanes, shuffled_workers, dict(shuffled_owners))


@given(situations())
def test_one_worker_per_lane(situation):
    """Exactly the existing lanes are assigned, each to a living worker."""
    lanes, workers, owners = situation
    shares = share_out(lanes, workers, owners)
    assert set(range(lanes)) == set(shares)
    assert set() == set(shares.values()) - workers


def test_no_workers():
    """Without a living worker no lane is assigned."""
    assert {} == share_out(4, [], {0: "gone-x"})


@given(situations())
def test_even(situation):
    """No worker gets over one lane more than another."""
    lanes, workers, owners = situation
    got = Counter(share_out(lanes, workers, owners).values())
    even, left_over = divmod(lanes, len(workers))
    assert sorted([even] * (len(workers) - left_over) + [even + 1] * left_over) == sorted(got[each] for each in workers)


@given(situations())
def test_stable(situation):
    """If the shares are as they should be, nothing moves."""
    lanes, workers, owners = situation
    shares = share_out(lanes, workers, owners)
    assert shares == share_out(lanes, workers, shares)


@given(situations())
def test_no_needless_move(situation):
    """As many driven lanes stay with their worker as even shares allow."""
    lanes, workers, owners = situation
    shares = share_out(lanes, workers, owners)
    assert most_kept(lanes, workers, owners) == sum(owners.get(lane) == worker for lane, worker in shares.items())


@given(lane_counts, st.permutations(NAMES), st.integers(1, len(NAMES) - 1))
def test_join(lanes, names, count):
    """A worker that joins gets its even share, and no lane moves between the others."""
    crew, joiner = names[:count], names[count]
    before = share_out(lanes, crew, {})
    after = share_out(lanes, [*crew, joiner], before)
    changed = moved(before, after)
    assert lanes // (count + 1) == len(changed)
    assert {joiner} >= {after[lane] for lane in changed}


@given(lane_counts, st.permutations(NAMES), st.integers(2, len(NAMES)))
def test_leave(lanes, names, count):
    """When a worker leaves or dies, its lanes go to the others, and no other lane moves."""
    crew, leaver = names[: count - 1], names[count - 1]
    before = share_out(lanes, [*crew, leaver], {})
    after = share_out(lanes, crew, before)
    assert {lane for lane, worker in before.items() if worker == leaver} == moved(before, after)


@given(lane_counts, st.lists(crews, min_size=2, max_size=8))
def test_many_changes(lanes, history):
    """After any history of joins and leaves the shares are even, and no move was needless."""
    shares = {}
    for workers in history:
        before, shares = shares, share_out(lanes, workers, shares)
        got = Counter(shares.values())
        assert max(got[each] for each in workers) - min(got[each] for each in workers) <= 1
        assert most_kept(lanes, workers, before) == lanes - len(moved(before, shares))


@given(situations())
def test_dead_owners(situation):
    """A dead owner counts like no owner."""
    lanes, workers, owners = situation
    alive = {lane: owner for lane, owner in owners.items() if owner in workers}
    assert share_out(lanes, workers, alive) == share_out(lanes, workers, owners)
