import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.continuity import ConsumerState, Continuity

PATIENCE_S = 11.0


def at_hand(count):
    """There are `count` updates at hand, up to any sequence."""
    return lambda _sequence: count


def flowing(delivered_count=12):
    """A lane that was released, at time 0, after `delivered_count` deliveries."""
    continuity = Continuity(PATIENCE_S)
    state = ConsumerState(pending=0, delivered=10, delivered_count=delivered_count)
    continuity.began(state, 0.0)
    continuity.resolve(state, at_hand(0), 0.0)
    return continuity


def test_a_lane_is_held_until_the_consumer_was_looked_at():
    """A lane is held until the consumer's state shows what an earlier worker had at hand, even if pulling has begun."""
    continuity = Continuity(PATIENCE_S)
    fresh = continuity.held
    continuity.began(ConsumerState(pending=0, delivered=0, delivered_count=0), 0.0)
    assert (True, True) == (fresh, continuity.held)


def test_a_takeover_is_over_when_everything_pending_has_come_back():
    """The lane is held while fewer updates are at hand than the server has pending, then it is released."""
    continuity = Continuity(PATIENCE_S)
    state = ConsumerState(pending=3, delivered=10, delivered_count=12)
    continuity.began(state, 0.0)
    seen = [(continuity.resolve(state, at_hand(count), 1.0), continuity.held) for count in (0, 2, 3)]
    assert [(3, True), (1, True), (0, False)] == seen


def test_a_late_acknowledgement_does_not_end_a_takeover():
    """An update that the previous worker acknowledges late is at hand, not pending. It replaces no missing one."""
    continuity = Continuity(PATIENCE_S)
    continuity.began(ConsumerState(pending=3, delivered=10, delivered_count=12), 0.0)
    after_the_ack = ConsumerState(pending=2, delivered=10, delivered_count=14)
    seen = [(continuity.resolve(after_the_ack, at_hand(count), 1.0), continuity.held) for count in (2, 3)]
    assert [(1, True), (0, False)] == seen


def test_more_at_hand_than_pending_misses_nothing():
    """If more updates are at hand than the server counts as pending, the number of missing ones is 0, not negative."""
    continuity = Continuity(PATIENCE_S)
    assert 0 == continuity.resolve(ConsumerState(pending=1, delivered=10, delivered_count=12), at_hand(2), 0.0)


def test_unbroken_deliveries_flow():
    """A lane is not held if its deliveries are numbered without a gap."""
    continuity = flowing(delivered_count=12)
    for number in (13, 14, 15):
        continuity.delivered([number], 1.0)
    assert not continuity.held


@pytest.mark.parametrize("number", [14, 100, 12, 1])
def test_a_gap_in_the_deliveries_holds_the_lane(number):
    """A delivery whose number is not the next one shows that another delivery was lost."""
    continuity = flowing(delivered_count=12)
    continuity.delivered([number], 1.0)
    assert continuity.held


@given(st.lists(st.integers(1, 3), min_size=1, max_size=20))
def test_the_lane_is_held_exactly_if_a_delivery_is_missing(steps):
    """A lane is held from a gap on, whatever comes after it; without a gap it is not held."""
    continuity = flowing(delivered_count=0)
    number = 0
    for step in steps:
        number += step
        continuity.delivered([number], 1.0)
    assert (set(steps) != {1}) == continuity.held


def test_after_a_gap_is_resolved_the_count_goes_on_from_there():
    """One gap causes one hold: after it is resolved, the next delivery in sequence does not hold the lane again."""
    continuity = flowing(delivered_count=12)
    continuity.delivered([15], 1.0)
    continuity.resolve(ConsumerState(pending=3, delivered=13, delivered_count=15), at_hand(3), 2.0)
    continuity.delivered([16], 3.0)
    assert not continuity.held


@pytest.mark.parametrize(("delivered_count", "held"), [(13, False), (14, True), (12, True), (0, True)])
def test_pulling_again_holds_only_if_something_was_delivered_in_between(delivered_count, held):
    """After a restart of the pulls, the server's count shows whether a delivery was lost with the old ones."""
    continuity = flowing(delivered_count=12)
    continuity.delivered([13], 1.0)
    continuity.began(ConsumerState(pending=1, delivered=11, delivered_count=delivered_count), 2.0)
    assert held == continuity.held


def test_pulling_again_does_not_let_go():
    """A restart of the pulls does not release a lane that was held before."""
    continuity = Continuity(PATIENCE_S)
    state = ConsumerState(pending=1, delivered=10, delivered_count=12)
    continuity.began(state, 0.0)
    continuity.began(state, 1.0)
    assert continuity.held


