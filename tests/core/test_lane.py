import pytest

from relay.contract.subjects import Reason
from relay.contract.wire import Frame
from relay.core import lane as lane_module
from relay.core.continuity import ConsumerState, Continuity
from relay.core.lane import Lane, State, Update
from relay.core.verdict import DeadLetter, Outcome

FRAME = Frame(b"{}", "accepted")
DOOM = DeadLetter(Reason.REFUSED, "because")
NOTHING = ConsumerState(pending=0, delivered=0, delivered_count=0)


def lane_with(*updates, held=False):
    lane = Lane(0, Continuity(patience_s=1.0))
    if not held:
        lane.continuity.resolve(NOTHING, lane.count_up_to, 0.0)
    for update in updates:
        lane.deliver(update)
    return lane


def update(sequence, job="a", doom=None):
    return Update(0, sequence, job, f"delivery of {sequence}", None if doom else FRAME, doom)


def taken(lane):
    """The sequences of all that may go now, in the order in which they are given out."""
    return [update.sequence for update in iter(lambda: lane.take(0.0), None)]


def doomed(lane):
    return [update.sequence for update in iter(lambda: lane.take_doomed(0.0), None)]


def test_only_the_head_of_a_job_goes():
    """The later updates of a job stay until the one before them is settled, then they go one by one."""
    updates = [update(1), update(2), update(3)]
    lane = lane_with(*updates)
    rounds = []
    for head in updates:
        rounds.append(taken(lane))
        lane.settle(head, Outcome.ACKNOWLEDGED)
    assert [[1], [2], [3]] == rounds


def test_heads_of_different_jobs_go_oldest_first():
    """Jobs do not wait for each other; among their heads the stream decides."""
    lane = lane_with(update(3, "c"), update(1, "a"), update(4, "c"), update(2, "b"))
    assert [1, 2, 3] == taken(lane)


def test_updates_at_hand_are_sorted_by_stream_sequence():
    """However they arrive, the updates of one job go in stream order."""
    updates = {n: update(n) for n in (3, 1, 2)}
    lane = lane_with(*updates.values())
    order = []
    for _ in updates:
        order += taken(lane)
        lane.settle(updates[order[-1]], Outcome.ACKNOWLEDGED)
    assert [1, 2, 3] == order


def test_an_older_update_goes_before_a_newer_one_that_is_ready():
    """An update that comes back while a newer one of its job is free to go takes its place."""
    old, new = update(1), update(2)
    lane = lane_with(new)
    lane.deliver(old)
    first = taken(lane)
    lane.settle(old, Outcome.ACKNOWLEDGED)
    assert ([1], [2]) == (first, taken(lane))


def test_an_older_update_goes_while_a_newer_one_waits():
    """A backoff of a newer update does not keep an older one that comes back, but is itself kept behind it."""
    old, new = update(1), update(2)
    lane = lane_with(new)
    taken(lane)
    lane.retry(new, 5.0)
    lane.deliver(old)
    first = taken(lane)
    lane.wake(5.0)
    while_old_is_out = taken(lane)
    lane.settle(old, Outcome.ACKNOWLEDGED)
    assert ([1], [], [2]) == (first, while_old_is_out, taken(lane))


def test_a_backoff_outlasts_the_older_update_that_came_back():
    """Settling the older update does not shorten the wait of the newer one."""
    old, new = update(1), update(2)
    lane = lane_with(new)
    taken(lane)
    lane.retry(new, 5.0)
    lane.deliver(old)
    taken(lane)
    lane.settle(old, Outcome.ACKNOWLEDGED)
    early = taken(lane)
    lane.wake(5.0)
    assert ([], [2]) == (early, taken(lane))


@pytest.mark.parametrize("comes_in", [lambda lane, new: lane.put_back(new), lambda lane, new: lane.retry(new, 5.0)])
def test_an_older_update_waits_for_a_newer_one_that_is_out(comes_in):
    """What is out cannot be called back; when it comes in unsettled, the older one goes first."""
    old, new = update(1), update(2)
    lane = lane_with(new)
    taken(lane)
    lane.deliver(old)
    while_new_is_out = taken(lane)
    comes_in(lane, new)
    after = taken(lane)
    lane.wake(5.0)
    assert ([], [1], []) == (while_new_is_out, after, taken(lane))


