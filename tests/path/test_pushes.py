"""What the Facilitator pushes is on JetStream, once, for whoever runs the jobs."""

import contextlib
import hashlib
import json

import pytest
from nats.js.errors import NotFoundError
from relay_kit import ACKED, Scene, counters, new_job

from relay.contract.subjects import REQUEST_STREAM
from relay.local.facilitator import FacilitatorSimulator

JOB = "00000000-0000-4000-8000-000000000001"


@pytest.fixture
async def facilitator():
    async with FacilitatorSimulator() as facilitator:
        yield facilitator


@pytest.fixture
async def scene(nats_server, facilitator):
    async with Scene(nats_server, facilitator, FACILITATOR_CONNECTIONS="2") as scene:
        yield scene


async def both_connected(scene: Scene) -> None:
    await scene.facilitator.wait_for(lambda facilitator: facilitator.heartbeats == 2)


async def pushes_read(scene: Scene) -> None:
    """Wait until the relay has read all that was pushed: on every connection an answer is behind the pushes."""
    updates = [await scene.publish(new_job(lane)) for lane in range(4)]
    assert await scene.settled(*updates) == [ACKED] * 4
    assert len({row.connection for row in scene.facilitator.rows[-4:]}) == 2


async def kept(scene: Scene) -> list[tuple[str, dict]]:
    """What JOB_REQUESTS holds, subject and message, in its order. Each has the id that its content gives it."""
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
    """Of the copies on two connections one is kept, as it came, on the subject of its job; in the order of pushing."""
    wanted, cheated = new_job(), new_job()
    async with scene.relay() as relay:
        await both_connected(scene)
        assert await scene.facilitator.push_job_request(wanted, args=["--fast"]) == 2
        assert await scene.facilitator.push_cheated(cheated) == 2
        await pushes_read(scene)
    # Stopped, the relay has drained: what it read is published.
    assert counters(relay)["relay_pushes request"] == 2
    assert counters(relay)["relay_pushes cheated"] == 2
    (first_subject, request), (second_subject, report) = await kept(scene)
    assert (first_subject, request["uuid"], request["args"]) == (f"job.request.{wanted}", wanted, ["--fast"])
    assert (second_subject, report["type"], report["job_uuid"]) == (f"job.cheated.{cheated}", "job.cheated", cheated)


async def test_different_pushes_for_one_job(scene):
    """Two requests for one job that differ in anything are two."""
    async with scene.relay():
        await both_connected(scene)
        job = new_job()
        await scene.facilitator.push_job_request(job, args=["1"])
        await scene.facilitator.push_job_request(job, args=["2"])
        await pushes_read(scene)
    assert [request["args"] for _, request in await kept(scene)] == [["1"], ["2"]]


@pytest.mark.parametrize(("uuid", "token"), [(JOB, JOB), ("a.b *", "a_b__"), ("", "unknown")])
async def test_unknown_kind(scene, uuid, token):
    """A push of a kind that the relay does not know is kept as a request, on a subject that is safe."""
    async with scene.relay() as relay:
        await both_connected(scene)
        await scene.facilitator.push_job_request(uuid, message_type="V9JobPraised", type="job.praised")
        await pushes_read(scene)
    assert counters(relay)["relay_pushes other"] == 2
    [(subject, message)] = await kept(scene)
    assert (subject, message["message_type"]) == (f"job.request.{token}", "V9JobPraised")


async def test_pushed_while_nats_is_away(scene, nats_server):
    """What is pushed while NATS is away is published when it is back."""
    jobs = [new_job() for _ in range(5)]
    async with scene.relay():
        await both_connected(scene)
        await nats_server.stop()
        for job in jobs:
            await scene.facilitator.push_job_request(job)
        await nats_server.start()
        await scene.reconnected()
        await pushes_read(scene)
    assert [subject for subject, _ in await kept(scene)] == [f"job.request.{job}" for job in jobs]
