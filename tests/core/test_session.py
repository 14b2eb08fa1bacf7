import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.contract.facilitator_messages import HEARTBEAT, Push, PushKind, Reply, ReplyError
from relay.core.session import (
    HEARTBEAT_INTERVAL_S,
    Answered,
    Broken,
    Lost,
    Opened,
    Phase,
    Pushed,
    Session,
    SignInRefused,
    Suspicion,
    Unpaired,
)

AUTHENTICATION = "let me in"
SUCCESS = '{"status":"success","errors":[]}'
NOT_FOUND = '{"status":"error","errors":[{"type":"job.not_found","msg":"no such job"}]}'
NOT_KNOWN = '{"status":"error","errors":[{"type":"auth.not_authenticated","msg":"who are you"}]}'
NOT_VALID = '{"status":"error","errors":[{"type":"auth.signature_invalid","msg":"wrong"}]}'
REPEAT = '{"status":"error","errors":[{"type":"job.integrity_error","msg":"again"}]}'
PUSH = '{"message_type":"V2JobRequest","uuid":"123","type":"job.new"}'
CONTROL = b"an earlier update"
GARBAGE = "<html>502 Bad Gateway</html>"
WINDOW = 4
TIMEOUT_S = 60.0


def new_session(window=WINDOW, authentication=AUTHENTICATION, reply_timeout_s=TIMEOUT_S):
    return Session(window=window, reply_timeout_s=reply_timeout_s, authentication=authentication, size_of=lambda _: 1)


def let_in(session, now=0.0):
    session.opened(now)
    return session.received(SUCCESS, now)


def judged(session, now=0.0):
    """Connect with a suspect: what the session says of it when the control is answered as a repeat."""
    assert Opened(CONTROL) == let_in(session, now)
    return session.received(REPEAT, now)


def send(session, update, now_s=0.0):
    """Send an update, if there is room."""
    return list(session.fill(lambda *_: [update], now_s))


def room(session):
    """How many updates the session would send now."""
    rooms = []
    session.fill(lambda room, *_: rooms.append(room) or (), 0.0)
    return sum(rooms)


def session_in(phase, *updates):
    """A session in `phase` at time 0 with `updates` unanswered, and a control.

    CONTROLLING and PROBING are reached by a drop on the first of the updates.
    """
    session = new_session()
    session.control.keep(CONTROL, "completed")
    if phase is Phase.CLOSED:
        return session
    session.opened(0.0)
    if phase is Phase.AUTHENTICATING:
        return session
    session.received(SUCCESS, 0.0)
    for update in updates:
        send(session, update)
    if phase in (Phase.CONTROLLING, Phase.PROBING):
        session.closed(None)
        let_in(session)
    if phase is Phase.PROBING:
        session.received(REPEAT, 0.0)
        session.probe(0.0)
    elif phase is Phase.BROKEN:
        session.received(GARBAGE, 0.0)
    return session


EVENTS = {
    "opened": lambda session: session.opened(0.0),
    "send": lambda session: send(session, "b"),
    "probe": lambda session: session.probe(0.0),
    "success": lambda session: session.received(SUCCESS, 0.0),
    "error": lambda session: session.received(NOT_FOUND, 0.0),
    "forgotten": lambda session: session.received(NOT_KNOWN, 0.0),
    "push": lambda session: session.received(PUSH, 0.0),
    "garbage": lambda session: session.received(GARBAGE, 0.0),
    "heartbeat": lambda session: session.heartbeat(0.0),
    "overdue": lambda session: session.overdue(TIMEOUT_S),
    "dropped": lambda session: session.closed(None),
    "closed": lambda session: session.closed(1012),
    "failed to open": lambda session: session.failed_to_open(),
}

