"""Whose fault a dropped connection is: the control of a session, and what it says of the suspect."""

import math

import pytest
from delivery_kit import FakeDelivery

from relay.contract.facilitator_messages import Reply, ReplyError
from relay.contract.subjects import Reason
from relay.core.backoff import Backoff
from relay.core.continuity import ConsumerState, Continuity
from relay.core.control import CONTROL_MAX_BYTES, Control, shows_storing
from relay.core.lane import Lane
from relay.core.session import Lost, Opened, Phase, Session, Suspicion
from relay.core.turns import Turns
from relay.core.update import DeadLetterHorizon
from relay.core.verdict import RetryPolicy

CONTROL = b"an earlier update"
SUCCESS = '{"status":"success","errors":[]}'
REPEAT = '{"status":"error","errors":[{"type":"job.integrity_error","msg":"again"}]}'
NOT_FOUND = '{"status":"error","errors":[{"type":"job.not_found","msg":"no such job"}]}'
POLICY = RetryPolicy(3, Backoff(1.0, 8.0, lambda: 0.5))


def suspecting(*, control=True):
    """A session that is connected again after a drop at "a", with another update on the connection."""
    session = Session(window=4, reply_timeout_s=60.0, authentication="let me in", size_of=len)
    if control:
        session.control.keep(CONTROL, "accepted")
    let_in(session)
    session.fill(lambda *_: ["a", "b"], 0.0)
    session.closed(None)
    return session


def let_in(session):
    session.opened(0.0)
    return session.received(SUCCESS, 0.0)


# --- which update it is


@pytest.mark.parametrize(
    ("acknowledged", "kept"),
    [
        ([(b"1", "accepted"), (b"2", "execution_done")], b"2"),
        ([(b"1", "completed"), (b"2", "failed")], b"2"),
        ([(b"1", "accepted"), (b"2", "completed"), (b"3", "accepted")], b"2"),
        ([(b"1", "accepted"), (b"2" * CONTROL_MAX_BYTES, "received")], b"2" * CONTROL_MAX_BYTES),
        ([(b"1", "accepted"), (b"2" * (CONTROL_MAX_BYTES + 1), "completed")], b"1"),
        ([], None),
    ],
    ids=["the newest", "the newest terminal", "a terminal one stays", "as large as may be", "too large", "none"],
)
def test_which_update_is_the_control(acknowledged, kept):
    """It is the newest that was acknowledged, a terminal one if there was any, and never a large one."""
    control = Control()
    for text, status in acknowledged:
        control.keep(text, status)
    assert kept == control.use()


def test_a_control_is_usable_again_only_when_it_has_passed():
    """Sent once, it is gone; if it passes it is back, and otherwise the next acknowledged update takes its place."""
    control = Control()
    found = [control.keep(b"1", "completed"), control.keep(b"2", "completed")]
    sent = [control.use(), control.use()]
    control.passed()
    sent += [control.use(), control.use()]
    found += [control.keep(b"3", "accepted")]
    assert ([True, False, True], [b"2", None, b"2", None, b"3"]) == (found, [*sent, control.use()])


def test_a_control_shows_its_state():
    """`repr` shows its size and whether it can be sent."""
    control = Control()
    control.keep(b"123", "accepted")
    shown = repr(control)
    control.use()
    assert ("<Control: 3 bytes>", "<Control: 3 bytes, not usable>") == (shown, repr(control))


@pytest.mark.parametrize(
    ("types", "shows"), [((), True), (("job.integrity_error",), True), (("job.not_found",), False), (("new",), False)]
)
def test_which_answers_show_that_the_facilitator_can_store(types, shows):
    """A repeat is refused when it is stored, or stored; other errors come before the Facilitator tries to store it."""
    reply = Reply("error", tuple(ReplyError(each, "because") for each in types)) if types else Reply("success")
    assert shows == shows_storing(reply)


# --- what it says


def drop(session):
    session.closed(None)


def close(session):
    session.closed(1012)


def never_answer(session):
    session.overdue(60.0)
    session.closed(1002)


@pytest.mark.parametrize("lose", [drop, close, never_answer])
def test_a_control_that_is_lost_takes_the_blame(lose):
    """If the connection ends at the control, the drop before does not count, and this control is not sent again."""
    session = suspecting()
    opened = let_in(session)
    lose(session)
    assert (Opened(CONTROL), Opened(suspicion=Suspicion("a"))) == (opened, let_in(session))


def test_losing_a_control_is_told():
    """That only the control was out is told, and the suspect stays with the session."""
    session = suspecting()
    let_in(session)
    assert Lost((), "a", control_unanswered=True) == session.closed(None)


def test_a_control_of_a_deleted_job_says_nothing():
    """The Facilitator knows its job no longer: the drop before does not count, and this control is not sent again."""
    session = suspecting()
    let_in(session)
    suspicion = session.received(NOT_FOUND, 0.0)
    assert (Suspicion("a", blamed=True), None) == (suspicion, session.control.use())


def test_a_drop_between_two_controls_counts():
    """A suspect that drops the connection after a control passed is blamed if the next control passes as well."""
    session = suspecting()
    let_in(session)
    session.received(REPEAT, 0.0)
    session.probe(0.0)
    session.closed(None)
    opened = let_in(session)
    assert (Opened(CONTROL), Suspicion("a", blamed=True, alone=True, sound=True)) == (
        opened,
        session.received(REPEAT, 0.0),
    )


