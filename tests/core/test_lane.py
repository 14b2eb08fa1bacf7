import math

import pytest
from delivery_kit import JOBS, FakeDelivery

from relay.contract.subjects import Reason
from relay.contract.wire import Repair
from relay.core import lane as lane_module
from relay.core.backoff import Backoff
from relay.core.continuity import ConsumerState, Continuity
from relay.core.lane import Lane
from relay.core.progress import Settled
from relay.core.turns import Turns
from relay.core.update import DeadLetterHorizon, State
from relay.core.verdict import DeadLetter, Outcome, Retry, RetryPolicy

UNFIT = DeadLetter(Reason.REFUSED, "because")
POLICY = RetryPolicy(3, Backoff(1.0, 8.0, lambda: 0.5))
ANY_BYTES = 1 << 40
NOTHING = ConsumerState(pending=0, delivered=0, delivered_count=0)


def lane_with(*deliveries, held=False):
    lane = Lane(0, Continuity(patience_s=1.0), DeadLetterHorizon(-math.inf, -math.inf))
    if not held:
        lane.resolve(NOTHING, 0.0)
    for delivery in deliveries:
        admit(lane, delivery)
    return lane


def admit(lane, *deliveries):
    """Admit deliveries that are numbered without a gap; test_continuity tests gaps."""
    lane.continuity._next = deliveries[0].consumer_sequence
    return lane.admit(deliveries, 0.0)


def take(lane):
    """All updates that may be sent now, in the order in which the lane returns them."""
    return list(iter(lambda: lane.take(0.0), None))


def taken(lane):
    return [update.sequence for update in take(lane)]


def dead_letters(lane):
    return [update.sequence for update in iter(lambda: lane.take_dead_letter(0.0), None)]


def acknowledge(lane, update):
    lane.settle(update, Outcome.ACKNOWLEDGED)


# --- admission


class Bare(FakeDelivery):
    """An update that lacks a field which the Facilitator needs and the relay can add."""

    body = b'{"uuid":"%b","status":"accepted"}' % JOBS["a"].encode()


def test_admission_tells_what_others_must_act_on():
    """Admission returns the batch's repairs, malformed traceparents and hold; the repaired text is what is sent."""
    lane = lane_with()
    spoiled, repaired = FakeDelivery(1, "b", headers={"traceparent": "nonsense"}), Bare(2)
    whole, gap = admit(lane, spoiled, repaired), admit(lane, FakeDelivery(3, "c"))
    lane.continuity.delivered([FakeDelivery(4).consumer_sequence + 1], 0.0)
    assert ([Repair.MESSAGE_TYPE_ADDED], 1, False) == (whole.repairs, whole.malformed_traceparents, whole.held)
    assert ([], 0, False, True) == (gap.repairs, gap.malformed_traceparents, gap.held, lane.held)
    assert b'{"message_type":"V0JobStatusUpdate"' == lane._at_hand[2].text[:35]


@pytest.mark.parametrize("state", [State.READY, State.OUT, State.WAITING])
def test_a_redelivery_replaces_the_handle_and_nothing_else(state):
    """In every state a redelivery replaces the delivery and restarts its ack timer; the update is not sent twice."""
    lane = lane_with(FakeDelivery(1), FakeDelivery(2))
    head, queued = sorted(lane.at_hand(), key=lambda update: update.sequence)
    if state is not State.READY:
        lane.take(0.0)
    if state is State.WAITING:
        lane.retry(head, 5.0)
    again = [FakeDelivery(1, deliveries=2), FakeDelivery(2, deliveries=2)]
    lane.admit(again, 7.0)
    assert (state, State.QUEUED) == (head.state, queued.state)
    assert [(delivery, 7.0) for delivery in again] == [(each.delivery, each.touched_s) for each in (head, queued)]
    lane.continuity.held = False
    lane.wake(5.0)
    taken(lane)
    assert (2, 1, []) == (len(lane), lane.out, taken(lane))


