import inspect
import json
import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.contract.model import JobStatus
from relay.contract.sizes import MAX_FRAME_BYTES
from relay.contract.subjects import Reason
from relay.contract.wire import Frame, Repair, Unsendable, decode

JOB = "123e4567-e89b-42d3-a456-426614174000"
OTHER_JOB = "00000000-0000-4000-8000-000000000001"
MINER_RESPONSE = {"docker_process_stderr": "", "docker_process_stdout": "42"}


def update(**members):
    """The JSON text of an update; a member that is `...` is left out."""
    document = {"message_type": "V0JobStatusUpdate", "uuid": JOB, "status": "accepted", "metadata": None} | members
    return json.dumps({key: value for key, value in document.items() if value is not ...}).encode()


def raw(metadata, status="accepted"):
    """An update with these bytes as its metadata."""
    fields = (JOB.encode(), status.encode(), metadata)
    return b'{"message_type":"V0JobStatusUpdate","uuid":"%s","status":"%s","metadata":%s}' % fields


def nested(depth):
    return raw(b'{"x":' + b"[" * depth + b"]" * depth + b"}")


@pytest.mark.parametrize("status", list(JobStatus))
def test_every_known_status_is_forwarded_as_it_came(status):
    """An update without faults is sent as the same bytes object that came from the producer."""
    body = update(status=status, metadata={"comment": "x"})
    outcome = decode(body, JOB)
    assert Frame(body, status, ()) == outcome
    assert body is outcome.text


def test_open_metadata_is_forwarded_to_the_last_digit():
    """In open metadata, numbers that a float cannot hold and unusual spacing stay unchanged."""
    body = raw(b'{ "big":123456789012345678901234567890, "fine":0.12345678901234567890123, "e":1E+2 }')
    assert Frame(body, "accepted", ()) == decode(body, JOB)


def test_an_envelope_is_taken_off_and_nothing_else_changes():
    """The payload of a channel-layer envelope is sent with exactly the bytes that it had in the envelope."""
    inner = raw(b'{ "big":123456789012345678901234567890 }')
    body = b'{"type":"job_status_update","payload":' + inner + b"}"
    assert Frame(inner, "accepted", ()) == decode(body, JOB)


REPAIRS = {
    Repair.MESSAGE_TYPE_ADDED: [{"message_type": ...}],
    Repair.METADATA_ADDED: [
        {"status": s, "metadata": m} for s in ("completed", "streaming_ready") for m in (None, ...)
    ],
    Repair.UUID_RESPELLED: [{"uuid": u} for u in (JOB.upper(), JOB.replace("-", ""), f"{{{JOB}}}", f"urn:uuid:{JOB}")],
}


@pytest.mark.parametrize(("repair", "members"), [(repair, each) for repair, all_ in REPAIRS.items() for each in all_])
def test_repairs(repair, members):
    """Each fault that can be repaired is repaired, and the repair is named for the metrics."""
    status, metadata = members.get("status", "accepted"), b"{}" if repair is Repair.METADATA_ADDED else b"null"
    assert Frame(raw(metadata, status), status, (repair,)) == decode(update(**members), JOB)


def test_repairs_add_up():
    """An envelope around an update with every fault gives one valid frame, and each repair is named."""
    inner = {"uuid": JOB.upper(), "status": "failed", "metadata": {"a\0": ["\0"]}}
    body = json.dumps({"type": "job_status_update", "payload": inner}).encode()
    repairs = (Repair.UUID_RESPELLED, Repair.MESSAGE_TYPE_ADDED, Repair.NUL_REPLACED)
    assert Frame(raw(b'{"a\\ufffd": ["\\ufffd"]}', "failed"), "failed", repairs) == decode(body, JOB)


def test_a_rewrite_leaves_the_bytes_of_the_metadata_alone():
    """If another member is repaired, open metadata keeps its digits and its spacing."""
    metadata = b'{ "big":123456789012345678901234567890, "e":1E+2 }'
    body = b'{"uuid":"%s","status":"accepted","metadata":%s}' % (JOB.encode(), metadata)
    assert Frame(raw(metadata), "accepted", (Repair.MESSAGE_TYPE_ADDED,)) == decode(body, JOB)


