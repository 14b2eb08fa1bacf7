"""Large updates: they wait while the Facilitator is away, and all arrive, delivered once, within bounds of bytes."""

import asyncio
import json
import urllib.request
from typing import Any

import pytest
from oracle import Published
from polling import until
from relay_kit import ACKED, STATUSES, Scene, counters, new_job, update

from relay.contract.sizes import MAX_FRAME_BYTES
from relay.contract.subjects import (
    LEASE_STREAM,
    STATUS_STREAM,
    api_consumer_info,
    api_stream_purge,
    lane_consumer,
    lane_of,
)
from relay.local.faults import Fault
from relay.local.server import NatsServer
from relay.nats.jetstream import api_request

SIZE_BYTES = 900_000
UPDATES = 60
MIB = 1 << 20
TIMEOUT_S = 60
PATIENT = {"ACK_WAIT": "30", "LEASE_TTL": "30"}
"""On a busy machine the test itself may stand still for longer than the defaults, which causes deliveries in vain."""


def sized(job: str, size_bytes: int) -> bytes:
    """An update of exactly this many bytes."""
    response = {"docker_process_stdout": "", "docker_process_stderr": ""}
    body = update(job, metadata={"miner_response": response})
    filler = b"." * (size_bytes - len(body))
    return body.replace(b'"docker_process_stdout": "', b'"docker_process_stdout": "' + filler)


def disconnected(server: NatsServer) -> int:
    """How often the server has disconnected a client for being slow."""
    with urllib.request.urlopen(f"{server.monitor_url}/varz") as answer:
        return json.load(answer)["slow_consumers"]


async def lane_infos(scene: Scene) -> list[dict[str, Any]]:
    lanes = range(scene.settings.delivery.lanes)
    return [await api_request(scene.nc, api_consumer_info(STATUS_STREAM, lane_consumer(lane))) for lane in lanes]


async def deliveries(scene: Scene) -> int:
    return sum(info["delivered"]["consumer_seq"] for info in await lane_infos(scene))


async def lanes_have(scene: Scene, field: str, count: int) -> None:
    """Wait until the consumers of all lanes together have so many `num_ack_pending`, or whatever `field` names."""

    async def have() -> bool:
        return sum(info[field] for info in await lane_infos(scene)) == count

    await until(have, TIMEOUT_S)


async def taken_for_dead(scene: Scene, at_hand: list[Published]) -> None:
    """Let the server do at once what it does when leases and `ack_wait` of a dead worker are over.

    So the times can be long, and a test that a busy machine holds up for seconds causes no deliveries in vain.
    """
    await lanes_have(scene, "num_waiting", 0)  # it has noticed that nobody listens to the worker's pulls any more
    await api_request(scene.nc, api_stream_purge(LEASE_STREAM))
    for each in reversed(at_hand):
        consumer = lane_consumer(lane_of(each.job, scene.settings.delivery.lanes))
        await scene.nc.request(f"$JS.ACK.{STATUS_STREAM}.{consumer}.1.{each.sequence}.1.0.0", b"-NAK", timeout=5)


async def publish_sized(scene: Scene, job: str, status: str) -> Published:
    """Publish an update of 3 MB."""
    return await scene.publish(job, status, {"text": "." * 3_000_000})


async def test_a_backlog_of_large_updates(facilitator):
    """What waited during an outage arrives, each update delivered once, though it is more than the server buffers."""
    async with (
        NatsServer(extra_config="max_pending: 32MB") as server,
        Scene(server, facilitator, **PATIENT) as scene,
        scene.relay() as relay,
    ):
        await facilitator.away()
        jobs = [new_job() for _ in range(UPDATES)]
        published = [await scene.publish_body(job, sized(job, SIZE_BYTES), status="accepted") for job in jobs]
        await facilitator.back()
        assert [ACKED] * UPDATES == await scene.settled(*published, timeout_s=TIMEOUT_S)
        assert [] == await scene.broken_promises()
        told = counters(relay)
        assert (0, 0) == (await asyncio.to_thread(disconnected, server), told["relay_nats_reconnects"])
        assert await deliveries(scene) == UPDATES


@pytest.mark.parametrize("lanes", ["1", "32"])
async def test_the_largest_update(facilitator, lanes):
    """An update as large as a frame may be arrives, also if it is larger than its lane's share, and so do others."""
    async with (
        NatsServer(max_payload=17 * MIB, extra_config="max_pending: 64MB") as server,
        Scene(server, facilitator, MEMORY_MB="64", LANES=lanes, **PATIENT) as scene,
        scene.relay(),
    ):
        jobs = [new_job() for _ in range(5)]
        sizes = [MAX_FRAME_BYTES if number % 4 == 0 else SIZE_BYTES for number in range(len(jobs))]
        bodies = zip(jobs, sizes, strict=True)
        published = [await scene.publish_body(job, sized(job, size), status="accepted") for job, size in bodies]
        assert [ACKED] * len(jobs) == await scene.settled(*published, timeout_s=TIMEOUT_S)
        assert [] == await scene.broken_promises()
        assert await deliveries(scene) == len(jobs)


async def test_a_worker_dies_with_large_updates_at_hand(facilitator):
    """The next owner of its lanes gets them once more, although they exceed its shares, and all arrive in order."""
    async with (
        NatsServer(extra_config="max_pending: 64MB") as server,
        Scene(server, facilitator, LANES="2", LEASE_TTL="60", ACK_WAIT="60") as scene,
    ):
        jobs = [new_job(lane, lanes=2) for lane in (0, 1)]
        discarding = facilitator.inject(Fault(store=False), times=None)
        async with scene.relay_process(MEMORY_MB="256") as worker:
            at_hand = [await publish_sized(scene, job, status) for status in STATUSES[:5] for job in jobs]
            await facilitator.wait_for(lambda _: discarding.hits == len(jobs), TIMEOUT_S)
            await lanes_have(scene, "num_ack_pending", len(at_hand))
            worker.kill()
        discarding.lift()
        await taken_for_dead(scene, at_hand)
        published = [*at_hand, *[await publish_sized(scene, job, STATUSES[5]) for job in jobs]]
        async with scene.relay(MEMORY_MB="64") as relay:
            assert [ACKED] * len(published) == await scene.settled(*published, timeout_s=TIMEOUT_S)
            assert [] == await scene.broken_promises()
            assert (0, 0) == (await asyncio.to_thread(disconnected, server), counters(relay)["relay_nats_reconnects"])
            assert await deliveries(scene) == len(published) + len(at_hand)
