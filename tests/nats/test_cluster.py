"""A cluster of three nats-servers with three replicas: any one of them may die while updates are relayed."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from functools import partial

import pytest
from cluster_kit import ELECTION_S, LANES, flows, lead, load, scene_at
from polling import until
from relay_kit import new_job

from relay.contract.settings import DeliverySettings
from relay.contract.subjects import (
    LEASE_STREAM,
    STATUS_STREAM,
    api_consumer_create,
    api_consumer_info,
    api_consumer_list,
    lane_consumer,
    status_subject,
)
from relay.local.cluster import NatsCluster
from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer
from relay.nats.err_codes import CONSUMER_OFFLINE
from relay.nats.frames import FrameClient
from relay.nats.jetstream import api_request, publish_confirmed
from relay.topology.provision import check, look, resume_lanes, topology_of


@pytest.fixture
async def cluster() -> AsyncIterator[NatsCluster]:
    async with NatsCluster() as cluster:
        yield cluster


@pytest.fixture
async def facilitator() -> AsyncIterator[FacilitatorSimulator]:
    async with FacilitatorSimulator(service_time_s=0.001) as facilitator:
        yield facilitator


async def relay(*arguments: str, **settings: str) -> tuple[int, str]:
    """Run `relay ...` to its end; returns its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "relay", *arguments),
        env={"PATH": os.environ["PATH"], **settings},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    return process.returncode, out.decode()


async def test_three_replicas(cluster, connect):
    """With REPLICAS=3 all three nodes store every stream and every lane consumer, and a check finds no difference. The
    number of lanes can be changed to any other, and the stream goes on storing. A consumer whose only node is away is
    called neither missing nor in place.
    """
    settings = {"RELAY_NATS_URL": ",".join(cluster.urls), "RELAY_REPLICAS": "3"}
    provisioned = await relay("provision", **settings)
    checked = await relay("provision", "--check", **settings)
    nc = await connect(cluster.urls[0])
    streams = (await api_request(nc, "$JS.API.STREAM.LIST"))["streams"]
    consumers = (await api_request(nc, api_consumer_list(STATUS_STREAM)))["consumers"]
    changed = await relay("provision", **settings, RELAY_LANES="6")
    assert (0, 0) == (provisioned[0], changed[0]), (provisioned, changed)
    assert [1, 2] == [(await publish_confirmed(nc, status_subject(new_job()), b"{}")).sequence - 1 for _ in range(2)]
    assert (0, "everything is in place\n") == checked
    assert [2] * (5 + LANES) == [len(info["cluster"]["replicas"]) for info in streams + consumers]
    await (await alone_with(cluster, nc, lane_consumer(0))).stop()
    said = await until(partial(said_of_silence, nc))
    assert ["nobody answers for relay-lane-0, so nobody knows how they are"] * 3 == said


async def alone_with(cluster: NatsCluster, nc: FrameClient, consumer: str) -> NatsServer:
    """Let only one node keep a consumer; returns that node."""
    info = api_consumer_info(STATUS_STREAM, consumer)
    config = (await api_request(nc, info))["config"] | {"num_replicas": 1}
    update = {"stream_name": STATUS_STREAM, "config": config, "action": "update"}
    await api_request(nc, api_consumer_create(STATUS_STREAM, consumer, config["filter_subject"]), update)

    async def is_alone() -> bool:
        return not (await api_request(nc, info))["cluster"].get("replicas")

    await until(is_alone)
    return await cluster.leader_of_consumer(STATUS_STREAM, consumer)


async def said_of_silence(nc: FrameClient) -> list[str]:
    """What a check, a relay that runs and the end of a change of lanes say of a consumer that does not answer."""
    wanted = topology_of(DeliverySettings(lanes=6, replicas=3))
    asked = await asyncio.gather(check(nc, wanted), look(nc, wanted), resume_lanes(nc), return_exceptions=True)
    said = [each.description for each in asked if getattr(each, "err_code", None) == CONSUMER_OFFLINE]
    return said if len(said) == len(asked) else []


@pytest.mark.parametrize(("stream", "connected"), [(STATUS_STREAM, True), (LEASE_STREAM, False)])
async def test_stream_leader_dies(cluster, facilitator, stream, connected):
    """When the leader of JOB_STATUS dies, to which relay and producer are connected, or unnoticed that of the leases,
    lanes may stop, and no update is lost.
    """
    victim, other, _ = cluster.nodes
    async with scene_at(victim if connected else other, facilitator) as scene, scene.relay():
        await lead(cluster, other, but=stream, instead=victim)
        async with load(scene):
            await cluster.kill(victim)
            leader = await cluster.leader_of_stream(stream)
            if connected:
                await scene.reconnected()
            settled = await flows(scene, cluster)
            await cluster.start(victim)
            await cluster.until_current()
        broken = await scene.broken_promises(ELECTION_S)
    assert leader is not victim
    assert ["+ACK"] * LANES == settled
    assert [] == broken


async def test_consumer_leader_dies(cluster, facilitator):
    """When the leader of a lane's consumer dies unnoticed, the lane goes on with the next leader; other lanes go on."""
    victim, other, _ = cluster.nodes
    async with scene_at(other, facilitator) as scene, scene.relay():
        await lead(cluster, other, but=lane_consumer(0), instead=victim)
        async with load(scene):
            await cluster.kill(victim)
            one, *others = [await scene.publish(new_job(lane, LANES)) for lane in range(LANES)]
            settled_meanwhile = await scene.settled(*others, timeout_s=3)  # elections take longer
            leader = await cluster.leader_of_consumer(STATUS_STREAM, lane_consumer(0))
            settled = await scene.settled(one, timeout_s=ELECTION_S)
            await cluster.start(victim)
            await cluster.until_current()
        broken = await scene.broken_promises(ELECTION_S)
    assert leader is not victim
    assert ["+ACK"] * LANES == settled + settled_meanwhile
    assert [] == broken


async def test_follower_dies(cluster, facilitator):
    """When a node that leads nothing dies, to which relay and producer are connected, they stop only for a moment."""
    victim, other, _ = cluster.nodes
    async with scene_at(victim, facilitator) as scene, scene.relay():
        await lead(cluster, other)
        async with load(scene):
            await cluster.kill(victim)
            await scene.reconnected()
            async with asyncio.timeout(4):  # less than an election takes
                settled = await flows(scene, cluster)
            await cluster.start(victim)
            await cluster.until_current()
        broken = await scene.broken_promises(ELECTION_S)
    assert ["+ACK"] * LANES == settled
    assert [] == broken
