import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.contract import subjects

UUIDS = st.uuids().map(str)
LANES = st.integers(min_value=1, max_value=256)


@pytest.mark.parametrize(
    ("token", "digest"),
    # The published test vectors of 32-bit FNV-1a.
    [("", 0x811C9DC5), ("a", 0xE40C292C), ("b", 0xE70C2DE5), ("foobar", 0xBF9CF968)],
)
def test_the_lane_is_fnv_1a_modulo_the_lanes(token, digest):
    """`lane_of` is the 32-bit FNV-1a hash of the token, modulo the number of lanes."""
    assert [digest % lanes for lanes in (1, 4, 7, 256)] == [subjects.lane_of(token, lanes) for lanes in (1, 4, 7, 256)]


@given(UUIDS, LANES)
def test_a_stored_subject_leads_back_to_the_published_one(uuid, lanes):
    """Token and published subject can be read from a stored subject, which matches the lane's filter."""
    lane = subjects.lane_of(uuid, lanes)
    stored = subjects.stored_subject(lane, uuid)
    assert uuid == subjects.token_of_stored(stored)
    assert subjects.status_subject(uuid) == subjects.published_subject(stored)
    assert subjects.lane_filter(lane) == stored.replace(uuid, "*")
    assert lane in range(lanes)


@given(LANES)
def test_the_number_of_lanes_can_be_read_from_the_transform(lanes):
    """The number of lanes can be read from a transform."""
    assert lanes == subjects.lanes_of_transform(subjects.lane_transform(lanes))


@pytest.mark.parametrize(
    "transform", [None, {}, {"src": "a", "dest": "b.{{partition(4,1)}}"}, {"dest": "job.status.x"}]
)
def test_another_transform_makes_no_lanes(transform):
    """A transform that is not the relay's has no number of lanes."""
    assert None is subjects.lanes_of_transform(transform)


@given(LANES)
def test_the_lane_can_be_read_from_the_consumer(lane):
    """The lane can be read from the name of a lane's consumer."""
    assert lane == subjects.lane_of_consumer(subjects.lane_consumer(lane))


@pytest.mark.parametrize(
    "name", ["", "relay-lane-", "relay-lane-x", "relay-lane--1", "relay-lane-\u00b2", "lane-1", "1"]
)
def test_another_consumer_has_no_lane(name):
    """The name of another consumer has no lane."""
    assert None is subjects.lane_of_consumer(name)


@given(UUIDS)
def test_only_one_spelling_of_a_uuid_is_a_job(uuid):
    """Only a UUID in lower case with hyphens is accepted as a job."""
    assert subjects.is_job_uuid(uuid)
    others = (uuid.replace("-", ""), f"{{{uuid}}}", f"urn:uuid:{uuid}", uuid + "\n", f" {uuid}", uuid[:-1])
    assert not any(subjects.is_job_uuid(other) for other in others)
    assert (uuid.upper() == uuid) == subjects.is_job_uuid(uuid.upper())


@given(st.text())
def test_any_token_is_made_safe_for_a_subject(token):
    """For any token, the subjects built from it have exactly three tokens, without wildcards or blanks."""
    for build in (
        subjects.dlq_subject,
        subjects.request_subject,
        subjects.cheated_subject,
        subjects.receipt_subject,
    ):
        assert re.fullmatch(r"job\.[a-z]+\.[0-9A-Za-z_-]{1,64}", build(token))


@given(UUIDS)
def test_a_uuid_stays_as_it_is(uuid):
    """A safe token is not changed."""
    assert uuid == subjects.safe_token(uuid)


@pytest.mark.parametrize(
    ("subject", "elsewhere"),
    [
        ("$JS.API.INFO", "$JS.hub.API.INFO"),
        ("$KV.RELAY_LEASES.lane.0", "$JS.hub.API.$KV.RELAY_LEASES.lane.0"),
        ("$JS.hub.API.INFO", "$JS.hub.API.INFO"),
        ("$JS.ACK.JOB_STATUS.relay-lane-0.1.1.1.1.0", "$JS.ACK.JOB_STATUS.relay-lane-0.1.1.1.1.0"),
        ("$JS.APIS", "$JS.APIS"),
        ("job.status.x", "job.status.x"),
    ],
)
def test_another_api(subject, elsewhere):
    """Requests to the API and keys are sent with the prefix, once; nothing else is."""
    assert elsewhere == subjects.on_api(subjects.domain_api("hub"), subject)
    assert subject == subjects.on_api(subjects.API, subject)
