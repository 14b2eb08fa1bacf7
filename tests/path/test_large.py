"""Large updates: they wait while the Facilitator is away, and all arrive, delivered once, within bounds of bytes."""

import asyncio
import json
import urllib.request

import pytest
from relay_kit import ACKED, Scene, counters, new_job, update

from relay.contract.subjects import STATUS_STREAM, api_consumer_info, lane_consumer
from relay.contract.wire import MAX_FRAME_BYTES
from relay.local.server import NatsServer
from relay.nats.connection import api_request

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


async def deliveries(scene: Scene) -> int:
    lanes = range(scene.settings.delivery.lanes)
    infos = [await api_request(scene.nc, api_consumer_info(STATUS_STREAM, lane_consumer(lane))) for lane in lanes]
    return sum(info["delivered"]["consumer_seq"] for info in infos)


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