@pytest.mark.parametrize("outcome", Outcome)
def test_what_was_settled_is_settled_the_same_way_again(outcome):
    """An update whose ack was lost comes back: it is not sent again, and its outcome is returned."""
    lane = lane_with(FakeDelivery(1))
    lane.settle(lane.take(0.0), outcome)
    again = FakeDelivery(1, deliveries=2)
    assert [(again, outcome)] == admit(lane, again).settled_before
    assert ([], 0, outcome, None) == (taken(lane), len(lane), lane.outcome_of(1), lane.outcome_of(2))


def test_the_memory_of_what_was_settled_is_bounded():
    """When the memory of outcomes is full, the oldest is forgotten."""
    bound = lane_module._SETTLED_REMEMBERED
    lane = lane_with()
    for sequence in range(1, bound + 3):
        admit(lane, FakeDelivery(sequence))
        acknowledge(lane, lane.take(0.0))
    remembered = [n for n in range(1, bound + 3) if lane.outcome_of(n) is not None]
    assert (bound, 3, bound + 2) == (len(remembered), remembered[0], remembered[-1])


@pytest.mark.parametrize(
    ("deliveries", "stored_at_s", "asked"),
    [(1, 50.0, True), (1, 111.0, False), (2, 150.0, True), (2, 161.0, False)],
    ids=["as old as a dead letter then", "newer", "delivered before", "delivered before, newer"],
)
def test_which_updates_may_have_a_dead_letter(deliveries, stored_at_s, asked):
    """A first delivery is looked up if a dead letter older than the worker may be its own; a redelivery, if any may."""
    lane = Lane(0, Continuity(1.0), DeadLetterHorizon(at_start_s=50.0, newest_s=100.0))
    lane.began(ConsumerState(0, 0, 0, made_at_s=60.0), 0.0)
    lane.resolve(NOTHING, 9.0)
    admit(lane, FakeDelivery(1, deliveries=deliveries, stored_at_s=stored_at_s))
    assert ([1] if asked else [], [] if asked else [1]) == (dead_letters(lane), taken(lane))


def test_a_consumer_made_before_the_newest_dead_letter_delivered_it():
    """At its first delivery by a consumer, an update has a dead letter only if an earlier consumer delivered it."""
    lane = Lane(0, Continuity(1.0), DeadLetterHorizon(at_start_s=500.0, newest_s=500.0))
    lane.began(ConsumerState(0, 0, 0, made_at_s=60.0), 0.0)
    lane.resolve(NOTHING, 9.0)
    admit(lane, FakeDelivery(1, "a", stored_at_s=120.0), FakeDelivery(2, "b", stored_at_s=121.0))
    assert ([1], [2]) == (dead_letters(lane), taken(lane))


def test_a_consumer_that_was_made_anew_releases_nothing():
    """What it delivered looks new, but may have been delivered before: only a lane that begins anew can tell."""
    lane = Lane(0, Continuity(1.0), DeadLetterHorizon(-math.inf, -math.inf))
    lane.began(ConsumerState(0, 0, 0, made_at_s=60.0), 0.0)
    admit(lane, FakeDelivery(1, stored_at_s=50.0))
    lane.resolve(ConsumerState(0, 1, 1, made_at_s=70.0), 9.0)
    assert (True, []) == (lane.held, taken(lane))


# --- the order


def test_only_the_head_of_a_job_goes():
    """The later updates of a job wait until the one before is settled, in whatever order they came."""
    lane = lane_with(*(FakeDelivery(n) for n in (3, 1, 2)))
    rounds = []
    for _ in range(3):
        heads = take(lane)
        rounds.append([head.sequence for head in heads])
        acknowledge(lane, *heads)
    assert [[1], [2], [3]] == rounds


def test_heads_of_different_jobs_go_oldest_first():
    """Jobs do not wait for each other; their heads are sent in stream order."""
    lane = lane_with(FakeDelivery(3, "c"), FakeDelivery(1, "a"), FakeDelivery(4, "c"), FakeDelivery(2, "b"))
    assert [1, 2, 3] == taken(lane)


def test_an_older_update_goes_before_a_newer_one_that_is_ready():
    """If an update comes back while a newer one of its job is ready, the older one is sent first."""
    lane = lane_with(FakeDelivery(2), FakeDelivery(1))
    (old,) = take(lane)
    acknowledge(lane, old)
    assert (1, [2]) == (old.sequence, taken(lane))


