"""Consumers and streams that were deleted and made anew deliver again what was settled, under sequences used before."""

import contextlib
from collections.abc import AsyncIterator

import pytest
from dead_letter_kit import change_stream
from nats.aio.client import Client
from relay_kit import ACKED, TERMED, Scene, new_job

from relay.contract.subjects import DLQ_STREAM, STATUS_STREAM, Reason, api_consumer_delete, api_pull, lane_consumer
from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer
from relay.nats.connection import api_request


@contextlib.asynccontextmanager
async def scene_with(**variables: str) -> AsyncIterator[Scene]:
    async with (
        NatsServer() as server,
        FacilitatorSimulator() as facilitator,
        Scene(server, facilitator, **{"ACK_WAIT": "0.5"} | variables) as scene,
    ):
        yield scene


async def make_consumer_anew(scene: Scene, lane: int = 0) -> None:
    await api_request(scene.nc, api_consumer_delete(STATUS_STREAM, lane_consumer(lane)))
    await scene.provision()


async def take_and_die(nc: Client, count: int) -> None:
    """Be a worker that takes the first updates of lane 0 in hand and is never heard of again."""
    inbox = await nc.subscribe(nc.new_inbox())
    await nc.publish(api_pull(STATUS_STREAM, lane_consumer(0)), str(count).encode(), reply=inbox.subject)
    for _ in range(count):
        await inbox.next_msg(5)
    await inbox.unsubscribe()


@pytest.mark.parametrize("taken", [0, 1, 4], ids=["running", "taken over", "taken over with all at hand"])
async def test_dead_letters_outlive_their_consumer(taken):
    """What became a dead letter is neither tried again nor dead-lettered again when its lane's consumer is made anew:
    not if its job has become known, not if the job has several, and not after a change of workers in the middle.
    """
    async with scene_with() as scene:
        job = new_job(0)
        async with scene.relay():
            await change_stream(scene.nc, DLQ_STREAM, duplicate_window=100_000_000)
            scene.facilitator.unknown_jobs.add(job)
            doomed = [
                await scene.publish(job, status, doom=Reason.JOB_NOT_FOUND) for status in ("received", "accepted")
            ]
            doomed.append(await scene.publish_body(new_job(0), b"bad", doom=Reason.INVALID_JSON))
            assert [TERMED] * 3 == await scene.settled(*doomed)
            scene.facilitator.unknown_jobs.clear()
            assert [ACKED] == await scene.settled(await scene.publish(job, "completed", {}))
            if not taken:
                await make_consumer_anew(scene)
                broken = await scene.broken_promises()
        if taken:
            await make_consumer_anew(scene)
            await take_and_die(scene.nc, taken)
            async with scene.relay():
                broken = await scene.broken_promises()
    assert [] == broken
    assert ["completed"] == [row.status for row in scene.facilitator.rows_of(job)]


async def test_dead_letters_of_the_stream_before():
    """A dead letter of the status stream that was deleted silences no update of the one that was made anew, although
    job and sequence are the same: it is relayed, or becomes a dead letter of its own within the hour.
    """
    bad, good = new_job(0), new_job(0)
    async with scene_with() as scene:
        async with scene.relay():
            doomed = [await scene.publish_body(job, b"bad", doom=Reason.INVALID_JSON) for job in (bad, good)]
            assert [TERMED] * 2 == await scene.settled(*doomed)
        await api_request(scene.nc, f"$JS.API.STREAM.DELETE.{STATUS_STREAM}")
        await scene.provision()
        again = await scene.publish_body(bad, b"bad", doom=Reason.INVALID_JSON)
        accepted = await scene.publish(good, "accepted")
        await take_and_die(scene.nc, 2)
        async with scene.relay():
            broken = await scene.broken_promises()
    assert [update.sequence for update in doomed] == [again.sequence, accepted.sequence]
    assert [] == broken