def test_an_older_update_goes_after_a_newer_one_that_settled():
    """If the newer one is settled before, the older one is not forgotten."""
    old, new = update(1), update(2)
    lane = lane_with(new)
    taken(lane)
    lane.deliver(old)
    lane.settle(new, Outcome.ACKNOWLEDGED)
    assert [1] == taken(lane)


@pytest.mark.parametrize("state", [State.READY, State.OUT, State.WAITING])
def test_a_redelivery_replaces_the_handle_and_nothing_else(state):
    """In every state a redelivery gives the newest handle, resets the ack timer's age, and is not given out twice."""
    head, queued = update(1), update(2)
    lane = lane_with(head, queued)
    if state is not State.READY:
        lane.take(0.0)
    if state is State.WAITING:
        lane.retry(head, 5.0)
    known = lane.redelivered(1, "again 1", 7.0), lane.redelivered(2, "again 2", 8.0)
    assert (True, True) == known
    assert (state, State.QUEUED) == (head.state, queued.state)
    lane.wake(5.0)
    taken(lane)
    assert [("again 1", 7.0), ("again 2", 8.0)] == [(u.delivery, u.touched_s) for u in (head, queued)]
    assert (2, 1, []) == (len(lane), lane.out, taken(lane))


def test_what_is_not_at_hand_is_no_redelivery():
    """A sequence that was never delivered, or is settled, has no handle to replace."""
    head = update(1)
    lane = lane_with(head)
    taken(lane)
    lane.settle(head, Outcome.ACKNOWLEDGED)
    assert (False, False) == (lane.redelivered(1, "again", 1.0), lane.redelivered(2, "new", 1.0))


def test_how_an_update_was_settled_is_remembered():
    """A lost ack can be repeated, because the lane knows the outcome of what it settled."""
    updates = [update(n, job=str(n)) for n in (1, 2, 3)]
    lane = lane_with(*updates)
    taken(lane)
    for one, outcome in zip(updates, Outcome, strict=True):
        lane.settle(one, outcome)
    assert [*Outcome, None] == [lane.outcome_of(n) for n in (1, 2, 3, 4)]


def test_the_memory_of_what_was_settled_is_bounded():
    """The oldest outcome is forgotten for the newest when the memory is full."""
    bound = lane_module._SETTLED_REMEMBERED
    lane = lane_with()
    for sequence in range(1, bound + 3):
        lane.deliver(update(sequence))
        lane.settle(lane.take(0.0), Outcome.ACKNOWLEDGED)
    remembered = [n for n in range(1, bound + 3) if lane.outcome_of(n) is not None]
    assert (bound, 3, bound + 2) == (len(remembered), remembered[0], remembered[-1])


def test_a_settled_lane_keeps_nothing_of_its_jobs():
    """When all is settled the lane is as empty as before."""
    lane = lane_with(update(1), update(2, "b"), update(3))
    while (head := lane.take(0.0)) is not None:
        lane.settle(head, Outcome.ACKNOWLEDGED)
    assert (0, 0, {}) == (len(lane), lane.out, lane._jobs)


def test_a_held_lane_gives_out_nothing():
    """While an older update may still come, neither the Facilitator nor the dead letters get any."""
    lane = lane_with(update(2), update(3, "b", DOOM), held=True)
    while_held = taken(lane), doomed(lane)
    lane.deliver(update(1))
    lane.continuity.resolve(NOTHING, lane.count_up_to, 0.0)
    assert (([], []), [1], [3]) == (while_held, taken(lane), doomed(lane))


def test_the_doomed_go_to_the_dead_letters_only():
    """A head that cannot be sent is never taken for the Facilitator, and the others never for the dead letters."""
    lane = lane_with(update(1, "a", DOOM), update(2, "b"), update(3, "c", DOOM))
    assert ([2], [1, 3]) == (taken(lane), doomed(lane))


def test_the_doomed_wait_their_turn():
    """An update that cannot be sent goes no earlier than its job's older one is settled, and holds the later one."""
    first, doomed_second = update(1), update(2, doom=DOOM)
    lane = lane_with(first, doomed_second, update(3))
    early = taken(lane), doomed(lane)
    lane.settle(first, Outcome.ACKNOWLEDGED)
    then = taken(lane), doomed(lane)
    lane.settle(doomed_second, Outcome.DEAD_LETTERED)
    assert (([1], []), ([], [2]), [3]) == (early, then, taken(lane))