FAULTS = {
    Reason.INVALID_JSON: {
        "empty": b"",
        "not JSON": b"status=accepted",
        "cut short": update()[:-1],
        "trailing text": update() + b"x",
        "two documents": update() + update(),
        "byte order mark": b"\xef\xbb\xbf" + update(),
        "UTF-16": update().decode().encode("utf-16"),
        "invalid UTF-8 in open metadata": raw(b'{"x":"\xff"}'),
        "truncated UTF-8": raw(b'{"x":"\xc3"}'),
        "invalid UTF-8 in a key": raw(b'{"\xff":1}'),
        "encoded surrogate": raw(b'{"x":"\xed\xa0\x80"}'),
        "lone high surrogate": raw(b'{"x":"\\ud800"}'),
        "lone low surrogate": raw(b'{"x":"\\udc00"}'),
        "surrogate in a key": raw(b'{"\\ud800":1}'),
        "raw NUL": raw(b'{"x":"\x00"}'),
        "NaN": raw(b'{"x":NaN}'),
        "Infinity": raw(b'{"x":Infinity}'),
        "-Infinity": raw(b'{"x":[-Infinity]}'),
        "exponent overflow": raw(b'{"x":1e999}'),
        "negative overflow": raw(b'{"x":-1E+309}'),
        "mantissa overflow": raw(b'{"x":' + b"9" * 400 + b".0}"),
        "overflow in a typed integer": raw(b'{"streaming_details":{"streaming_server_port":1e999}}'),
        "integer of 5000 digits": raw(b'{"x":' + b"9" * 5000 + b"}"),
        "duplicate at the top": b'{"uuid":"%s",' % JOB.encode() + update()[1:],
        "duplicate in open metadata": raw(b'{"x":[{"a":1,"a":1}]}'),
        "duplicate spelled with an escape": raw(b'{"a":1,"\\u0061":1}'),
        "duplicate after repair": raw(b'{"\\u0000":1,"\\ufffd":1}'),
        "duplicate in an envelope": b'{"type":"job_status_update","type":"job_status_update","payload":'
        + update()
        + b"}",
        "deep": nested(5000),
        "deeper than pydantic reads": nested(250),
        "array": b"[" + update() + b"]",
        "null": b"null",
        "number": b"1e999",
    },
    Reason.INVALID_SCHEMA: {
        "empty object": b"{}",
        "unknown field": update(extra=1),
        "no uuid": update(uuid=...),
        "uuid null": update(uuid=None),
        "uuid a number": update(uuid=1),
        "no status": update(status=...),
        "other message_type": update(message_type="V0Heartbeat"),
        "message_type null": update(message_type=None),
        "metadata an array": update(metadata=[]),
        "metadata a text": update(metadata="x"),
        "miner_response without stdout": update(metadata={"miner_response": {"docker_process_stderr": ""}}),
        "artifacts not of text": update(metadata={"miner_response": MINER_RESPONSE | {"artifacts": {"a": 1}}}),
        "rejection without reason": update(metadata={"job_rejection_details": {"rejected_by": "miner", "message": ""}}),
        "context an array": update(
            metadata={"horde_failure_details": {"reported_by": "x", "reason": "x", "message": "x", "context": []}}
        ),
        "exit status a text": update(
            metadata={
                "job_failure_details": {"reason": "", "stage": "", "message": "", "docker_process_exit_status": "1"}
            }
        ),
        "streaming_details open": update(metadata={"streaming_details": {"x": 1}}),
        "port of 2^31": update(metadata={"streaming_details": {"streaming_server_port": 2**31}}),
        "port of -2^31-1": update(metadata={"streaming_details": {"streaming_server_port": -(2**31) - 1}}),
        "port of 2^70": update(metadata={"streaming_details": {"streaming_server_port": 2**70}}),
        "envelope with more in it": json.dumps(
            {"type": "job_status_update", "payload": json.loads(update()), "x": 1}
        ).encode(),
        "envelope of another type": json.dumps({"type": "other", "payload": json.loads(update())}).encode(),
        "envelope without type": json.dumps({"payload": json.loads(update())}).encode(),
        "envelope of an array": b'{"type":"job_status_update","payload":[]}',
        "envelope of an envelope": b'{"type":"job_status_update","payload":{"type":"job_status_update","payload":{}}}',
    },
    Reason.UNKNOWN_STATUS: {
        "other text": update(status="done"),
        "unknown": update(status="unknown"),
        "capitals": update(status="Completed"),
        "empty text": update(status=""),
        "null": update(status=None),
        "number": update(status=3),
        "boolean": update(status=True),
        "array": update(status=["sent"]),
        "object": update(status={"a": {}}),
        "huge number": update(status=10**400),
    },
    Reason.INVALID_UUID: {
        "not a UUID": update(uuid="job-1"),
        "empty": update(uuid=""),
        "with a space": update(uuid=JOB + " "),
        "underscores": update(uuid=JOB.replace("-", "_")),
        "NUL": update(uuid=JOB + "\0"),
    },
    Reason.UUID_MISMATCH: {
        "another job": update(uuid=OTHER_JOB),
        "another job, respelled": update(uuid=OTHER_JOB.replace("-", "")),
    },
    Reason.TOO_LARGE: {
        "one byte too many": update() + b" " * (MAX_FRAME_BYTES + 1 - len(update())),
        "20 MB, not even JSON": b"x" * 20_000_000,
        # A minimal update at the size limit exceeds it when its message_type is added.
        "repaired past the limit": b'{"uuid":"%s","status":"sent","metadata":{"x":"%s"}}'
        % (JOB.encode(), b"x" * (MAX_FRAME_BYTES - 100)),
    },
}
FAULT_CASES = [
    pytest.param(reason, body, id=f"{reason}: {name}") for reason in FAULTS for name, body in FAULTS[reason].items()
]