# Each cell: the result, and the phase after it. CLOSED has no row for messages, which need a connection.
STATE_TABLE = {
    Phase.CLOSED: {
        "opened": (AUTHENTICATION, Phase.AUTHENTICATING),
        "send": ([], Phase.CLOSED),
        "probe": (AssertionError, Phase.CLOSED),
        "heartbeat": (None, Phase.CLOSED),
        "dropped": (Lost((), None), Phase.CLOSED),
        "closed": (Lost((), None), Phase.CLOSED),
        "failed to open": (None, Phase.CLOSED),
    },
    Phase.AUTHENTICATING: {
        "opened": (AssertionError, Phase.AUTHENTICATING),
        "send": ([], Phase.AUTHENTICATING),
        "probe": (AssertionError, Phase.AUTHENTICATING),
        "success": (Opened(), Phase.OPEN),
        "error": (SignInRefused("job.not_found: no such job"), Phase.BROKEN),
        "forgotten": (SignInRefused("auth.not_authenticated: who are you"), Phase.BROKEN),
        "push": (Pushed(Push(PushKind.REQUEST, "123", "V2JobRequest"), PUSH), Phase.AUTHENTICATING),
        "garbage": (Broken, Phase.BROKEN),
        "heartbeat": (None, Phase.AUTHENTICATING),
        "overdue": (Broken("no answer to the authentication within 60 s"), Phase.BROKEN),
        "dropped": (Lost((), None), Phase.CLOSED),
        "closed": (Lost((), None), Phase.CLOSED),
    },
    Phase.OPEN: {
        "opened": (AssertionError, Phase.OPEN),
        "send": (["b"], Phase.OPEN),
        "probe": (AssertionError, Phase.OPEN),
        "success": (Answered("a", Reply("success"), 0.0), Phase.OPEN),
        "error": (Answered("a", Reply("error", (ReplyError("job.not_found", "no such job"),)), 0.0), Phase.OPEN),
        "forgotten": (Broken, Phase.BROKEN),
        "push": (Pushed(Push(PushKind.REQUEST, "123", "V2JobRequest"), PUSH), Phase.OPEN),
        "garbage": (Broken, Phase.BROKEN),
        "heartbeat": (HEARTBEAT, Phase.OPEN),
        "overdue": (Broken("no answer to an update within 60 s"), Phase.BROKEN),
        "dropped": (Lost((), "a"), Phase.CLOSED),
        "closed": (Lost(("a",), None), Phase.CLOSED),
    },
    Phase.CONTROLLING: {
        "opened": (AssertionError, Phase.CONTROLLING),
        "send": ([], Phase.CONTROLLING),
        "probe": (AssertionError, Phase.CONTROLLING),
        "success": (Suspicion("a", blamed=True, sound=True), Phase.PROBING),
        "error": (Suspicion("a", blamed=True), Phase.PROBING),
        "forgotten": (Broken("the Facilitator has forgotten that we are authenticated"), Phase.BROKEN),
        "push": (Pushed(Push(PushKind.REQUEST, "123", "V2JobRequest"), PUSH), Phase.CONTROLLING),
        "garbage": (Broken, Phase.BROKEN),
        "heartbeat": (HEARTBEAT, Phase.CONTROLLING),
        "overdue": (Broken("no answer to a repeat of an earlier update within 60 s"), Phase.BROKEN),
        "dropped": (Lost((), "a", control_unanswered=True), Phase.CLOSED),
        "closed": (Lost((), "a", control_unanswered=True), Phase.CLOSED),
    },
    Phase.PROBING: {
        "opened": (AssertionError, Phase.PROBING),
        "send": ([], Phase.PROBING),
        "success": (Answered("a", Reply("success"), 0.0), Phase.OPEN),
        "error": (Answered("a", Reply("error", (ReplyError("job.not_found", "no such job"),)), 0.0), Phase.OPEN),
        "forgotten": (Broken, Phase.BROKEN),
        "push": (Pushed(Push(PushKind.REQUEST, "123", "V2JobRequest"), PUSH), Phase.PROBING),
        "garbage": (Broken, Phase.BROKEN),
        "heartbeat": (HEARTBEAT, Phase.PROBING),
        "overdue": (Broken("no answer to an update within 60 s"), Phase.BROKEN),
        "dropped": (Lost((), "a", dropped_alone=True), Phase.CLOSED),
        "closed": (Lost((), "a"), Phase.CLOSED),
    },
    Phase.BROKEN: {
        "opened": (AssertionError, Phase.BROKEN),
        "send": ([], Phase.BROKEN),
        "probe": (AssertionError, Phase.BROKEN),
        "success": (Unpaired(), Phase.BROKEN),
        "error": (Unpaired(), Phase.BROKEN),
        "forgotten": (Unpaired(), Phase.BROKEN),
        "push": (Pushed(Push(PushKind.REQUEST, "123", "V2JobRequest"), PUSH), Phase.BROKEN),
        "garbage": (Unpaired(), Phase.BROKEN),
        "heartbeat": (None, Phase.BROKEN),
        "overdue": (None, Phase.BROKEN),
        "dropped": (Lost(("a",), None), Phase.CLOSED),
        "closed": (Lost(("a",), None), Phase.CLOSED),
    },
}