def test_an_older_update_goes_while_a_newer_one_waits():
    """An older update that comes back is sent while a newer one waits for its retry; the newer one must wait longer."""
    lane = lane_with(FakeDelivery(2))
    lane.retry(lane.take(0.0), 5.0)
    admit(lane, FakeDelivery(1))
    (old,) = take(lane)
    lane.wake(5.0)
    while_old_is_out = taken(lane)
    acknowledge(lane, old)
    assert (1, [], [2]) == (old.sequence, while_old_is_out, taken(lane))


def test_a_backoff_outlasts_the_older_update_that_came_back():
    """When the older update is settled, the newer one still waits for the rest of its backoff."""
    lane = lane_with(FakeDelivery(2))
    lane.retry(lane.take(0.0), 5.0)
    admit(lane, FakeDelivery(1))
    acknowledge(lane, lane.take(0.0))
    early = taken(lane)
    lane.wake(5.0)
    assert ([], [2]) == (early, taken(lane))


@pytest.mark.parametrize("comes_in", [lambda lane, new: lane.put_back(new), lambda lane, new: lane.retry(new, 5.0)])
def test_an_older_update_waits_for_a_newer_one_that_is_out(comes_in):
    """If a newer update is in flight, the older one waits; if the newer one is then not settled, it goes first."""
    lane = lane_with(FakeDelivery(2))
    new = lane.take(0.0)
    admit(lane, FakeDelivery(1))
    while_new_is_out = taken(lane)
    comes_in(lane, new)
    after = taken(lane)
    lane.wake(5.0)
    assert ([], [1], []) == (while_new_is_out, after, taken(lane))


def test_an_older_update_goes_after_a_newer_one_that_settled():
    """An older update that comes back is still sent if the newer one was settled first."""
    lane = lane_with(FakeDelivery(2))
    new = lane.take(0.0)
    admit(lane, FakeDelivery(1))
    acknowledge(lane, new)
    assert [1] == taken(lane)


def test_a_settled_lane_keeps_nothing_of_its_jobs():
    """When all is settled, the lane keeps nothing of its jobs."""
    lane = lane_with(FakeDelivery(1), FakeDelivery(2, "b"), FakeDelivery(3))
    while (head := lane.take(0.0)) is not None:
        acknowledge(lane, head)
    assert (0, 0, {}) == (len(lane), lane.out, lane._jobs)


@pytest.mark.parametrize("stopped", ["held", "lease over"])
def test_a_stopped_lane_gives_out_nothing(stopped):
    """While an older update may still come back, or without the lease, nothing is sent or dead-lettered."""
    lane = lane_with(FakeDelivery(2), FakeDelivery(3, "b", fit=False), held=stopped == "held")
    if stopped == "lease over":
        lane.ours_until_s = 0.0
    while_stopped = taken(lane), dead_letters(lane)
    lane.ours_until_s = math.inf
    lane.resolve(NOTHING, 0.0)
    assert (([], []), [2], [3]) == (while_stopped, taken(lane), dead_letters(lane))


# --- dead letters


def test_what_cannot_be_sent_goes_to_the_dead_letters_only():
    """A head that cannot be sent is returned only to be dead-lettered; the others are returned only to be sent."""
    lane = lane_with(FakeDelivery(1, "a", fit=False), FakeDelivery(2, "b"), FakeDelivery(3, "c", fit=False))
    assert ([2], [1, 3]) == (taken(lane), dead_letters(lane))


def test_dead_letters_wait_their_turn():
    """An update that cannot be sent is dead-lettered after its job's older update, and before the next is sent."""
    lane = lane_with(FakeDelivery(1), FakeDelivery(2, fit=False), FakeDelivery(3))
    (first,) = take(lane)
    early = dead_letters(lane)
    acknowledge(lane, first)
    second = lane.take_dead_letter(0.0)
    while_second_is_out = taken(lane)
    lane.settle(second, Outcome.DEAD_LETTERED)
    assert ([], 2, [], [3]) == (early, second.sequence, while_second_is_out, taken(lane))


