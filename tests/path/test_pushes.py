"""What the Facilitator pushes is stored in JetStream, once, for the programs that run jobs."""

import asyncio
import contextlib
import hashlib
import json
import random

import pytest
from nats.js.errors import NotFoundError
from relay_kit import ACKED, Scene, counters, new_job

from relay.contract.facilitator_messages import Push, PushKind
from relay.contract.subjects import REQUEST_STREAM
from relay.core.backoff import Backoff
from relay.core.session import Pushed
from relay.observability.metrics import Metrics
from relay.path.pushes import PushPublisher

MIB = 1024 * 1024
JOB = "00000000-0000-4000-8000-000000000001"


@pytest.fixture
async def scene(nats_server, facilitator):
    async with Scene(nats_server, facilitator, FACILITATOR_CONNECTIONS="2") as scene:
        yield scene


async def both_connected(scene: Scene) -> None:
    await scene.facilitator.wait_for(lambda facilitator: facilitator.heartbeats == 2)


async def pushes_read(scene: Scene) -> None:
    """Wait until the relay has read all pushes: on every connection, an answer comes after them."""
    updates = [await scene.publish(new_job(lane)) for lane in range(4)]
    assert await scene.settled(*updates) == [ACKED] * 4
    assert len({row.connection for row in scene.facilitator.rows[-4:]}) == 2


async def kept(scene: Scene) -> list[tuple[str, dict]]:
    """Subject and message of all that JOB_REQUESTS holds, in order; checks that each id is made from the content."""
    found: list[tuple[str, dict]] = []
    sequence = 0
    with contextlib.suppress(NotFoundError):
        while True:
            raw = await scene.nc.jetstream().get_msg(REQUEST_STREAM, sequence + 1, "job.>", next=True)
            assert raw.headers == {"Nats-Msg-Id": hashlib.sha256(raw.data).hexdigest()}
            sequence = raw.seq
            found.append((raw.subject, json.loads(raw.data)))
    return found


async def test_pushed_once(scene):
    """Of copies on two connections one is stored, unchanged, on its job's subject, in the order of the pushes."""
    wanted, cheated = new_job(), new_job()
    async with scene.relay() as relay:
        await both_connected(scene)
        assert await scene.facilitator.push_job_request(wanted, args=["--fast"]) == 2
        assert await scene.facilitator.push_cheated(cheated) == 2
        await pushes_read(scene)
    # The relay drained before it stopped, so all that it read is published.
    assert counters(relay)["relay_pushes request"] == 2
    assert counters(relay)["relay_pushes cheated"] == 2
    (first_subject, request), (second_subject, report) = await kept(scene)
    assert (first_subject, request["uuid"], request["args"]) == (f"job.request.{wanted}", wanted, ["--fast"])
    assert (second_subject, report["type"], report["job_uuid"]) == (f"job.cheated.{cheated}", "job.cheated", cheated)


async def test_different_pushes_for_one_job(scene):
    """Two requests for one job that differ in any field are stored as two."""
    async with scene.relay():
        await both_connected(scene)
        job = new_job()
        await scene.facilitator.push_job_request(job, args=["1"])
        await scene.facilitator.push_job_request(job, args=["2"])
        await pushes_read(scene)
    assert [request["args"] for _, request in await kept(scene)] == [["1"], ["2"]]


@pytest.mark.parametrize(("uuid", "token"), [(JOB, JOB), ("a.b *", "a_b__"), ("", "unknown")])
async def test_unknown_kind(scene, uuid, token):
    """A push of an unknown kind is stored as a request, on a safe subject."""
    async with scene.relay() as relay:
        await both_connected(scene)
        await scene.facilitator.push_job_request(uuid, message_type="V9JobPraised", type="job.praised")
        await pushes_read(scene)
    assert counters(relay)["relay_pushes other"] == 2
    [(subject, message)] = await kept(scene)
    assert (subject, message["message_type"]) == (f"job.request.{token}", "V9JobPraised")


async def test_few_large_pushes_wait():
    """While NATS takes nothing, pushes wait up to a number of bytes; a larger one waits alone; the metric says it."""
    metrics = Metrics(1)
    queue = PushPublisher(None, Backoff(1, 1, random.random), metrics)

    def push(size: int) -> asyncio.Task[None]:
        return asyncio.create_task(queue.put(Pushed(Push(PushKind.OTHER, "V9", JOB), b"x" * size)))

    pushes = [push(5 * MIB) for _ in range(4)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [True, True, True, False] == [each.done() for each in pushes]
    assert b'relay_held_bytes{by="pushes"} 1.572864e+07' in metrics.render()
    queue.unpublished()
    large = push(40 * MIB)
    pushes[3].cancel()
    await large
    assert 1 == len(queue.unpublished())
    assert b'relay_held_bytes{by="pushes"} 0.0' in metrics.render()


async def test_pushed_while_nats_is_away(scene, nats_server):
    """A push that comes while NATS is away is published when NATS is back, however long retries of updates wait."""
    jobs = [new_job() for _ in range(5)]
    async with scene.relay(BACKOFF_INITIAL="3600", BACKOFF_MAX="3600"):
        await both_connected(scene)
        await nats_server.stop()
        for job in jobs:
            await scene.facilitator.push_job_request(job)
        await nats_server.start()
        await scene.reconnected()
        await pushes_read(scene)
    assert [subject for subject, _ in await kept(scene)] == [f"job.request.{job}" for job in jobs]
