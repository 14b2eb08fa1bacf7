"""With any input: no crash, no hang, bounded output, and always a reason.

    EXAMPLES=20000 python -m pytest tests/faults/test_fuzz.py     this many examples, and different ones each time

Without EXAMPLES there are few, the same in every run.
"""

import datetime as dt
import json
import os
import re
from collections import deque

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from relay_kit import update

from relay.cli.dlq_display import json_row
from relay.contract.environment import load_settings
from relay.contract.errors import ConfigurationError
from relay.contract.facilitator_messages import Push, Reply, decode_incoming
from relay.contract.settings import Settings
from relay.contract.settings_table import settings_table
from relay.contract.subjects import status_subject
from relay.contract.wire import Unsendable, decode
from relay.core.backoff import Backoff
from relay.core.session import Answered, Broken, Opened, Pushed, Session, Unpaired
from relay.core.verdict import RetryPolicy, judge
from relay.dead_letters.export import from_line, to_line
from relay.dead_letters.moments import parse_since
from relay.dead_letters.replay_message import replay_message_of
from relay.dead_letters.stored import StoredDeadLetter
from relay.local.ledger import Conversation, Ledger, parse
from relay.nats.frames import FrameClient
from relay.path.delivery import Delivery

EXAMPLES = int(os.environ.get("EXAMPLES", "120"))
JOB = "123e4567-e89b-42d3-a456-426614174000"
SUCCESS = '{"status":"success","errors":[]}'