def test_storing_failed_only_after_the_first_control():
    """If the Facilitator stops storing between the control and the suspect, the next control takes the blame."""
    session = suspecting()
    let_in(session)
    session.received(REPEAT, 0.0)
    session.probe(0.0)
    session.closed(None)
    let_in(session)
    session.closed(None)
    assert Opened(suspicion=Suspicion("a", alone=True)) == let_in(session)


def test_a_stored_control_shows_as_much():
    """If the row of the control was deleted, it is stored again: the Facilitator is sound."""
    session = suspecting()
    let_in(session)
    assert Suspicion("a", blamed=True, sound=True) == session.received(SUCCESS, 0.0)


def test_without_a_control_the_others_go_on():
    """A worker that has seen nothing acknowledged releases the suspect, so that other updates can go first."""
    session = suspecting(control=False)
    opened = let_in(session)
    session.clear_suspect()
    assert (Opened(suspicion=Suspicion("a", blamed=True)), Phase.OPEN) == (opened, session.phase)


@pytest.mark.parametrize("control", [True, False])
def test_without_a_control_updates_go_one_at_a_time(control):
    """If there is no control, or it shows nothing, one update at a time is sent, until one is answered."""
    session = suspecting(control=control)
    let_in(session)
    if control:
        session.received(NOT_FOUND, 0.0)
    session.clear_suspect()
    rooms = []

    def take(room, *_):
        rooms.append(room)
        return ["c"]

    session.fill(take, 0.0)
    session.fill(take, 0.0)
    session.received(SUCCESS, 0.0)
    session.fill(take, 0.0)
    assert [1, 4] == rooms


# --- what becomes of the suspect


def lane_with(*deliveries, number=0):
    lane = Lane(number, Continuity(patience_s=1.0), DeadLetterHorizon(-math.inf, -math.inf))
    lane.resolve(ConsumerState(pending=0, delivered=0, delivered_count=0), 0.0)
    lane.continuity._next = deliveries[0].consumer_sequence
    lane.admit(deliveries, 0.0)
    return lane


@pytest.mark.parametrize(
    ("attempts", "told", "lease_s", "goes", "counted"),
    [
        (0, {"blamed": True, "alone": True, "sound": True}, 9.0, True, 1),
        (0, {"alone": True, "sound": True}, 9.0, True, 0),
        (2, {"blamed": True, "alone": True, "sound": True}, 9.0, False, 3),
        (2, {"blamed": True, "sound": True}, 9.0, True, 3),
        (0, {"blamed": True, "alone": True, "sound": True}, 0.0, False, 1),
        (2, {"blamed": True, "alone": True}, 9.0, False, 2),
    ],
    ids=["once more", "not blamed", "too often alone", "too often in company", "the lease is over", "no control"],
)
def test_whether_a_suspect_goes_again(attempts, told, lease_s, goes, counted):
    """A suspect is sent until it dropped the connection too often, at last alone, with a control and a valid lease."""
    lane = lane_with(FakeDelivery(1))
    suspect = lane.take(0.0)
    suspect.attempts, lane.ours_until_s = attempts, lease_s
    went = lane.may_go_again(Suspicion(suspect, **told), POLICY, 1.0)
    dead_letter = suspect.dead_letter
    lane.ours_until_s = math.inf
    ends_dead = attempts == 2 and counted == 3 and not goes
    assert (goes, counted, ends_dead) == (went, suspect.attempts, dead_letter is not None)
    again, buried = lane.take(0.0), lane.take_dead_letter(0.0)
    assert (None if goes or ends_dead else suspect, suspect if ends_dead else None) == (again, buried)
    assert dead_letter is None or dead_letter.reason is Reason.CONNECTION_DROPPED


def undecided(lane):
    """Take the head of a lane and put it back as a suspect without a control."""
    suspect = lane.take(0.0)
    lane.may_go_again(Suspicion(suspect, blamed=True), POLICY, 0.0)
    return suspect


def test_other_heads_of_a_lane_go_before_what_is_undecided():
    """What may drop connections goes after the other heads of its lane, and among such those that dropped fewer."""
    lane = lane_with(FakeDelivery(1, "a"), FakeDelivery(2, "b"), FakeDelivery(3, "c"))
    doubtful = [undecided(lane).sequence for _ in range(4)]
    taken = [update.sequence for update in iter(lambda: lane.take(0.0), None)]
    assert ([1, 2, 3, 1], [2, 3, 1]) == (doubtful, taken)


def test_lanes_take_turns_also_one_at_a_time():
    """While one update is sent at a time, a lane whose head is undecided does not keep another lane from going."""
    lanes = [lane_with(FakeDelivery(number + 1, "ab"[number]), number=number) for number in (0, 1)]
    turns = Turns()
    for lane in lanes:
        turns.add(lane)
    sent = []
    for _ in range(2):
        [head] = turns.take(1, 99, 0.0)
        sent.append(head.sequence)
        head.lane.may_go_again(Suspicion(head, blamed=True), POLICY, 0.0)
    assert [1, 2] == sorted(sent)


def test_with_a_control_the_usual_order_is_back():
    """When there is a control, nothing is undecided any more, and what was goes in its usual turn."""
    lane = lane_with(FakeDelivery(1, "a"), FakeDelivery(2, "b"), FakeDelivery(3, "c"))
    first = undecided(lane)
    doubtful = lane.undecided()
    lane.control_found()
    taken = [update.sequence for update in iter(lambda: lane.take(0.0), None)]
    assert ([first], [], [1, 2, 3]) == (doubtful, lane.undecided(), taken)
