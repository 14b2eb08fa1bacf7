"""The public model and the hot path's decoder agree.

These differences are intended, and left out of the generated documents:
- faults of the text (NaN, 1e999, duplicate keys, lone surrogates, invalid UTF-8, size) only concern the decoder;
- only the decoder knows the subject, so only it refuses another job's UUID.
The model accepts what the decoder repairs (spelling of the uuid, missing message_type or metadata, NUL, missing
streaming details) unchanged; test_streaming_details.py compares the two about the last one.
"""

import copy
import json
from uuid import UUID

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from relay.contract.model import (
    HordeFailureDetails,
    JobFailureDetails,
    JobParticipant,
    JobRejectionDetails,
    JobStatus,
    JobStatusMetadata,
    JobStatusUpdate,
    MinerResponse,
    StreamingDetails,
)
from relay.contract.subjects import Reason
from relay.contract.wire import Frame, decode

UUID_TEXT = "123e4567-e89b-42d3-a456-426614174000"

FULL = {
    "message_type": "V0JobStatusUpdate",
    "uuid": UUID_TEXT,
    "status": "completed",
    "metadata": {
        "miner_response": {
            "docker_process_stderr": "",
            "docker_process_stdout": "42",
            "artifacts": {"a": "b"},
            "upload_results": None,
            "further": [1],
        },
        "job_rejection_details": {"rejected_by": "miner", "reason": "busy", "message": "later", "context": {"x": 1.5}},
        "job_failure_details": {
            "reason": "timeout",
            "stage": "execution",
            "message": "took too long",
            "context": None,
            "docker_process_exit_status": 137,
            "docker_process_stdout": "out",
            "docker_process_stderr": None,
        },
        "horde_failure_details": {"reported_by": "validator", "reason": "other text", "message": "", "context": {}},
        "streaming_details": {
            "streaming_server_cert": "pem",
            "streaming_server_address": None,
            "streaming_server_port": 443,
        },
        "comment": {"open": True},
    },
}

texts = st.text(max_size=6)
numbers = (
    st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([2**31, -(2**31) - 1, 2**70])
)
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2))
telling = st.sampled_from(
    ["unknown", "sent", "Completed", UUID_TEXT.upper(), UUID_TEXT.replace("-", ""), f"{{{UUID_TEXT}}}", UUID_TEXT + " "]
)


def _places(node):
    """Every (container, key) of a document, except the document itself."""
    for key in list(node):
        yield node, key
        if isinstance(node[key], dict):
            yield from _places(node[key])


@st.composite
def documents(draw):
    """A full, valid update with some members dropped, replaced or added, anywhere in it."""
    document = copy.deepcopy(FULL)
    for mutation in draw(st.lists(st.sampled_from(["drop", "replace", "add"]), max_size=3)):
        places = list(_places(document))
        if not places:
            break
        container, key = places[draw(st.integers(0, len(places) - 1))]
        if mutation == "drop":
            del container[key]
        elif mutation == "replace":
            container[key] = draw(values | telling)
        else:
            container[draw(texts)] = draw(values)
    return document


def _model_accepts(body):
    try:
        JobStatusUpdate.model_validate_json(body)
    except ValidationError:
        return False
    return True


def _wire_accepts(body):
    outcome = decode(body, UUID_TEXT)
    return isinstance(outcome, Frame) or outcome.reason is Reason.UUID_MISMATCH


@settings(max_examples=150)
@given(document=documents(), ensure_ascii=st.booleans())
def test_the_model_and_the_wire_accept_and_refuse_the_same_documents(document, ensure_ascii):
    """If members of an update are dropped, mistyped or added, either both accept it or both refuse it."""
    body = json.dumps(document, ensure_ascii=ensure_ascii).encode()
    accepted = _model_accepts(body)
    event("accepted" if accepted else "refused")
    assert accepted == _wire_accepts(body), decode(body, UUID_TEXT)


SINGLE_DEFECTS = [
    (path, value)
    for path in [(key,) for key in FULL]
    + [("metadata", key) for key in FULL["metadata"]]
    + [("metadata", key, inner) for key in FULL["metadata"] for inner in FULL["metadata"][key]]
    for value in ("text", 1, 1.0, 1.5, True, None, [], {}, {"a": 1}, {"a": "b"}, 2**31, -(2**31) - 1)
]


def test_the_model_and_the_wire_agree_on_every_single_wrong_value():
    """If any member of a full update is replaced by a value of any kind, both give the same verdict."""
    disagreements = []
    for path, value in SINGLE_DEFECTS:
        document = copy.deepcopy(FULL)
        container = document
        for key in path[:-1]:
            container = container[key]
        container[path[-1]] = value
        body = json.dumps(document).encode()
        if _model_accepts(body) != _wire_accepts(body):
            disagreements.append((path, value))
    assert not disagreements


def test_the_model_and_the_wire_agree_on_every_absent_member():
    """If any member of a full update is missing, both give the same verdict."""
    disagreements = []
    for number in range(len(list(_places(FULL)))):
        document = copy.deepcopy(FULL)
        container, key = list(_places(document))[number]
        del container[key]
        body = json.dumps(document).encode()
        if _model_accepts(body) != _wire_accepts(body):
            disagreements.append(key)
    assert not disagreements