def test_a_dead_letter_gives_way_to_an_older_update_that_comes_back():
    """Dead letters are written in stream order, too."""
    lane = lane_with(FakeDelivery(2, fit=False), FakeDelivery(1))
    early, (old,) = dead_letters(lane), take(lane)
    acknowledge(lane, old)
    assert ([], 1, [2]) == (early, old.sequence, dead_letters(lane))


def test_a_permanent_fault_leads_to_the_dead_letters():
    """An update with a permanent fault, or whose dead letter could not be written yet, is not sent again."""
    lane = lane_with(FakeDelivery(1))
    (head,) = take(lane)
    lane.fail(head, UNFIT, 0.0)
    once = taken(lane), dead_letters(lane)
    lane.retry(head, 5.0)
    lane.wake(5.0)
    assert (([], [1]), ([], [1]), 1) == (once, (taken(lane), dead_letters(lane)), head.attempts)


@pytest.mark.parametrize(("fit", "expected"), [(True, (None, [1], [])), (False, ("invalid_json", [], []))])
def test_an_update_that_turns_out_to_have_no_dead_letter(fit, expected):
    """An update without a dead letter is sent, or returned to be dead-lettered; it is not looked up again."""
    lane = Lane(0, Continuity(1.0), DeadLetterHorizon())
    lane.resolve(NOTHING, 9.0)
    admit(lane, FakeDelivery(1, fit=fit))
    update = lane.take_dead_letter(0.0)
    to_write = lane.has_no_dead_letter(update)
    assert expected == (to_write and to_write.reason, taken(lane), dead_letters(lane))


# --- attempts


def test_what_is_put_back_goes_again_before_its_successors():
    """An update lost with its connection is ready at once, before its job's later ones, and no attempt is counted."""
    lane = lane_with(FakeDelivery(1, "a"), FakeDelivery(2, "b"), FakeDelivery(3, "a"))
    first, second = take(lane)
    lane.put_back(second)
    lane.put_back(first)
    assert ([1, 2], 2, [0, 0]) == (taken(lane), lane.out, [first.attempts, second.attempts])


def test_a_retry_holds_its_own_job_only():
    """While a head waits for its retry, its job waits and other jobs go on; the attempt is counted."""
    lane = lane_with(FakeDelivery(1), FakeDelivery(2), FakeDelivery(3, "b"))
    head = lane.take(0.0)
    lane.fail(head, Retry("refused", 5.0), 1.0)
    assert (6.0, [3], 1) == (lane.wake(1.0), taken(lane), head.attempts)


def test_wake_frees_what_is_due_and_tells_when_the_next_is():
    """Retries become ready exactly when they are due. `wake` returns when the next is due, or None."""
    lane = lane_with(*(FakeDelivery(n, job) for n, job in ((1, "a"), (2, "b"), (3, "c"))))
    never = lane.wake(0.0)
    for update, due_s in zip(take(lane), (9.0, 5.0, 5.0), strict=True):
        lane.retry(update, due_s)
    seen = [(lane.wake(now_s), taken(lane)) for now_s in (4.9, 5.0, 8.0, 9.0, 10.0)]
    assert never is None
    assert [(5.0, []), (9.0, [2, 3]), (9.0, []), (None, [1]), (None, [])] == seen


def test_the_second_backoff_counts_not_the_first():
    """An update that is refused again waits for its new backoff in full."""
    lane = lane_with(FakeDelivery(1))
    for due_s in (5.0, 20.0):
        lane.retry(lane.take(0.0), due_s)
        lane.wake(5.0)
    assert (20.0, [], None, [1]) == (lane.wake(19.9), taken(lane), lane.wake(20.0), taken(lane))


# --- what a lane tells


