"""Consumers and streams that are deleted and created again deliver settled updates again, or reuse sequences."""

import contextlib
from collections.abc import AsyncIterator

import pytest
from dead_letter_kit import change_stream
from nats.aio.client import Client
from relay_kit import ACKED, STATUSES, TERMED, Scene, new_job

from relay.contract.subjects import DLQ_STREAM, STATUS_STREAM, Reason, api_consumer_delete, api_pull, lane_consumer
from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer
from relay.nats.jetstream import api_request


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
    """Take the first updates of lane 0, as a worker that then dies."""
    inbox = await nc.subscribe(nc.new_inbox())
    await nc.publish(api_pull(STATUS_STREAM, lane_consumer(0)), str(count).encode(), reply=inbox.subject)
    for _ in range(count):
        await inbox.next_msg(5)
    await inbox.unsubscribe()


@pytest.mark.parametrize("taken", [0, 1, 4], ids=["running", "taken over", "taken over with all at hand"])
async def test_dead_letters_outlive_their_consumer(taken):
    """If a lane's consumer is created again, its dead-lettered updates are neither tried nor dead-lettered again: also
    not if their job has become known, if the job has several dead letters, or if the worker changed.
    """
    async with scene_with() as scene:
        job = new_job(0)
        async with scene.relay():
            await change_stream(scene.nc, DLQ_STREAM, duplicate_window=100_000_000)
            scene.facilitator.unknown_jobs.add(job)
            failed = [await scene.publish(job, status, dead_letter=Reason.JOB_NOT_FOUND) for status in STATUSES[:2]]
            failed.append(await scene.publish_body(new_job(0), b"bad", dead_letter=Reason.INVALID_JSON))
            assert [TERMED] * 3 == await scene.settled(*failed)
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
    """A dead letter of a deleted status stream has no effect on updates of the new stream, even with the same job and
    sequence: they are relayed, or become dead letters of their own within the hour.
    """
    bad, good = new_job(0), new_job(0)
    async with scene_with() as scene:
        async with scene.relay():
            failed = [await scene.publish_body(job, b"bad", dead_letter=Reason.INVALID_JSON) for job in (bad, good)]
            assert [TERMED] * 2 == await scene.settled(*failed)
        await api_request(scene.nc, f"$JS.API.STREAM.DELETE.{STATUS_STREAM}")
        await scene.provision()
        again = await scene.publish_body(bad, b"bad", dead_letter=Reason.INVALID_JSON)
        accepted = await scene.publish(good, "accepted")
        await take_and_die(scene.nc, 2)
        async with scene.relay():
            broken = await scene.broken_promises()
    assert [update.sequence for update in failed] == [again.sequence, accepted.sequence]
    assert [] == broken
