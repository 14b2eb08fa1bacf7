"""A relay at a cluster of three nats-servers, under load."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator

from oracle import Published
from relay_kit import Scene, new_job

from relay.contract.model import JobStatus, JobStatusUpdate
from relay.contract.settings import NatsSettings
from relay.contract.subjects import LEASE_STREAM, STATUS_STREAM, lane_consumer
from relay.local.cluster import NatsCluster
from relay.local.facilitator import FacilitatorSimulator
from relay.local.jobs import StatusMessage, job_updates, job_uuid, status_message
from relay.local.server import NatsServer
from relay.local.traffic import TrafficSource
from relay.nats.connection import close, connect

LANES = 4
ELECTION_S = 20
"""The longest time for an election and the reconnects after it; 4 to 9 s are usual."""


def scene_at(node: NatsServer, facilitator: FacilitatorSimulator, **variables: str) -> Scene:
    """A scene whose relay and producer connect to `node`, and learn the addresses of the other nodes from it."""
    return Scene(node, facilitator, REPLICAS="3", ACK_WAIT="1", **variables)


async def lead(cluster: NatsCluster, leader: NatsServer, but: str = "", instead: NatsServer | None = None) -> None:
    """Make `leader` the leader of all streams and consumers of the relay, except `but`, which `instead` leads."""

    def of(name: str) -> NatsServer:
        return instead if name == but else leader

    for stream in (STATUS_STREAM, LEASE_STREAM):
        await cluster.move_stream(stream, of(stream))
    for consumer in map(lane_consumer, range(LANES)):
        await cluster.move_consumer(STATUS_STREAM, consumer, of(consumer))
    await cluster.until_current()


@contextlib.asynccontextmanager
async def load(scene: Scene) -> AsyncIterator[None]:
    """Publish 100 updates a second, each until it is stored. The block starts when a hundred are relayed."""
    rng = random.Random(1)
    enough = asyncio.Event()

    def jobs() -> Iterator[list[StatusMessage]]:
        while not enough.is_set():
            yield [status_message(update) for update in job_updates(rng, job_uuid(rng))]

    publishing = asyncio.create_task(_publish(scene, jobs(), rng, scene.published.append))
    try:
        await scene.facilitator.wait_for(lambda facilitator: len(facilitator.rows) >= 100, ELECTION_S)
        yield
    finally:
        enough.set()
        await publishing


async def flows(scene: Scene, cluster: NatsCluster) -> list[str]:
    """Publish an update in each lane, until it is stored, and return how each is settled."""
    await _hears(scene, cluster)
    probes: list[Published] = []
    jobs = (JobStatusUpdate(uuid=new_job(lane, LANES), status=JobStatus.ACCEPTED) for lane in range(LANES))
    await _publish(scene, ([status_message(update)] for update in jobs), random.Random(1), probes.append)
    scene.published += probes
    return await scene.settled(*probes, timeout_s=ELECTION_S)


async def _hears(scene: Scene, cluster: NatsCluster) -> None:
    """Wait until the scene hears what is published at any node.

    When its connection has moved to another node, the nodes tell each other of its subscriptions, in their order. Until
    then, it misses what the relay acknowledges at a third node.
    """
    for node in cluster.running:
        heard = await scene.nc.subscribe(scene.nc.new_inbox())
        client = await connect(NatsSettings(urls=(node.url,)), name="test")
        try:
            async with asyncio.timeout(ELECTION_S):
                while not heard.pending_msgs:
                    await client.publish(heard.subject, b"")
                    await client.flush()
                    await scene.nc.flush()
        finally:
            await close(client, timeout_s=2)
            await heard.unsubscribe()


async def _publish(
    scene: Scene, jobs: Iterable[list[StatusMessage]], rng: random.Random, on_stored: Callable[[Published], None]
) -> None:
    """Publish each update again until it is stored: while a leader is elected, a publish finds no responders."""
    source = TrafficSource(scene.nc, jobs, rate_per_s=100, rng=rng)
    await source.run(lambda each: on_stored(Published(each.sequence, each.message.uuid, each.message.status)))