def test_the_lane_tells_what_it_has():
    """Counts and lists cover every update at hand, in every state; `unsent` leaves out only what is in flight."""
    lane = lane_with(FakeDelivery(1, "a"), FakeDelivery(2, "a"), FakeDelivery(3, "b"), FakeDelivery(4, "c"))
    lane.retry(lane.take(0.0), 5.0)
    lane.take(0.0)
    assert (4, 1, {1, 2, 3, 4}) == (len(lane), lane.out, {update.sequence for update in lane.at_hand()})
    assert {1, 2, 4} == {update.sequence for update in lane.unsent()}
    assert [0, 1, 3, 4, 4] == [lane._count_up_to(n) for n in (0, 1, 3, 4, 9)]
    assert ("<Lane 0: 4 at hand, 1 out>", "<Lane 0: 0 at hand, 0 out, held>") == (
        repr(lane),
        repr(lane_with(held=True)),
    )


def test_the_lane_tells_how_far_updates_got():
    """Inherited, acknowledged, dead-lettered, at hand and undelivered are distinguished once a lane is released."""
    lane = Lane(0, Continuity(1.0), DeadLetterHorizon(-math.inf, -math.inf))
    taken_over = ConsumerState(pending=0, delivered=5, delivered_count=5, told_at_s=9.0)
    lane.began(taken_over, 0.0)
    lane.resolve(taken_over, 0.0)
    admit(lane, FakeDelivery(6), FakeDelivery(7, fit=False), FakeDelivery(8))
    acknowledge(lane, lane.take(0.0))
    lane.settle(lane.take_dead_letter(0.0), Outcome.DEAD_LETTERED)
    progress = lane.progress(JOBS["a"])
    expected = [Settled.UNLESS_GIVEN_UP, Settled.ACKNOWLEDGED, Settled.DEAD_LETTERED, Settled.NO, Settled.NO]
    assert expected == [progress.settled(sequence, 0.0) for sequence in (5, 6, 7, 8, 9)]


@pytest.mark.parametrize(
    "misuse",
    [
        lambda lane, head: lane.settle(head, Outcome.ACKNOWLEDGED),
        lambda lane, head: lane.put_back(head),
        lambda lane, head: lane.retry(head, 5.0),
    ],
    ids=["settle", "put back", "retry"],
)
def test_a_bug_of_ours_is_noticed(misuse):
    """To settle, put back or retry an update that is not OUT fails at once, instead of corrupting the order."""
    lane = lane_with(FakeDelivery(1))
    (head,) = lane.at_hand()
    with pytest.raises(AssertionError):
        misuse(lane, head)


# --- lanes that share a connection


def test_lanes_take_turns():
    """A busy lane does not starve the others, within one `take` and across several; `room` is the limit."""
    busy = [FakeDelivery(sequence, job) for sequence, job in enumerate("abcdef", 1)]
    lanes = [lane_with(*busy), lane_with(FakeDelivery(7))]
    turns = Turns()
    for lane in lanes:
        turns.add(lane)
    first, rest = turns.take(3, ANY_BYTES, 0.0), turns.take(9, ANY_BYTES, 0.0)
    assert ([1, 2, 7], [3, 4, 5, 6]) == (sorted(update.sequence for update in first), [u.sequence for u in rest])
    assert ([], None) == (turns.take(0, ANY_BYTES, 0.0), turns.take_dead_letter(0.0))


def test_dead_letters_take_turns():
    """A lane with many dead letters does not keep another one's from being written."""
    turns = Turns()
    turns.add(lane_with(*(FakeDelivery(sequence, job, fit=False) for sequence, job in enumerate("abc", 1))))
    turns.add(lane_with(FakeDelivery(7, fit=False)))
    taken = [turns.take_dead_letter(0.0).sequence for _ in range(4)]
    assert (True, [1, 2, 3, 7]) == (7 in taken[:2], sorted(taken))


def test_a_lane_without_a_turn_gives_out_nothing():
    """A lane that drains sends and dead-letters nothing, also after its backoffs end."""
    lane, turns = lane_with(FakeDelivery(1), FakeDelivery(2, "b", fit=False)), Turns()
    turns.add(lane)
    lane.retry(lane.take(0.0), 5.0)
    turns.discard(lane)
    turns.discard(lane)
    assert (None, [], None) == (turns.wake(9.0), turns.take(9, ANY_BYTES, 9.0), turns.take_dead_letter(9.0))