@pytest.mark.parametrize(("reason", "body"), FAULT_CASES)
def test_what_the_facilitator_would_choke_on_is_caught(reason, body):
    """Each bad body is refused with its reason and one line of printable ASCII of limited length."""
    outcome = decode(body, JOB)
    assert isinstance(outcome, Unsendable), outcome
    assert reason is outcome.reason
    assert re.fullmatch(r"[ -~]{10,500}", outcome.error), outcome.error


ERRORS = [
    (update(extra=1), ["`extra`"]),
    (update(uuid=1), ["`str`", "`int`", "`$.uuid`"]),
    (update(metadata={"miner_response": {}}), ["`docker_process_stderr`", "`$.metadata.miner_response`"]),
    (raw(b'{"x":NaN}'), ["NaN"]),
    (raw(b'{"x":1e999}'), ["'1e999'"]),
    (raw(b'{"a\\n":1,"a\\n":2}'), [r"'a\n'", "twice"]),
    (update(uuid=OTHER_JOB), [JOB, OTHER_JOB, "`$.uuid`"]),
    (b"[]", ["an array"]),
    (update(status="unknown"), ["'unknown'", "`$.status`", "horde_failed", "HTTP 500"]),
]


@pytest.mark.parametrize(("body", "named"), ERRORS)
def test_an_error_names_what_is_wrong_and_where(body, named):
    """The error names the wrong field or value, and its place in the document if it has one."""
    error = decode(body, JOB).error
    assert [] == [name for name in named if name not in error]


def test_an_error_does_not_echo_what_is_huge():
    """Keys, statuses and uuids of megabytes are cut in the error."""
    huge = "ü\n" * 500_000
    bodies = [update(**{huge: 1}), update(status=huge), update(uuid=huge), update(message_type=huge)]
    assert all(len(decode(body, JOB).error) <= 500 for body in bodies)
    assert len(decode(update(), huge).error) <= 500


@pytest.mark.parametrize("token", ["", "job-1", JOB.upper(), JOB.replace("-", ""), f"{JOB}.x", "é", JOB + "\n"])
def test_a_subject_must_name_its_job_in_one_spelling(token):
    """A token that is not a lower-case UUID with hyphens is refused, and the error shows the right spelling."""
    outcome = decode(update(), token)
    assert Reason.INVALID_UUID is outcome.reason
    assert "as in job.status.123e4567-e89b-42d3-a456-426614174000" in outcome.error


