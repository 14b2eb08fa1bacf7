"""Dead letters as values: selections, the content of a replay, and files of dead letters."""

import datetime as dt
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from update_kit import GivenUpdate

from relay.contract.subjects import Reason
from relay.dead_letters.export import from_line, to_line
from relay.dead_letters.moments import moment_of_us, parse_since
from relay.dead_letters.replay_message import is_replay_id, replay_message_of
from relay.dead_letters.runbook import ADVICE
from relay.dead_letters.stored import StoredDeadLetter

JOB = "123e4567-e89b-42d3-a456-426614174000"
NOW = dt.datetime(2026, 11, 22, 3, tzinfo=dt.UTC)
MOMENTS = st.datetimes(dt.datetime(2020, 1, 1), dt.datetime(2100, 1, 1), timezones=st.just(dt.UTC))  # noqa: DTZ001
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
HEADERS = st.dictionaries(TEXT, TEXT)


def letter(body: bytes = b"{}", **headers: str) -> StoredDeadLetter:
    told = {
        "Relay-Reason": "refused",
        "Relay-Attempts": "5",
        "Relay-Failed-At": "2026-11-22T02:59:00.000+00:00",
        "Relay-Source-Subject": f"job.status.{JOB}",
        "Relay-Source-Sequence": "41",
    }
    return StoredDeadLetter(7, NOW, told | {name.replace("_", "-"): value for name, value in headers.items()}, body)


def test_replay_is_the_update_and_its_marks():
    """A replay has the original's subject, body and headers, and marks that identify it; nothing else."""
    made = replay_message_of(
        letter(b"\xff", X_Trace="1", Nats_TTL="5", nats_rollup="all", Relay_Original_Nats_Msg_Id="x")
    )
    assert (JOB, f"job.status.{JOB}", b"\xff", 41) == (made.job, made.subject, made.body, made.likely_last)
    assert {
        "X-Trace": "1",
        "Nats-Msg-Id": made.message_id,
        "Relay-Replayed-From": "7",
        "Relay-History": "refused 5 2026-11-22T02:59:00.000+00:00",
    } == made.headers


def test_history_grows_and_is_bounded():
    """Each replay adds a failure to the history, which keeps the last twenty."""
    current = letter()
    for count in range(1, 25):
        made = replay_message_of(current)
        current = letter(Relay_History=made.headers["Relay-History"], Relay_Attempts=str(count))
        assert min(count, 20) == len(current.history)
    assert [str(attempts) for attempts in range(4, 24)] == [failure.attempts for failure in current.history]


@pytest.mark.parametrize("history", ["", "nonsense", "; ;", "a b c d"])
def test_history_of_somebody_else(history):
    """A malformed history counts as none."""
    assert () == letter(Relay_History=history).history


def test_replay_ids_differ():
    """Another sequence, time or body gives another id, and none is equal to a producer's."""
    one = letter()
    others = replace(one, sequence=8), replace(one, stored_at=moment_of_us(1)), replace(one, body=b"{} ")
    ids = {replay_message_of(each).message_id for each in (one, *others)}
    assert 4 == len(ids)
    assert all(map(is_replay_id, ids))
    assert not is_replay_id("123e4567-accepted")


@pytest.mark.parametrize(
    ("ahead_s", "headers", "expected"),
    [
        (0, {}, True),
        (1, {}, False),
        (-3600, {}, True),
        (0, {"Relay-Source-Stored-At": "2026-11-22T03:00:00.000000+00:00"}, True),
        (3600, {"Relay-Source-Stored-At": "2026-11-22T04:00:00.000000+00:00"}, True),
        (-3600, {"Relay-Source-Stored-At": "2026-11-22T03:00:00.000000+00:00"}, False),
        (0, {"Relay-Source-Stored-At": "2026-11-22T03:00:00"}, True),
        (1, {"Relay-Source-Stored-At": "nonsense"}, False),
        (0, {"Relay-Source-Sequence": "40"}, False),
        (0, {"Relay-Source-Subject": "job.status.other"}, False),
    ],
)
def test_whose_dead_letter_it_is(ahead_s, headers, expected):
    """A dead letter is that of the update with its job, sequence and time. If it does not tell the time, or not in a
    way that can be read, it is not older than its update.
    """
    update = GivenUpdate(f"job.status.0.{JOB}", 41, {}, b"", NOW.timestamp() + ahead_s)
    assert expected == letter(**{name.replace("-", "_"): value for name, value in headers.items()}).is_of(update)


