"""What docs/operations.md tells the operator to do with `nats`: its requests, as the users of deploy/nats/users.conf.

`nats` itself is not installed here, so the requests are those that it makes, with its own sizes.
"""

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from guarded_nats import scene_of, signed_in, until_heard, variables
from nats.aio.client import Client
from nats.aio.msg import Msg
from relay_kit import ACKED, Scene, new_job

from relay.contract.subjects import DLQ_STREAM, LEASE_STREAM, STATUS_STREAM, Reason, lane_key
from relay.local.facilitator import FacilitatorSimulator
from relay.local.faults import stall
from relay.local.server import NatsServer

UPDATES, SIZE_BYTES = 24, 1_000_000
"""Three times what nats-server sends of a backup before the first acknowledgement."""
CHUNK_BYTES = 128 * 1024


@pytest.fixture
async def scene(guarded: NatsServer) -> AsyncIterator[Scene]:
    """A scene whose own connections have all permissions; its relay has those of `relay`."""
    async with (
        FacilitatorSimulator() as facilitator,
        scene_of(guarded, facilitator, LEASE_TTL="1.5") as scene,
    ):
        yield scene


async def ask(client: Client, request: str, **body: Any) -> dict[str, Any]:
    """The answer to a request of JetStream's API."""
    answer = json.loads((await client.request(f"$JS.API.{request}", json.dumps(body).encode(), timeout=5)).data)
    assert "error" not in answer, answer
    return answer


async def backup(client: Client, stream: str) -> tuple[dict[str, Any], list[bytes]]:
    """As `nats stream backup`: the stream's configuration and state, and the chunks of its data."""
    chunks: asyncio.Queue[Msg] = asyncio.Queue()
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox, cb=chunks.put)
    begun = await ask(client, f"STREAM.SNAPSHOT.{stream}", deliver_subject=inbox, chunk_size=CHUNK_BYTES)
    received: list[bytes] = []
    async with asyncio.timeout(20):
        while (chunk := await chunks.get()).data:
            received.append(chunk.data)
            if chunk.reply:
                await client.publish(chunk.reply)
    await subscription.unsubscribe()
    assert "408" not in str(chunk.headers), chunk.headers
    return {"config": begun["config"], "state": begun["state"]}, received


async def restore(client: Client, stream: str, about: dict[str, Any], chunks: list[bytes]) -> dict[str, Any]:
    """As `nats stream restore`; returns the state of the stream."""
    to = (await ask(client, f"STREAM.RESTORE.{stream}", **about))["deliver_subject"]
    for chunk in chunks:
        await client.request(to, chunk, timeout=5)
    return json.loads((await client.request(to, b"", timeout=10)).data)["state"]


async def test_backup_and_restore(guarded, scene):
    """The user `operator` backs a large stream up, deletes it and restores it; the relay goes on where it was."""
    jobs = [new_job() for _ in range(UPDATES)]
    async with scene.relay(**variables("relay")):
        for job in jobs:
            noise = base64.b64encode(os.urandom(SIZE_BYTES * 3 // 4)).decode()  # it cannot be compressed much
            await scene.publish(job, "accepted", {"noise": noise})
        await scene.dust_settled(40)
        async with signed_in(guarded, "operator") as operator:
            about, chunks = await backup(operator, STATUS_STREAM)
            await ask(operator, f"STREAM.DELETE.{STATUS_STREAM}")
            state = await restore(operator, STATUS_STREAM, about, chunks)
        later = await scene.publish(new_job())
        assert [ACKED] == await scene.settled(later)
    assert (UPDATES, about["state"]["last_seq"]) == (state["messages"], state["last_seq"])
    assert sum(map(len, chunks)) > 2 * 8 * 2**20
    assert [job for job in jobs if len(scene.facilitator.rows_of(job)) != 1] == []


async def test_dead_letters_written_during_a_backup(guarded, scene):
    """With JOB_STATUS backed up before JOB_DLQ, letters that are written in between are in the restored account, once
    each: the relay finds them there when it gets their updates again.
    """
    jobs = [new_job() for _ in range(20)]
    async with scene.relay(**variables("relay")), signed_in(guarded, "operator") as operator:
        with scene.facilitator.inject(stall()):
            kept = [await scene.publish(job) for job in jobs]
            bad = [await scene.publish_body(job, b"bad", dead_letter=Reason.INVALID_JSON) for job in jobs]
            saved = {STATUS_STREAM: await backup(operator, STATUS_STREAM)}
        await scene.settled(*kept, *bad)
        saved[DLQ_STREAM] = await backup(operator, DLQ_STREAM)
    async with signed_in(guarded, "operator") as operator:
        for stream, (about, chunks) in saved.items():
            await ask(operator, f"STREAM.DELETE.{stream}")
            await restore(operator, stream, about, chunks)
    assert 40 == await scene.unsettled()
    async with scene.relay(**variables("relay"), OTHER_SENDERS="true"):
        broken = await scene.broken_promises(20)
    assert ([], 20) == (broken, len(await scene.dead_letters()))


async def test_a_lane_is_freed(guarded, scene):
    """The user `operator` removes a lane's key from the lease bucket, and a worker takes the lane anew."""
    key = f"$KV.RELAY_LEASES.{lane_key(0)}"
    async with scene.relay(**variables("relay")), signed_in(guarded, "operator") as operator:
        await scene.owned(lambda: len(scene.owners) == 4)
        leases = await scene.nc.subscribe(key)
        await until_heard(scene.nc)
        assert 1 == (await ask(operator, f"STREAM.PURGE.{LEASE_STREAM}", filter=key))["purged"]
        while (await leases.next_msg(timeout=10)).headers["Nats-Expected-Last-Subject-Sequence"] != "0":
            pass  # a renewal
        assert [ACKED] == await scene.settled(await scene.publish(new_job(0)))