def test_the_largest_frame_is_still_taken():
    """An update exactly at the Facilitator's limit is accepted."""
    body = update() + b" " * (MAX_FRAME_BYTES - len(update()))
    assert Frame(body, "accepted", ()) == decode(body, JOB)


def test_many_brackets_that_are_not_deep_are_no_fault():
    """Texts full of brackets, and long flat arrays, are not taken for deep nesting."""
    body = update(
        metadata={"miner_response": MINER_RESPONSE | {"docker_process_stdout": "[{" * 1000}, "x": [[]] * 1000}
    )
    assert Frame(body, "accepted", ()) == decode(body, JOB)


def test_decode_never_raises_however_little_stack_is_left():
    """Nested metadata that is decoded deep in a call stack gives an outcome, not a RecursionError."""

    def after(calls):
        return after(calls - 1) if calls else decode(nested(190), JOB)

    free = sys.getrecursionlimit() - len(inspect.stack())
    assert isinstance(after(free - 100), Frame | Unsendable)


# Fragments for which a search for \u0000 that ignores escapes is wrong, and whatever hypothesis adds.
tricky_texts = st.lists(st.sampled_from(["\\", "u0000", "\0", '"', "\\u0000", "a", "\ufffd"]), max_size=6).map("".join)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | tricky_texts,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(tricky_texts.map(lambda text: "k" + text), inner, max_size=2)
    ),
    max_leaves=8,
)


def without_nul(value):
    """`value` with U+FFFD instead of every NUL in its texts and keys."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, list):
        return [without_nul(item) for item in value]
    if isinstance(value, dict):
        return {without_nul(key): without_nul(item) for key, item in value.items()}
    return value


def has_colliding_keys(value):
    """Whether keys of one object differ only by NUL and U+FFFD."""
    if isinstance(value, list):
        return any(map(has_colliding_keys, value))
    if isinstance(value, dict):
        return len({without_nul(key) for key in value}) < len(value) or any(map(has_colliding_keys, value.values()))
    return False


@settings(max_examples=150)
@given(value=json_values.filter(lambda value: not has_colliding_keys(value)), ensure_ascii=st.booleans())
def test_every_nul_and_nothing_else_becomes_the_replacement_character(value, ensure_ascii):
    """A reader of the frame gets what the producer wrote, with U+FFFD for each NUL."""
    metadata = {"x": value}
    body = raw(json.dumps(metadata, ensure_ascii=ensure_ascii).encode())
    outcome = decode(body, JOB)
    assert without_nul(metadata) == json.loads(outcome.text)["metadata"]
    repairs = (Repair.NUL_REPLACED,) if without_nul(metadata) != metadata else ()
    assert repairs == outcome.repairs
    assert bool(repairs) is (outcome.text is not body)


VALID = [
    update(status="completed", metadata={"miner_response": MINER_RESPONSE, "x": ["\0", 1.5, {"a": "é"}]}),
    update(message_type=..., uuid=JOB.upper(), status="streaming_ready"),
    b'{"type":"job_status_update","payload":' + update() + b"}",
]
SPLICES = [
    b"",
    b'"',
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"\xff",
    b"\x00",
    b"1e999",
    b"NaN",
    b"[" * 300,
    b"{",
    b"}",
    b",",
    b"null",
]


@st.composite
def mutated_bodies(draw):
    body = draw(st.sampled_from(VALID))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(body)))
        cut = draw(st.integers(0, 8))
        body = body[:start] + draw(st.sampled_from(SPLICES) | st.binary(max_size=3)) + body[start + cut :]
    return body


@settings(max_examples=300)
@given(body=st.binary(max_size=60) | mutated_bodies(), token=st.just(JOB) | st.text(max_size=40))
def test_decode_never_raises_and_what_it_lets_through_needs_nothing_more(body, token):
    """For any bytes and any token, the outcome is a fault in one line, or a frame that decodes to itself."""
    outcome = decode(body, token)
    if isinstance(outcome, Unsendable):
        assert re.fullmatch(r"[ -~]{10,500}", outcome.error), outcome.error
    else:
        assert Frame(outcome.text, outcome.status, ()) == decode(outcome.text, token)