@pytest.mark.parametrize("subject", ["", "job.status.", "job.status.a.b", "job.status.*", "job.status.>", "job.dlq.a"])
def test_no_replay_without_a_subject(subject):
    """A dead letter without a subject of one job cannot be replayed."""
    assert None is replay_message_of(letter(Relay_Source_Subject=subject))


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"status": "accepted"}', "accepted"),
        (b'{"payload": {"status": "failed"}}', "failed"),
        (b'{"status": 3}', ""),
        (b'{"payload": 3}', ""),
        (b"[" * 100_000, ""),
        (b"\xff", ""),
    ],
)
def test_status(body, status):
    """The status is read from any body that has one; for any other body it is empty."""
    assert status == letter(body).status


@given(st.integers(1, 2**63), MOMENTS, HEADERS, st.binary() | TEXT.map(str.encode))
def test_export_and_import(sequence, stored_at, headers, body):
    """An exported dead letter is one line, and is imported unchanged, whatever bytes it has."""
    exported = StoredDeadLetter(sequence, stored_at, headers | {"Relay-Source-Subject": f"job.status.{JOB}"}, body)
    line = to_line(exported)
    assert (1, b"\n") == (line.count(b"\n"), line[-1:])
    assert 1 == len(line.decode().splitlines())
    assert exported == from_line(line)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"body": None}, "either `body` or `body_base64`"),
        ({"body_base64": "e30="}, "either `body` or `body_base64`"),
        ({"sequence": 0}, "sequence"),
        ({"stored_at": "2026-11-22T03:00:00"}, "offset from UTC"),
        ({"headers": {}}, "Relay-Source-Subject"),
        ({"body": None, "body_base64": "!"}, "base64|padding"),
    ],
)
def test_import_of_another_line(change, problem):
    """A line that is not a dead letter is refused, and the error says what is wrong."""
    line = json.dumps(json.loads(to_line(letter())) | change).encode()
    with pytest.raises(ValueError, match=problem):
        from_line(line)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90s", NOW - dt.timedelta(seconds=90)),
        ("15m", NOW - dt.timedelta(minutes=15)),
        ("2h", NOW - dt.timedelta(hours=2)),
        ("3d", NOW - dt.timedelta(days=3)),
        ("2026-11-22T01:02", dt.datetime(2026, 11, 22, 1, 2, tzinfo=dt.UTC)),
        ("2026-11-22T01:02:03Z", dt.datetime(2026, 11, 22, 1, 2, 3, tzinfo=dt.UTC)),
        ("2026-11-22T01:02+02:00", dt.datetime(2026, 11, 21, 23, 2, tzinfo=dt.UTC)),
    ],
)
def test_since(text, moment):
    """An age counts from now; a time is UTC unless it says otherwise."""
    assert moment == parse_since(text, NOW)


@pytest.mark.parametrize("text", ["", "h", "2 h", "-2h", "2w", "yesterday", "99999999999d"])
def test_since_is_neither(text):
    """Text that is neither an age nor a time is refused."""
    with pytest.raises(ValueError):  # noqa: PT011 - the caller makes the message
        parse_since(text, NOW)


def test_every_reason_has_advice():
    """There is advice for each reason of the contract, in its order, and no other advice."""
    assert list(Reason) == list(ADVICE)
