"""Markers that nats-server stores in the place of messages that are gone are neither updates nor dead letters."""

import pytest
from polling import until
from relay_kit import ACKED, TERMED, Scene, counters, new_job, update

from relay.contract import subjects
from relay.contract.subjects import Reason
from relay.nats.jetstream import api_request, publish_confirmed
from relay.query.archive import Archive

SHORTEST_NS = 1_000_000_000


@pytest.fixture
async def marking(nats_server, facilitator):
    """A scene whose streams store markers."""
    async with Scene(nats_server, facilitator) as scene:
        for stream in (subjects.STATUS_STREAM, subjects.LEASE_STREAM):
            config = (await api_request(scene.nc, subjects.api_stream_info(stream)))["config"]
            options = {"allow_msg_ttl": True, "allow_rollup_hdrs": True, "subject_delete_marker_ttl": SHORTEST_NS}
            await api_request(scene.nc, subjects.api_stream_update(stream), config | options)
        yield scene


async def test_markers_are_acknowledged(marking):
    """The marker of a job whose last update is gone is acknowledged and counted; its job goes on."""
    job = new_job(0)
    async with marking.relay() as relay:
        headers = {"Nats-TTL": "1s"}  # the server's shortest
        first = await marking.publish_body(job, update(job), headers, status="accepted")
        assert [ACKED] == await marking.settled(first)
        await until(lambda: counters(relay)["relay_markers"])
        gone = await Archive(marking.nc).last_update(job)
        later = await marking.publish(job, "completed", {})
        assert [ACKED] == await marking.settled(later)
        found = await Archive(marking.nc).next_update(job, 0)
        told = counters(relay)
    assert (None, later.sequence) == (gone, found.sequence)
    assert (1, 0) == (told["relay_markers"], sum(relay.metrics.dead_letters().values()))


async def test_an_update_with_such_a_header_is_an_update(marking):
    """A producer's header does not make an update a marker, and a message with no body and no such header is bad."""
    async with marking.relay() as relay:
        job = new_job(1)
        headers = {"Nats-Marker-Reason": "MaxAge", "KV-Operation": "DEL"}
        good = await marking.publish_body(job, update(job), headers, status="accepted")
        bad = await marking.publish_body(new_job(2), b"", dead_letter=Reason.INVALID_JSON)
        assert [ACKED, TERMED] == await marking.settled(good, bad)
        told = counters(relay)
    assert (1, 0) == (relay.metrics.updates()["acknowledged"], told["relay_markers"])


async def test_lanes_are_taken_over_in_spite_of_markers(marking):
    """A lease that expired and left a marker is no lease: another worker takes the lane."""
    lease = subjects.LEASE_SUBJECTS.removesuffix(">") + subjects.lane_key(0)
    await publish_confirmed(marking.nc, lease, b"", {"Nats-Marker-Reason": "MaxAge", "Nats-TTL": "never"})
    async with marking.relay():
        assert [ACKED] == await marking.settled(await marking.publish(new_job(0)))