def test_a_doomed_update_gives_way_to_an_older_one_that_comes_back():
    """The dead letters, too, are written in stream order."""
    old, new = update(1), update(2, doom=DOOM)
    lane = lane_with(new, old)
    first = doomed(lane), taken(lane)
    lane.settle(old, Outcome.ACKNOWLEDGED)
    assert (([], [1]), [2]) == (first, doomed(lane))


def test_what_is_doomed_while_it_is_out_goes_to_the_dead_letters():
    """An update put back with a doom, or waiting because its dead letter could not be written, is not sent again."""
    head = update(1)
    lane = lane_with(head)
    taken(lane)
    head.doom = DOOM
    lane.put_back(head)
    once = taken(lane), doomed(lane)
    lane.retry(head, 5.0)
    lane.wake(5.0)
    assert (([], [1]), ([], [1])) == (once, (taken(lane), doomed(lane)))


def test_what_is_put_back_goes_again_before_its_successors():
    """A break costs an update nothing: it is free at once, still in front of its job."""
    first, second = update(1, "a"), update(2, "b")
    lane = lane_with(first, second, update(3, "a"))
    taken(lane)
    lane.put_back(second)
    lane.put_back(first)
    assert ([1, 2], 2) == (taken(lane), lane.out)


def test_a_retry_holds_its_own_job_only():
    """While a head waits, its job waits, and the others go on."""
    head = update(1)
    lane = lane_with(head, update(2), update(3, "b"))
    lane.take(0.0)
    lane.retry(head, 5.0)
    assert [3] == taken(lane)


def test_wake_lets_go_what_is_due_and_tells_when_the_next_is():
    """Waits end exactly when they are due; what is returned is the earliest of those left, or None."""
    updates = {n: update(n, job=str(n)) for n in (1, 2, 3)}
    lane = lane_with(*updates.values())
    never = lane.wake(0.0)
    taken(lane)
    for sequence, due_s in ((1, 9.0), (2, 5.0), (3, 5.0)):
        lane.retry(updates[sequence], due_s)
    seen = [(lane.wake(now), taken(lane)) for now in (4.9, 5.0, 8.0, 9.0, 10.0)]
    assert never is None
    assert [(5.0, []), (9.0, [2, 3]), (9.0, []), (None, [1]), (None, [])] == seen


def test_the_second_backoff_counts_not_the_first():
    """An update that went again and was refused again waits its new wait in full."""
    head = update(1)
    lane = lane_with(head)
    for due_s in (5.0, 20.0):
        lane.take(0.0)
        lane.retry(head, due_s)
        lane.wake(5.0)
    assert (20.0, [], None, [1]) == (lane.wake(19.9), taken(lane), lane.wake(20.0), taken(lane))


def test_the_lane_tells_what_it_has():
    """Counts and lists cover every update at hand, whatever its state; only what is out is not `unsent`."""
    updates = [update(1, "a"), update(2, "a"), update(3, "b"), update(4, "c")]
    lane = lane_with(*updates)
    lane.take(0.0)
    lane.retry(updates[0], 5.0)
    lane.take(0.0)
    assert (4, 1, {1, 2, 3, 4}) == (len(lane), lane.out, {u.sequence for u in lane.at_hand()})
    assert {1, 2, 4} == {u.sequence for u in lane.unsent()}
    assert [0, 1, 3, 4, 4] == [lane.count_up_to(n) for n in (0, 1, 3, 4, 9)]
    assert "<Lane 0: 4 at hand, 1 out>" == repr(lane)


def test_a_held_lane_says_so():
    """The hold is visible where the lane is printed."""
    assert "<Lane 0: 0 at hand, 0 out, held>" == repr(lane_with(held=True))


@pytest.mark.parametrize(
    "misuse",
    [
        lambda lane, _: lane.deliver(update(1)),
        lambda lane, head: lane.settle(head, Outcome.ACKNOWLEDGED),
        lambda lane, head: lane.put_back(head),
        lambda lane, head: lane.retry(head, 5.0),
    ],
    ids=["deliver twice", "settle what is not out", "put back what is not out", "retry what is not out"],
)
def test_a_bug_of_ours_is_noticed(misuse):
    """What no caller may do fails at once instead of corrupting the order."""
    head = update(1)
    lane = lane_with(head)
    with pytest.raises(AssertionError):
        misuse(lane, head)