@pytest.mark.parametrize(("phase", "event"), [(phase, event) for phase, row in STATE_TABLE.items() for event in row])
def test_what_every_event_does_in_every_phase(phase, event):
    """With update "a" unanswered where that is possible, each event gives the result and the phase in the table."""
    session = session_in(phase, "a")
    outcome, phase_after = STATE_TABLE[phase][event]
    if outcome is AssertionError:
        with pytest.raises(AssertionError):
            EVENTS[event](session)
    elif outcome is Broken:
        assert isinstance(EVENTS[event](session), Broken)
    else:
        assert outcome == EVENTS[event](session)
    assert phase_after == session.phase


def test_without_authentication_an_empty_message_goes_first():
    """Behind a trusted proxy an empty message is sent first, and updates only after any answer to it, even an error."""
    session = new_session(authentication=None)
    assert ("{}", 0) == (session.opened(0.0), room(session))
    complaint = '{"status":"error","errors":[{"type":"union_tag_not_found","msg":"what is this?"}]}'
    assert (Opened(), WINDOW) == (session.received(complaint, 0.0), room(session))


def test_an_empty_message_that_is_answered_with_a_demand_for_authentication_is_refused():
    """If the empty message is answered with a demand for authentication, no update is sent: no proxy signs in."""
    session = new_session(authentication=None)
    session.opened(0.0)
    assert (SignInRefused("auth.not_authenticated: who are you"), 0) == (
        session.received(NOT_KNOWN, 0.0),
        room(session),
    )


@pytest.mark.parametrize("phase", list(Phase))
def test_there_is_room_only_while_open(phase):
    """Only an open session takes updates, at most as many as the window has left."""
    assert (WINDOW - 1 if phase is Phase.OPEN else 0) == room(session_in(phase, "a"))


@given(st.lists(st.sampled_from(["send", "answer", "push"]), max_size=60), st.integers(1, 5))
@settings(max_examples=50)
def test_replies_answer_first_in_first_out_within_the_window(steps, window):
    """In any mix of sends, replies and pushes, each reply answers the oldest, and at most `window` are unanswered."""
    session = new_session(window)
    let_in(session)
    sent, answered = [], []
    for step in steps:
        if step == "send" and room(session):
            sent.append(len(sent))
            send(session, sent[-1])
        elif step == "answer" and session.unanswered:
            answered.append(session.received(SUCCESS, 0.0).update)
        elif step == "push":
            session.received(PUSH, 0.0)
        assert (len(sent) - len(answered), window) == (session.unanswered, room(session) + session.unanswered)
    assert sent[: len(answered)] == answered


def test_a_full_window_takes_no_more():
    """A full window asks for no update."""
    assert [] == send(session_in(Phase.OPEN, *range(WINDOW)), "one too many")


def test_the_round_trip_is_measured_from_the_send():
    """An answer carries the round-trip time of its own update."""
    session = session_in(Phase.OPEN)
    send(session, "a", 1.0)
    send(session, "b", 2.0)
    assert [2.0, 3.0] == [session.received(SUCCESS, now).round_trip_s for now in (3.0, 5.0)]


@pytest.mark.parametrize("reply", [SUCCESS, NOT_FOUND])
def test_an_unmatched_reply_breaks_the_connection(reply):
    """A reply without an unanswered update breaks the connection: earlier replies may have been matched wrongly."""
    session = session_in(Phase.OPEN, "a")
    session.received(SUCCESS, 0.0)
    assert Broken("the Facilitator answered something that was not asked") == session.received(reply, 0.0)


def test_a_forgotten_authentication_is_not_the_updates_fault():
    """`auth.not_authenticated` breaks the connection; the updates stay unanswered, and none becomes a suspect."""
    session = session_in(Phase.OPEN, "a", "b")
    broken = session.received(NOT_KNOWN, 0.0)
    assert Broken("the Facilitator has forgotten that we are authenticated") == broken
    assert Lost(("a", "b"), None) == session.closed(None)


