"""With `streaming_ready`, missing streaming details are filled in; the model and the decoder agree on them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.contract.model import JobStatus, JobStatusMetadata, JobStatusUpdate, StreamingDetails
from relay.contract.wire import Frame, Repair, decode

JOB = "123e4567-e89b-42d3-a456-426614174000"
FULL = {"streaming_server_cert": "pem", "streaming_server_address": "::1", "streaming_server_port": 7}
FILLED = {"streaming_server_cert": "", "streaming_server_address": "", "streaming_server_port": 0}


def update(details, status="streaming_ready", **more):
    """The JSON text of an update with these streaming details, and a number that no float can hold."""
    document = {"uuid": JOB, "status": status, "metadata": {"n": 123456789012345678901, "streaming_details": details}}
    return json.dumps({"message_type": "V0JobStatusUpdate"} | document | more).encode()


def without(key, how):
    """Complete streaming details, but for one member that is absent or null."""
    return {name: value for name, value in FULL.items() if name != key} if how == "absent" else FULL | {key: None}


@pytest.mark.parametrize("how", ["absent", "null"])
@pytest.mark.parametrize("key", list(FULL))
def test_each_missing_member_is_filled(key, how):
    """A null or absent text becomes "", a null or absent port 0; the rest of the metadata keeps its bytes."""
    outcome = decode(update(without(key, how)), JOB)
    assert ("streaming_ready", (Repair.STREAMING_DETAILS_FILLED,)) == (outcome.status, outcome.repairs)
    filled = FULL | {key: FILLED[key]}
    assert {"n": 123456789012345678901, "streaming_details": filled} == json.loads(outcome.text)["metadata"]


@pytest.mark.parametrize(
    ("status", "details"),
    [
        *(("streaming_ready", details) for details in (FULL, FILLED, None)),
        *((status, {}) for status in JobStatus if status != "streaming_ready"),
    ],
)
def test_nothing_else_is_touched(status, details):
    """Complete details, and those of another status, are forwarded as the same bytes."""
    body = update(details, status)
    assert decode(body, JOB).text is body


def test_the_repair_adds_up_with_others():
    """In an envelope, with another spelling of the UUID, no message type and a NUL, all is repaired and named."""
    document = {"uuid": JOB.upper(), "status": "streaming_ready", "metadata": {"streaming_details": {}, "\0": 1}}
    outcome = decode(json.dumps({"type": "job_status_update", "payload": document}).encode(), JOB)
    assert {Repair.UUID_RESPELLED, Repair.MESSAGE_TYPE_ADDED, Repair.STREAMING_DETAILS_FILLED, Repair.NUL_REPLACED} == {
        *outcome.repairs
    }
    expected = {"message_type": "V0JobStatusUpdate", "uuid": JOB, "status": "streaming_ready"}
    assert expected | {"metadata": {"streaming_details": FILLED, "\ufffd": 1}} == json.loads(outcome.text)


texts = st.none() | st.text(max_size=4).filter(lambda text: "\0" not in text)
ports = st.none() | st.integers(-(2**31), 2**31 - 1)
details = st.builds(
    StreamingDetails, streaming_server_cert=texts, streaming_server_address=texts, streaming_server_port=ports
)
updates = st.builds(
    JobStatusUpdate,
    uuid=st.just(JOB),
    status=st.sampled_from(JobStatus),
    metadata=st.builds(JobStatusMetadata, streaming_details=st.none() | details),
)


@settings(max_examples=150)
@given(update=updates, exclude_none=st.booleans())
def test_the_decoder_fills_what_the_model_leaves_open(update, exclude_none):
    """What is sent of any update that the model builds is that update again, with values for all that was missing."""
    body = update.model_dump_json(exclude_none=exclude_none).encode()
    outcome = decode(body, JOB)
    assert isinstance(outcome, Frame)
    found = update.metadata.streaming_details if update.metadata else None
    lacking = {key for key in FILLED if found is not None and getattr(found, key) is None}
    filled = update.status == "streaming_ready" and bool(lacking)
    assert filled == (Repair.STREAMING_DETAILS_FILLED in outcome.repairs)
    expected = json.loads(body)
    if filled:
        expected["metadata"]["streaming_details"] |= {key: FILLED[key] for key in lacking}
    assert expected == json.loads(outcome.text)
    assert Frame(outcome.text, update.status, ()) == decode(outcome.text, JOB)
    JobStatusUpdate.model_validate_json(outcome.text)
