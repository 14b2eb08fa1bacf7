"""Which answers `job.integrity_error` are explained, and how a lane has the stream asked about the others."""

import math

import pytest
from delivery_kit import FakeDelivery

from relay.contract.subjects import Reason
from relay.core.backoff import Backoff
from relay.core.continuity import ConsumerState, Continuity
from relay.core.lane import Lane
from relay.core.repeats import explains, may_be_stored
from relay.core.turns import Turns
from relay.core.update import DeadLetterHorizon
from relay.core.verdict import Retry, RetryPolicy

POLICY = RetryPolicy(5, Backoff(1.0, 8.0, lambda: 0.5))
MADE_AT_S = 50.0
FAILED_AT = "2026-11-28T14:34:02.495+00:00"


def lane_with(*deliveries):
    """A lane that is not held, with these at hand; its consumer was made at MADE_AT_S."""
    lane = Lane(0, Continuity(1.0), DeadLetterHorizon(-math.inf, -math.inf))
    state = ConsumerState(0, 0, deliveries[0].consumer_sequence - 1, made_at_s=MADE_AT_S)
    lane.began(state, 0.0)
    lane.resolve(state, 0.0)
    lane.admit(deliveries, 0.0)
    return lane


def fresh(sequence=7, letter="a", **fields):
    """A delivery of an update that was stored after its consumer was made, and was never delivered before."""
    return FakeDelivery(sequence, letter, **{"stored_at_s": 100.0} | fields)


def replay(*reasons):
    history = "; ".join(f"{reason} 5 {FAILED_AT}" for reason in reasons)
    return {"Relay-Replayed-From": "3", "Relay-History": history}


def explained(delivery, policy=POLICY):
    return explains(lane_with(delivery).take(0.0), policy)


def test_a_fresh_update_is_explained_by_nothing_that_is_known():
    """The stream has to be asked; what it said is remembered."""
    lane = lane_with(fresh())
    update = lane.take(0.0)
    answers = [explains(update, POLICY)]
    for update.has_equal_before in (False, True):
        answers.append(explains(update, POLICY))
    assert [None, False, True] == answers


def test_what_was_delivered_before_is_explained():
    """A second delivery is, and so is the first one by a consumer that was made after the update was stored."""
    assert [True, True] == [explained(fresh(deliveries=2)), explained(fresh(stored_at_s=MADE_AT_S - 1))]
    assert explained(fresh(stored_at_s=MADE_AT_S)) is None


def test_a_redelivery_of_what_is_at_hand_explains_nothing():
    """If the server delivers an update again while this worker has it, nobody else can have sent it."""
    lane = lane_with(first := fresh())
    lane.admit([fresh(consumer_sequence=first.consumer_sequence + 1, deliveries=2)], 0.0)
    assert explains(lane.take(0.0), POLICY) is None


def test_an_answer_explains_nothing_and_a_broken_connection_does():
    """However often an update was answered, nothing was stored; unanswered it may have been."""
    lane = lane_with(fresh())
    update = lane.take(0.0)
    update.sent_s = 0.0
    for _ in range(3):
        lane.fail(update, Retry("job.integrity_error", 0.0, unexplained=True), 0.0)
        lane.wake(0.0)
        assert lane.take(0.0) is update
    before = explains(update, POLICY)
    lane.lose(update)
    assert (None, True) == (before, explains(lane.take(0.0), POLICY))


def test_other_senders_explain_everything():
    """Whoever else sends updates of the same jobs may have sent any of them."""
    assert explained(fresh(), RetryPolicy(5, POLICY.backoff, other_senders=True))


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        (("connection_dropped",), True),
        (("max_deliver",), True),
        (("connection_dropped", "unexplained_duplicate"), True),
        (("of a newer relay",), True),
        (("",), True),
        *(((reason,), None) for reason in Reason if reason not in ("connection_dropped", "max_deliver")),
        (("unexplained_duplicate", "unexplained_duplicate"), None),
    ],
)
def test_a_replay_is_explained_if_its_update_may_be_stored(reasons, expected):
    """What was dead-lettered before it was sent, or after an answer, is not stored; of the rest nobody knows."""
    assert expected is explained(fresh(headers=replay(*reasons)))


def test_a_replay_without_its_history_is_explained():
    """The history is left out if the update would be too large with it."""
    assert explained(fresh(headers={"Relay-Replayed-From": "3"})) is True


def test_which_reasons_leave_it_open():
    """Only a drop, and deliveries that ended with their workers, say nothing of what is stored."""
    assert {Reason.CONNECTION_DROPPED, Reason.MAX_DELIVER} == {reason for reason in Reason if may_be_stored(reason)}


def test_a_question_holds_back_its_job_alone():
    """An update that the stream is asked about is given out to be asked about; its job waits, other jobs go on."""
    lane = lane_with(
        first := fresh(1),
        *(fresh(n, letter, consumer_sequence=first.consumer_sequence + n - 1) for n, letter in ((2, "a"), (3, "b"))),
    )
    turns = Turns()
    turns.add(lane)
    update = lane.take(0.0)
    lane.question(update)
    others = [lane.take(0.0).sequence, lane.take(0.0)]
    asked = turns.take_question(0.0)
    assert ([3, None], 1, None) == (others, asked.sequence, turns.take_question(0.0))
    update.questioned = False
    lane.fail(update, Retry("job.integrity_error", 1.0, unexplained=True), 0.0)
    assert (True, None) == (update.unexplained, lane.take(0.0))
    lane.wake(1.0)
    assert 1 == lane.take(1.0).sequence


def test_a_question_that_cannot_be_asked_costs_no_attempt():
    """It waits and is asked again."""
    lane = lane_with(fresh())
    update = lane.take(0.0)
    lane.question(update)
    lane.take_question(0.0)
    lane.retry(update, 1.0)
    early = lane.take_question(0.0)
    lane.wake(1.0)
    assert (None, update, 0) == (early, lane.take_question(1.0), update.attempts)


def test_one_warning_for_one_trouble():
    """Answers that follow each other belong to one trouble; after some minutes without any, it is a new one."""
    lane = lane_with(fresh())
    assert [True, False, False, True] == [lane.is_new_trouble(now_s) for now_s in (0.0, 1.0, 290.0, 600.0)]