@pytest.mark.parametrize(("sent_s", "now", "broken"), [(0.0, 59.9, False), (0.0, 60.0, True), (5.0, 60.0, False)])
def test_an_overdue_answer_breaks_the_connection(sent_s, now, broken):
    """The oldest unanswered update must be answered within `reply_timeout_s` of its own send."""
    session = session_in(Phase.OPEN)
    send(session, "a", sent_s)
    send(session, "b", sent_s + 1)
    assert broken == (session.overdue(now) is not None)


def test_nothing_is_overdue_while_nothing_is_asked():
    """An idle connection never breaks for a missing answer."""
    session = session_in(Phase.OPEN, "a")
    session.received(SUCCESS, 0.0)
    assert None is session.overdue(1e9)


def test_heartbeats_go_out_at_once_and_then_every_interval():
    """The first heartbeat is sent at once; each later one is due an interval after the one before."""
    session = session_in(Phase.OPEN)
    times = (0.0, 1.0, HEARTBEAT_INTERVAL_S - 0.1, HEARTBEAT_INTERVAL_S, HEARTBEAT_INTERVAL_S + 1, 200.0)
    assert [HEARTBEAT, None, None, HEARTBEAT, None, HEARTBEAT] == [session.heartbeat(now) for now in times]


def test_each_connection_starts_with_a_heartbeat():
    """A new connection sends a heartbeat at once, whatever was left of the old one's interval."""
    session = session_in(Phase.OPEN)
    session.heartbeat(0.0)
    session.closed(1012)
    let_in(session, 3.0)
    assert HEARTBEAT == session.heartbeat(3.0)


@given(
    st.lists(st.tuples(st.sampled_from(["send", "answer", "connect", "drop"]), st.floats(0, 40)), max_size=30),
    st.floats(1, 3 * HEARTBEAT_INTERVAL_S),
)
@settings(max_examples=50)
def test_the_deadline_is_never_later_than_what_is_due(steps, reply_timeout_s):
    """A caller that sleeps from one deadline to the next never misses a heartbeat or a timeout."""
    session = new_session(reply_timeout_s=reply_timeout_s)
    now, asleep_until = 0.0, float("inf")
    for step, pause_s in steps:
        now += pause_s
        while asleep_until <= now:
            session.heartbeat(asleep_until)
            if session.overdue(asleep_until):
                session.closed(1002)
            asleep_until = session.deadline(asleep_until) if session.phase is not Phase.CLOSED else float("inf")
        assert (None, None) == (session.heartbeat(now), session.overdue(now))
        if step == "connect" and session.phase is Phase.CLOSED:
            session.opened(now)
            asleep_until = session.deadline(now)
            session.received(SUCCESS, now)
            session.heartbeat(now)
        elif step == "drop":
            session.closed(1012)
            asleep_until = float("inf")
        elif step == "send" and room(session):
            send(session, "x", now)
        elif step == "answer" and session.unanswered:
            session.received(SUCCESS, now)


def test_the_deadline_before_we_are_let_in_counts_the_heartbeats_too():
    """A caller that sleeps while the authentication is unanswered wakes in time for the second heartbeat."""
    session = new_session(reply_timeout_s=3 * HEARTBEAT_INTERVAL_S)
    session.opened(0.0)
    assert HEARTBEAT_INTERVAL_S == session.deadline(0.0)


def test_a_drop_makes_the_first_unanswered_update_the_suspect():
    """The suspect stays with the session; the others are returned in the order in which they were sent."""
    session = session_in(Phase.OPEN, "a", "b", "c")
    session.received(SUCCESS, 0.0)
    assert Lost(("c",), "b") == session.closed(None)
    assert Suspicion("b", blamed=True, sound=True) == judged(session)


@pytest.mark.parametrize(
    ("code", "blames"),
    [(None, True), (1003, True), (1007, True), (1009, True)]
    + [(code, False) for code in (1000, 1001, 1002, 1006, 1011, 1012, 1013, 3000, 3001)],
)
def test_only_a_silent_drop_or_a_complaint_about_a_message_blames(code, blames):
    """After a close frame that does not complain about a message, nothing is suspected; every update is returned."""
    session = session_in(Phase.OPEN, "a", "b")
    assert (Lost(("b",), "a") if blames else Lost(("a", "b"), None)) == session.closed(code)