def bounded(share=1.0):
    """The number of examples; `share` is the test's part of it."""
    return settings(
        max_examples=max(1, round(EXAMPLES * share)),
        derandomize="EXAMPLES" not in os.environ,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def outcome_of(call, expected):
    """What `call` returns, or the text of the `expected` exception; any other exception is raised."""
    try:
        return call()
    except expected as problem:
        return str(problem)


# --- updates

STDOUT = {"docker_process_stdout": 'line "1"\n\\ [{', "docker_process_stderr": "\0 é 😀"}
GOOD = [
    update(JOB, "accepted"),
    update(JOB, "completed", {"miner_response": STDOUT | {"artifacts": {"a": "b"}}, "x": [1.5e300, -7, {"é": None}]}),
    update(JOB.upper(), "streaming_ready", {"streaming_details": {"streaming_server_port": 30000}}, message_type=...),
    update(JOB, "failed", {"job_failure_details": {"reason": "timeout", "stage": "execution", "message": "m"}}),
    b'{"type":"job_status_update","payload":' + update(JOB, "sent") + b"}",
]
PIECES = [
    *(b"", b'"', b"\\", b"\\u0000", b"\\ud800", b"\xff", b"\x00", b"\xef\xbb\xbf", b"{", b"}", b"[", b"]", b",", b":"),
    *(b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-0", b"00", b"9" * 40, b" " * 100, b"[" * 300),
    b'{"a":' * 300,
]
MEMBERS = [
    *(b'"x":1,', b'"x":NaN,', b'"x":-1e999,', b'"x":"\\u0000",', b'"\\u0000":"\\ud800",', b'"status":"failed",'),
    *(b'"uuid":"%b",' % b"00000000-0000-4000-8000-000000000001", b'"metadata":null,', b'"metadata":{"x":[[[]]]},'),
    *(b'"payload":{},', b'"message_type":"V0Heartbeat",', b'"streaming_details":{"streaming_server_port":1e10},'),
]


@st.composite
def spoiled(draw):
    """A good update in which bytes are left out, repeated or replaced, or which has an additional member."""
    body = draw(st.sampled_from(GOOD))
    if draw(st.booleans()):
        start = draw(st.sampled_from([found.end() for found in re.finditer(rb"{|,(?=\s*\")", body)]))
        return body[:start] + draw(st.sampled_from(MEMBERS)) + body[start:]
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(body)))
        end = min(len(body), start + draw(st.integers(0, 20)))
        piece = draw(st.sampled_from(PIECES) | st.binary(max_size=4) | st.just(body[start:end] * 2))
        body = body[:start] + piece + body[end:]
    return body


@st.composite
def extreme(draw):
    """An update whose metadata is far too deep, too large or too repetitive."""
    many = draw(st.integers(1, 20_000))
    value = draw(
        st.sampled_from(
            [
                b"[" * many + b"]" * many,
                b'{"a":' * many + b"1" + b"}" * many,
                b"[" * many,
                b"[" + b"[]," * many + b"1]",
                b"9" * many,
                b"-" + b"9" * many + b".5",
                b"0." + b"0" * many + b"1",
                b"1e" + b"9" * (many % 50 + 1),
                b'"' + b"\\" * many + b'u0000"',
                b'"' + b"\\u0000" * many + b'"',
                b"{" + b'"k":1,' * many + b'"l":1}',
                b"{" + b",".join(b'"%d":%d' % (number, number) for number in range(many % 3000)) + b"}",
            ]
        )
    )
    return update(JOB, "accepted", {"x": "HERE"}).replace(b'"HERE"', value)


def assert_judged(body, token=JOB):
    """`decode` gives a reason in one line of limited length, or an update that the Facilitator accepts."""
    outcome = decode(body, token)
    if isinstance(outcome, Unsendable):
        assert re.fullmatch(r"[ -~]{10,500}", outcome.error), outcome.error
        return
    ledger = Ledger(None)
    answer = Conversation(ledger, 1).answer(parse(outcome.text.decode()), 0.0)
    # The Facilitator makes `sent` itself, and answers that it has it.
    stored = [] if outcome.status == "sent" else [(token, outcome.status)]
    assert stored == [(row.uuid, row.status) for row in ledger.rows]
    assert ("job.integrity_error" if outcome.status == "sent" else "success", None) == (answer.kind, answer.end_code)


@bounded(3)
@given(spoiled())
def test_spoiled_updates(body):
    """An update with spoiled bytes is refused with a reason, or it is stored with its job and status."""
    assert_judged(body)


@bounded(0.5)
@given(extreme())
def test_extreme_updates(body):
    """An update is refused with a reason or stored, however deep, long or large its metadata is."""
    assert_judged(body)


@bounded(0.5)
@given(st.binary(max_size=80), st.text(max_size=100))
def test_any_bytes_for_any_token(body, token):
    """Bytes that are no update are refused with a reason, whatever the subject says."""
    outcome = decode(body, token)
    assert isinstance(outcome, Unsendable)
    assert re.fullmatch(r"[ -~]{10,500}", outcome.error), outcome.error


# --- deliveries

TOKENS = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789_-", min_size=1, max_size=40)
COUNTS = st.integers(0, 2**63 - 1)


@bounded(0.5)
@given(TOKENS, TOKENS, st.none() | st.tuples(TOKENS, TOKENS, TOKENS), st.tuples(COUNTS, COUNTS, COUNTS, COUNTS, COUNTS))
def test_ack_subjects(stream, consumer, domain, numbers):
    """Both forms of an acknowledgement subject give the numbers that the server wrote into them."""
    counts = list(map(str, numbers))
    names = [stream, consumer] if domain is None else [*domain[:2], stream, consumer]
    tokens = ["$JS", "ACK", *names, *counts] + ([] if domain is None else [domain[2]])
    delivery = Delivery(FrameClient(), b"job.status.0.%b" % JOB.encode(), ".".join(tokens).encode(), b"", b"")
    read = (delivery.deliveries, delivery.sequence, delivery.consumer_sequence, delivery.stored_at_s)
    assert (*numbers[:3], numbers[3] // 1000 / 1e6) == read
    assert {} == delivery.headers


# --- what the Facilitator sends

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["status", "errors", "message_type", "uuid", "job_uuid", "type", "msg"])
LONG = st.integers(1, 5000).map(lambda length: "x" * length)
MESSAGES = (
    st.fixed_dictionaries({"message_type": LONG, "uuid": LONG}).map(json.dumps)
    | st.lists(st.fixed_dictionaries({"type": LONG, "msg": LONG}), max_size=50).map(
        lambda errors: json.dumps({"status": "error", "errors": errors})
    )
    | st.binary(max_size=60)
    | st.text(max_size=60)
    | st.dictionaries(KEYS, JSON | st.sampled_from(["success", "error", "V2JobRequest"]), max_size=5).map(json.dumps)
    | st.integers(1, 20_000).map(lambda depth: '{"status":"error","errors":' + "[" * depth)
)
ERRORS = st.lists(st.fixed_dictionaries({}, optional={"type": st.text(max_size=9), "msg": JSON, "input": JSON}))
REPLIES = st.just({"status": "success", "errors": []}) | st.fixed_dictionaries(
    {"status": st.just("error")}, optional={"errors": ERRORS | JSON, "uuid": JSON}
)
FORGOTTEN = {"status": "error", "errors": [{"type": "auth.not_authenticated", "msg": ""}]}
PUSHES = st.fixed_dictionaries({"message_type": st.text(max_size=9)}, optional={"uuid": JSON, "status": JSON})
GARBAGE = st.sampled_from([b"", b"\xff", "[]", "{}", "7", '{"status":"maybe"}', '{"message_type":null}', "<html>"])
FRAMES = st.one_of(
    st.tuples(st.just("reply"), REPLIES.map(json.dumps)),
    st.tuples(st.just("reply"), REPLIES.map(json.dumps).map(str.encode)),
    st.tuples(st.just("push"), PUSHES.map(json.dumps)),
    st.tuples(st.just("forgotten"), st.just(json.dumps(FORGOTTEN))),
    st.tuples(st.just("garbage"), GARBAGE),
)


def open_session(window=4):
    session = Session(window=window, reply_timeout_s=60.0, authentication=None, size_of=lambda _: 1)
    session.opened(0.0)
    assert isinstance(session.received(SUCCESS, 0.0), Opened)
    return session


@bounded(1)
@given(MESSAGES)
def test_any_message(message):
    """Any message is taken as a reply with lines of limited length, as a push, or as not understood."""
    match decode_incoming(message):
        case Reply(status, errors) as reply:
            verdict = judge(reply, 2, RetryPolicy(2, Backoff(1.0, 8.0, lambda: 0.5)))
            assert len(getattr(verdict, "error", "")) < 5000
            assert status in ("success", "error")
            assert all(re.fullmatch(r"[ -~]{0,500}", told) for error in errors for told in (error.type, error.msg))
        case Push(_, token, message_type):
            assert len(token) <= 60
            assert len(message_type) <= 60
        case outcome:
            assert outcome is None


@bounded(1)
@given(st.lists(st.tuples(FRAMES, st.integers(0, 3)), max_size=12))
def test_pairing(conversation):
    """Each reply answers the oldest unanswered update; after a message that is not understood, nothing is answered."""
    session, unanswered, trusted, sent = open_session(), deque(), True, 0
    for (kind, frame), wanted in conversation:
        updates = session.fill(lambda room, *_: range(sent, sent + min(wanted, room)), 0.0)  # noqa: B023 - called here
        unanswered.extend(updates)
        sent += len(updates)
        event = session.received(frame, 1.0)
        if kind == "push":
            assert isinstance(event, Pushed)
        elif not trusted:
            assert Unpaired() == event
        elif kind == "reply" and unanswered:
            assert isinstance(event, Answered)
            assert unanswered.popleft() == event.update
        else:
            assert isinstance(event, Broken)
            trusted = False
    lost = session.closed(1000)
    assert tuple(unanswered) == lost.unanswered
    assert lost.suspect is None


@bounded(1)
@given(st.lists(MESSAGES, max_size=8), st.sampled_from([None, 1000, 1009, 3000]))
def test_any_conversation(messages, code):
    """Whatever is received, updates are answered in order, and the end of the connection returns all others."""
    session, unanswered = open_session(8), deque(range(8))
    session.fill(lambda room, *_: range(room), 0.0)
    for message in messages:
        event = session.received(message, 1.0)
        if isinstance(event, Answered):
            assert unanswered.popleft() == event.update
    lost = session.closed(code)
    kept = lost.unanswered if lost.suspect is None else (lost.suspect, *lost.unanswered)
    assert tuple(unanswered) == kept


# --- dead letters

PRINTABLE = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30)
MARKS = st.sampled_from(
    [
        *("Relay-Reason", "Relay-Attempts", "Relay-Source-Sequence", "Relay-Source-Subject", "Relay-History"),
        *("Relay-Failed-At", "Relay-Replayed-From", "relay-reason", "Nats-Msg-Id", "NATS-TTL", "X-Trace"),
    ]
)
SUBJECTS = st.sampled_from([f"job.status.{JOB}", "job.status.x", "job.status.*", "job.dlq.x", "job.status."])
LETTERS = st.builds(
    StoredDeadLetter,
    st.integers(1, 2**63),
    st.datetimes(dt.datetime(1970, 1, 2), dt.datetime(9999, 1, 1), timezones=st.just(dt.UTC)),  # noqa: DTZ001
    st.builds(
        lambda headers, subject: headers | {"Relay-Source-Subject": subject},
        st.dictionaries(MARKS | PRINTABLE, PRINTABLE | st.integers().map(str) | st.just("9" * 5000), max_size=8),
        SUBJECTS | PRINTABLE,
    ),
    st.binary(max_size=60) | spoiled(),
)


