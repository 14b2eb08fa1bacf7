"""JobRequests: what the Facilitator pushes arrives typed, and comes again until it is settled."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import nats
import pytest
from guarded_nats import ANYBODY, password, settings, signed_in
from nats.aio.client import Client
from nats.aio.msg import Msg
from relay_kit import new_job

from relay.client import (
    ConfigurationError,
    JobRequest,
    JobRequests,
    RequestsUnavailable,
    RequestUnsettled,
    V0JobCheated,
    V2JobRequest,
)
from relay.contract.errors import JetStreamError
from relay.contract.subjects import REQUEST_STREAM, api_consumer_delete, api_consumer_info
from relay.nats.connection import connect
from relay.nats.jetstream import api_request
from relay.producer import JobStatusUpdate, StatusPublisher
from relay.topology.provision import provision

A, B = new_job(), new_job()
REQUEST: dict[str, Any] = {
    "message_type": "V2JobRequest",
    "type": "job.new",
    "uuid": A,
    "signature": {"signature_type": "bittensor", "signatory": "5F", "timestamp_ns": 17, "signature": "c2ln"},
    "executor_class": "always_on.gpu-24gb",
    "docker_image": "python:3.11",
    "raw_script": "print(1)",
    "args": ["-u"],
    "env": {"A": "1"},
    "use_gpu": True,
    "volume": {"volume_type": "zip_url", "contents": "x"},
    "output_upload": None,
    "artifacts_dir": "/artifacts",
    "on_trusted_miner": False,
    "since_then": 1,
}
CHEATED = {"message_type": "V0JobCheated", "type": "job.cheated", "job_uuid": B}


@pytest.fixture
async def push(provisioned) -> Callable[..., Any]:
    async def push(*messages: Any) -> None:
        for each in messages:
            body = each if isinstance(each, bytes) else json.dumps(each).encode()
            await provisioned.jetstream().publish("job.request.any", body)

    return push


@pytest.fixture
async def requests(nats_server) -> AsyncIterator[JobRequests]:
    async with JobRequests(nats_server.url, ack_wait_s=0.5) as requests:
        yield requests


async def take(requests: JobRequests) -> JobRequest:
    async with asyncio.timeout(10):
        return await anext(requests)


async def ready(requests: JobRequests) -> None:
    """Make the durable, as the first wait does."""
    client = await requests._connection.connected()
    await requests._look_for_durable(client)


async def test_typed(requests, push):
    """Both kinds are typed, with the raw bytes; other messages are given with what is wrong with them."""
    await push({"message_type": "V2JobRequest", "uuid": "before the durable was made"})
    await ready(requests)
    await push(REQUEST, CHEATED, {"message_type": "V9Other"}, REQUEST | {"args": 5}, b"\xff")
    job, cheated, *others = [await take(requests) for _ in range(5)]
    assert isinstance(job.message, V2JobRequest)
    assert job.message.signature is not None
    assert (A, ["-u"], "5F", json.dumps(REQUEST).encode()) == (
        *(job.message.uuid, job.message.args, job.message.signature.signatory),
        job.body,
    )
    assert V0JobCheated(B) == cheated.message
    assert [None] * 3 == [other.message for other in others]
    assert ["V9Other" in others[0].problem, "$.args" in others[1].problem] == [True, True]
    assert [2, 3, 4, 5, 6] == [each.sequence for each in (job, cheated, *others)]


async def keep(request: JobRequest) -> None:
    """Say that it is in progress, as a program does while it works on it."""
    while True:
        await request.in_progress()
        await asyncio.sleep(0.1)


async def test_settled(requests, push, provisioned):
    """Unsettled requests come again, those in progress do not, and what is acknowledged or discarded never does."""
    await ready(requests)
    await push(REQUEST, CHEATED)
    first, second = await take(requests), await take(requests)
    keeping = asyncio.create_task(keep(first))
    again = await take(requests)
    assert (second.sequence, 2) == (again.sequence, again.deliveries)
    keeping.cancel()
    await first.ack()
    await again.redeliver()
    third = await take(requests)
    assert (second.sequence, 3) == (third.sequence, third.deliveries)
    await third.discard("no such job")
    info = await api_request(provisioned, api_consumer_info(REQUEST_STREAM, "runner"))
    assert (0, 0, 2) == (info["num_ack_pending"], info["num_pending"], info["ack_floor"]["stream_seq"])


async def test_words(requests, push, provisioned):
    """What JetStream is told of a request: in progress without a wait, all else with an answer; the delay in ns."""
    heard: asyncio.Queue[Msg] = asyncio.Queue()
    await ready(requests)
    await provisioned.subscribe(f"$JS.ACK.{REQUEST_STREAM}.>", cb=heard.put)
    await provisioned.flush()
    await push(REQUEST, CHEATED)
    first, second = await take(requests), await take(requests)
    await first.in_progress()
    await first.redeliver(1.5)
    await second.ack()
    words = [await heard.get() for _ in range(3)]
    told = [(word.data, word.reply != "") for word in words]
    assert [(b"+WPI", False), (b'-NAK {"delay": 1500000000}', True), (b"+ACK", True)] == told


async def test_shared(nats_server, push):
    """Two programs with one durable share the requests, and `deliver="all"` gives what is stored already."""
    await push(*[REQUEST | {"uuid": str(number)} for number in range(10)])
    async with (
        JobRequests(nats_server.url, durable="other", deliver="all") as one,
        JobRequests(nats_server.url, durable="other") as two,
    ):
        taken = [await take(each) for _ in range(5) for each in (one, two)]
        assert [str(number) for number in range(10)] == [each.message.uuid for each in taken]
        for each in taken:
            await each.ack()


async def test_server_restarts(nats_server, requests, push):
    """While NATS is away the iterator waits, and goes on where it was; settling says that it was not confirmed."""
    await ready(requests)
    await push(REQUEST)
    job = await take(requests)
    waiting = asyncio.create_task(take(requests))
    await nats_server.kill()
    with pytest.raises(RequestUnsettled):
        await job.ack()
    await nats_server.start()
    again = await waiting
    assert job.sequence == again.sequence
    await again.ack()


async def pulled(client: Client) -> None:
    """Wait until somebody waits for requests of the durable."""
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(JetStreamError):
                if (await api_request(client, api_consumer_info(REQUEST_STREAM, "runner")))["num_waiting"]:
                    return


async def test_unavailable(nats_server, nc, topology):
    """A missing stream is named, and what the durable was is not lost without a word when it is deleted."""
    async with JobRequests(nats_server.url) as requests:
        with pytest.raises(RequestsUnavailable, match="JOB_REQUESTS is missing: run `relay provision`"):
            await take(requests)
        await provision(nc, topology)
        waiting = asyncio.create_task(take(requests))
        await pulled(nc)
        await api_request(nc, api_consumer_delete(REQUEST_STREAM, "runner"))
        await pulled(nc)  # it was made again
        await nc.jetstream().publish("job.request.any", json.dumps(CHEATED).encode())
        assert V0JobCheated(B) == (await waiting).message


@pytest.mark.parametrize("wrong", [{"durable": "a.b"}, {"durable": ""}, {"deliver": "last"}, {"ack_wait_s": 0}])
def test_arguments(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        JobRequests(**wrong)


async def test_runner_of_users_conf(guarded, topology):
    """The user `runner` publishes, asks, and takes requests of a durable that the operator has made; it makes none."""
    async with signed_in(guarded, ANYBODY) as anybody:
        operator = await connect(settings(guarded, "operator"), name="test")
        await provision(operator, topology)
        runner = {"user": "runner", "password": password("runner")}
        async with JobRequests(guarded.url, **runner) as requests:
            with pytest.raises(RequestsUnavailable, match="have the operator make it, `nats consumer add JOB_REQUESTS"):
                await take(requests)
            config = {"durable_name": "runner", "ack_policy": "explicit", "ack_wait": 0.5}
            await operator.jetstream().add_consumer(REQUEST_STREAM, nats.js.api.ConsumerConfig(**config))
            await anybody.jetstream().publish(f"job.request.{A}", json.dumps(REQUEST).encode())
            for deliveries in (1, 2):
                request = await take(requests)
                assert (A, deliveries, 1) == (request.message.uuid, request.deliveries, request.sequence)
            await request.in_progress()
            await request.ack()
        async with StatusPublisher(guarded.url, **runner) as publisher:
            await publisher.check()
            await publisher.publish(JobStatusUpdate(uuid=A, status="accepted"))
        info = await api_request(operator, api_consumer_info(REQUEST_STREAM, "runner"))
        assert (0, 1) == (info["num_ack_pending"], info["ack_floor"]["stream_seq"])
        await operator.close()