@pytest.mark.parametrize("depth", [150, 190, 194, 195, 196, 197, 198, 199, 200, 201, 202, 203, 210, 5000])
def test_the_model_and_the_wire_take_the_same_depth(depth):
    """Open metadata may be nested as deeply as pydantic reads it, and no deeper."""
    nested = b"[" * depth + b"]" * depth
    body = b'{"uuid":"%s","status":"sent","metadata":{"x":%s}}' % (UUID_TEXT.encode(), nested)
    assert _model_accepts(body) == _wire_accepts(body)


somewhere = st.none() | st.dictionaries(texts, texts, max_size=2)
metadata = st.builds(
    JobStatusMetadata,
    miner_response=st.none()
    | st.builds(
        MinerResponse,
        docker_process_stdout=texts,
        docker_process_stderr=texts,
        artifacts=somewhere,
        upload_results=somewhere,
    ),
    job_rejection_details=st.none()
    | st.builds(
        JobRejectionDetails,
        rejected_by=st.sampled_from(JobParticipant),
        reason=texts,
        message=texts,
        context=somewhere,
    ),
    job_failure_details=st.none()
    | st.builds(JobFailureDetails, reason=texts, stage=texts, message=texts, docker_process_exit_status=st.integers()),
    horde_failure_details=st.none()
    | st.builds(HordeFailureDetails, reported_by=texts, reason=texts, message=texts, context=somewhere),
    streaming_details=st.none()
    | st.builds(
        StreamingDetails,
        streaming_server_cert=texts,
        streaming_server_address=texts,
        streaming_server_port=st.integers(-(2**31), 2**31 - 1),
    ),
)
# A NUL in a text would be repaired, which is a different property.
updates = st.builds(JobStatusUpdate, uuid=st.uuids(), status=st.sampled_from(JobStatus), metadata=metadata).filter(
    lambda update: b"\\u0000" not in update.to_json()
)


@settings(max_examples=100)
@given(update=updates)
def test_what_the_model_builds_is_forwarded_untouched(update):
    """The bytes of `to_json` need no repair: the decoder returns the same object."""
    body = update.to_json()
    assert Frame(body, update.status.value, ()) == decode(body, update.uuid)
    assert decode(body, update.uuid).text is body


def test_to_json_reads_back_as_the_same_update():
    """An update that is read from the bytes equals the one that was built, including open keys and Unicode."""
    update = JobStatusUpdate(
        uuid=UUID_TEXT,
        status=JobStatus.FAILED,
        metadata=JobStatusMetadata.model_validate({"comment": ["ü", None, {"n": 1}]}),
    )
    assert update == JobStatusUpdate.model_validate_json(update.to_json())


@pytest.mark.parametrize(
    "spelled", [UUID_TEXT, UUID(UUID_TEXT), UUID_TEXT.upper(), UUID_TEXT.replace("-", ""), f"urn:uuid:{UUID_TEXT}"]
)
def test_the_model_keeps_one_spelling_of_a_uuid(spelled):
    """In whatever spelling a UUID is given, the update has it in lower case with hyphens."""
    assert str(UUID(UUID_TEXT)) == JobStatusUpdate(uuid=spelled, status="sent").uuid


def test_an_update_built_with_a_status_in_plain_text_has_the_status():
    """A producer may give the status as text; unknown text is an error at once."""
    assert JobStatus.ACCEPTED is JobStatusUpdate(uuid=UUID_TEXT, status="accepted").status
    with pytest.raises(ValidationError, match="status"):
        JobStatusUpdate(uuid=UUID_TEXT, status="done")


def test_the_model_says_why_nobody_may_send_the_status_unknown():
    """The status under which the Facilitator stores any other text is refused, with what it would do to the owner."""
    with pytest.raises(ValidationError, match="answers the job's owner with HTTP 500"):
        JobStatusUpdate(uuid=UUID_TEXT, status="unknown")


def test_only_the_four_final_statuses_are_terminal():
    """A job ends with completed, rejected, failed or horde_failed, and with no other status."""
    expected = {"completed", "rejected", "failed", "horde_failed"}
    assert expected == {status for status in JobStatus if status.terminal}


def test_the_json_schema_names_the_closed_set_and_what_is_required():
    """The schema generated for producers in other languages has the statuses and the required members."""
    schema = JobStatusUpdate.model_json_schema()
    assert [str(status) for status in JobStatus] == schema["$defs"]["JobStatus"]["enum"]
    expected = {
        "JobStatusUpdate": {"uuid", "status"},
        "MinerResponse": {"docker_process_stderr", "docker_process_stdout"},
        "JobRejectionDetails": {"rejected_by", "reason", "message"},
        "JobFailureDetails": {"reason", "stage", "message"},
        "HordeFailureDetails": {"reported_by", "reason", "message"},
    }
    kinds = schema["$defs"] | {"JobStatusUpdate": schema}
    assert expected == {name: set(kind["required"]) for name, kind in kinds.items() if "required" in kind}
    closed = {"JobStatusUpdate", "StreamingDetails"}
    assert closed == {name for name, kind in kinds.items() if kind.get("additionalProperties") is False}