@bounded(1)
@given(LETTERS)
def test_dead_letters(letter):
    """A dead letter can be shown whatever its headers are, and is replayed without headers that control the server."""
    shown = (letter.reason, letter.error, letter.attempts, letter.failed_at, letter.job, letter.status)
    assert all(isinstance(each, str) for each in shown)
    assert 1 == len(json_row(letter).splitlines())
    replay = replay_message_of(letter)
    assert (replay is None) == (not letter.job)
    if replay is not None:
        steering = {name for name in replay.headers if name.lower().startswith(("nats-", "relay-"))}
        assert {"Nats-Msg-Id", "Relay-Replayed-From", "Relay-History"} == steering
        assert status_subject(letter.job) == replay.subject
        assert len(replay.headers["Relay-History"].split("; ")) <= 20
        assert letter == from_line(to_line(letter))


@bounded(1)
@given(st.data())
def test_lines_of_a_file(data):
    """A line of an export with spoiled bytes is read as a dead letter, or refused with a reason."""
    line = to_line(
        StoredDeadLetter(7, dt.datetime(2026, 11, 22, tzinfo=dt.UTC), {"Relay-Source-Subject": "job.status.x"}, b"x")
    )
    start = data.draw(st.integers(0, len(line)))
    cut = data.draw(st.integers(0, 10))
    spoilt = (
        line[:start]
        + data.draw(
            st.binary(max_size=4) | st.sampled_from([*PIECES, b'"x":' + b"[" * 100_000, b"0001-01-01T00:00:00+05:00"])
        )
        + line[start + cut :]
    )
    told = outcome_of(lambda: from_line(spoilt).job, ValueError)
    assert told