def test_a_drop_with_nothing_unanswered_blames_nobody():
    """When an idle connection is lost, there is no suspect."""
    session = session_in(Phase.OPEN)
    assert (Lost((), None), Opened()) == (session.closed(None), let_in(session))


def refused_at_the_door(session):
    session.failed_to_open()


def dropped_at_authentication(session):
    session.opened(0.0)
    session.closed(None)


def told_to_go_away(session):
    session.opened(0.0)
    session.received(NOT_VALID, 0.0)
    session.closed(3000)


def never_let_in(session):
    session.opened(0.0)
    session.overdue(TIMEOUT_S)
    session.closed(1002)


FAILURES = [refused_at_the_door, dropped_at_authentication, told_to_go_away, never_let_in]


@pytest.mark.parametrize("fail", FAILURES)
def test_a_failed_reconnect_speaks_for_the_suspect(fail):
    """If the reconnect after the drop fails, the Facilitator was away: the suspect is tried alone, but not blamed."""
    session = session_in(Phase.OPEN, "a", "b")
    session.closed(None)
    fail(session)
    assert Suspicion("a", blamed=False, sound=True) == judged(session)


@pytest.mark.parametrize("fail", FAILURES)
def test_no_failed_reconnect_speaks_for_what_dropped_the_connection_alone(fail):
    """A suspect that was sent alone is blamed for the drop, even if the reconnect fails."""
    session = session_in(Phase.PROBING, "a")
    session.closed(None)
    fail(session)
    assert Suspicion("a", blamed=True, alone=True, sound=True) == judged(session)


@pytest.mark.parametrize(("code", "blamed"), [(None, True), (1009, True), (1012, False), (1011, False)])
def test_a_second_break_is_judged_like_the_first(code, blamed):
    """A suspect is blamed again only if its probe ends in a drop or a complaint; it stays suspect in any case."""
    session = session_in(Phase.PROBING, "a")
    lost = session.closed(code)
    suspicion = Suspicion("a", blamed=blamed, alone=blamed, sound=True)
    assert (Lost((), "a", dropped_alone=blamed), suspicion) == (lost, judged(session))


def test_a_probation_that_we_broke_off_blames_nobody():
    """If we close the connection during a probe, the suspect is tried again without an attempt."""
    session = session_in(Phase.PROBING, "a")
    session.overdue(TIMEOUT_S)
    lost = session.closed(None)
    assert (Lost((), "a"), Suspicion("a", blamed=False, sound=True)) == (lost, judged(session))


def test_a_late_answer_on_a_broken_connection_answers_nobody():
    """An answer after we gave up on the connection is not matched: the suspect is tried again, not settled."""
    session = session_in(Phase.PROBING, "a")
    session.overdue(TIMEOUT_S)
    late = session.received(SUCCESS, TIMEOUT_S)
    assert (Unpaired(), Lost((), "a")) == (late, session.closed(1002))


def test_a_drop_before_the_probe_blames_nobody():
    """A suspect that was not sent on this connection cannot have dropped it."""
    session = session_in(Phase.PROBING, "a")
    session.closed(1012)
    judged(session)
    session.closed(None)
    assert Suspicion("a", blamed=False, sound=True) == judged(session)


@pytest.mark.parametrize("answer", [SUCCESS, NOT_FOUND])
def test_an_answer_absolves_the_suspect(answer):
    """Any answer shows that the suspect drops no connections: the window opens, and it is no suspect any more."""
    session = session_in(Phase.PROBING, "a", "b")
    session.received(answer, 0.0)
    assert (Phase.OPEN, WINDOW) == (session.phase, room(session))
    assert (Lost((), None), Opened()) == (session.closed(None), let_in(session))


def test_a_suspect_dealt_with_otherwise_makes_way():
    """When the suspect is dead-lettered instead, the session opens for the others at once."""
    session = session_in(Phase.OPEN, "a")
    session.closed(None)
    judged(session)
    session.clear_suspect()
    assert (Phase.OPEN, WINDOW) == (session.phase, room(session))


def test_a_session_shows_its_state():
    """`repr` shows the phase, the window and whether there is a suspect."""
    open_, probing = session_in(Phase.OPEN, "a"), session_in(Phase.PROBING, "a")
    assert ("<Session OPEN: 1 of 4 unanswered>", "<Session PROBING: 1 of 4 unanswered, with a suspect>") == (
        repr(open_),
        repr(probing),
    )