@pytest.mark.parametrize(("now", "held"), [(10.9, True), (11.0, False)])
def test_patience_ends(now, held):
    """What does not come back within `patience_s` is reported as missing, and the lane is released."""
    continuity = Continuity(PATIENCE_S)
    state = ConsumerState(pending=2, delivered=10, delivered_count=12)
    continuity.began(state, 0.0)
    assert (1, held) == (continuity.resolve(state, at_hand(1), now), continuity.held)


def gap(continuity):
    continuity.delivered([20], 5.0)


def restart(continuity):
    continuity.began(ConsumerState(pending=1, delivered=10, delivered_count=12), 5.0)


def reconnect(continuity):
    continuity.be_patient(5.0)


def unbroken(continuity):
    continuity.delivered([13], 5.0)


@pytest.mark.parametrize(
    ("what_happens", "over_s"), [(gap, 16.0), (restart, 16.0), (reconnect, 16.0), (unbroken, 11.0)]
)
def test_patience_starts_anew_with_each_reason_to_wait(what_happens, over_s):
    """A gap, a restart and a reconnect start the full waiting time again; a delivery in sequence does not."""
    continuity = flowing(delivered_count=12)
    what_happens(continuity)
    continuity.held = True
    held: list[bool] = []
    for now_s in (over_s - 0.1, over_s):
        continuity.resolve(ConsumerState(pending=9, delivered=10, delivered_count=99), at_hand(0), now_s)
        held.append(continuity.held)
    assert [True, False] == held


def taken_over(pending=3, delivered=10, ack_floor=4):
    """A takeover at time 0 from a worker that had `pending` updates at hand, and the consumer's state."""
    continuity = Continuity(PATIENCE_S)
    state = ConsumerState(pending=pending, delivered=delivered, delivered_count=delivered, ack_floor=ack_floor)
    continuity.began(state, 0.0)
    return continuity, state


def look(continuity, state, count, now_s):
    """What a look at the consumer leads to: what is asked for again, and whether the lane is still held."""
    overdue = continuity.overdue(state, now_s)
    continuity.resolve(state, at_hand(count), now_s)
    return overdue, continuity.held


def test_what_does_not_come_back_by_itself_is_asked_for():
    """A server whose clock went back redelivers late, so after half of the patience all that is missing is asked for,
    once; the lane is held for the other half.
    """
    continuity, state = taken_over()
    looks = [look(continuity, state, 1, now_s) for now_s in (5.4, 5.5, 5.7, 10.9, 11.0)]
    assert [(range(0), True), (range(5, 11), True), (range(0), True), (range(0), True), (range(0), False)] == looks


def test_patience_does_not_end_before_it_was_asked():
    """If the worker stood still meanwhile, it asks late, and waits for the answer."""
    continuity, state = taken_over()
    assert (range(5, 11), True) == look(continuity, state, 1, 100.0)
    assert [True, False] == [look(continuity, state, 1, now_s)[1] for now_s in (105.4, 105.5)]


def test_many_are_asked_for_in_turn():
    """There is a limit to what is asked for together, and the lane is held until all was asked for."""
    continuity, state = taken_over(delivered=12_004)
    looks = [look(continuity, state, 1, now_s) for now_s in (9.0, 14.4, 19.8, 25.2, 25.3)]
    assert [range(5, 5005), range(5005, 10_005), range(10_005, 12_005), range(0), range(0)] == [
        overdue for overdue, _ in looks
    ]
    assert [True, True, True, True, False] == [held for _, held in looks]


def test_nothing_is_asked_for_while_nothing_is_missing():
    """A lane that flows asks for nothing, however long that is."""
    continuity, state = flowing(), ConsumerState(pending=9, delivered=10, delivered_count=12)
    assert (range(0), False) == look(continuity, state, 0, 1e6)


def test_patience_begins_anew_with_each_update_that_comes_back():
    """What comes back slowly, because it is much, is neither given up nor asked for."""
    continuity, state = taken_over(pending=4)
    came = [(0, 0.0), (1, 5.0), (2, 10.0), (3, 15.0)]
    assert [(range(0), True)] * 4 == [look(continuity, state, count, now_s) for count, now_s in came]
    assert (range(5, 11), True) == look(continuity, state, 3, 20.5)
    assert (range(0), False) == look(continuity, state, 4, 21.0)


def test_an_old_look_does_not_end_a_new_hold():
    """A state that the server reported before the gap was noticed does not release the lane."""
    continuity = flowing(delivered_count=12)
    continuity.delivered([15], 1.0)
    continuity.resolve(ConsumerState(pending=0, delivered=10, delivered_count=12), at_hand(0), 2.0)
    assert continuity.held