@pytest.mark.parametrize(
    "change", [{"x": "DEEP"}, {"stored_at": "0001-01-01T00:00:00+05:00"}, {"sequence": "9" * 5000}]
)
def test_extreme_lines(change):
    """A line of an export that is far too deep or has far too large numbers is refused with a reason."""
    line = to_line(
        StoredDeadLetter(7, dt.datetime(2026, 11, 22, tzinfo=dt.UTC), {"Relay-Source-Subject": "job.status.x"}, b"x")
    )
    spoilt = json.dumps(json.loads(line) | change).encode().replace(b'"DEEP"', b"[" * 100_000)
    with pytest.raises(ValueError):  # noqa: PT011 - any text will do
        from_line(spoilt)


def test_a_time_outside_of_all_calendars():
    """A time that UTC cannot represent is refused like text that is no time."""
    with pytest.raises(ValueError, match="calendar"):
        parse_since("0001-01-01T00:00:00+05:00", dt.datetime(2026, 11, 22, tzinfo=dt.UTC))


# --- settings

VARIABLES = st.sampled_from([row.variable for row in settings_table()])
WORDS = st.sampled_from(
    [
        *("0", "-1", "1e9", "nan", "inf", "9" * 5000, "٣", "true", "none", "hotkey", "json", ".", "/", "/dev/null"),
        *("nats://", "nats://u:p@h:1,", "nats://[::1", "nats://a:99999", "wss://f/ws/v0/", "ws://h:x/", "wss://u:p@/"),
    ]
)
VALUES = WORDS | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
NAMES = VARIABLES | st.text("ABCXYZ_0189", max_size=30).map("RELAY_{}".format)


@bounded(1)
@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_settings(environment):
    """Any environment gives settings, or one line that names the variable."""
    told = outcome_of(lambda: load_settings(environment, None), ConfigurationError)
    if not isinstance(told, Settings):
        assert [told] == told.splitlines()
        assert "RELAY_" in told
