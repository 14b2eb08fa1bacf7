"""Three nats-servers without a majority: the leader is cut off from the others, or two of the three are dead.

Elections take several seconds, so `make soak` runs this, and `make test` does not:

python -m pytest tests/faults/quorum.py
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from functools import partial
from itertools import permutations

import pytest
from cluster_kit import ELECTION_S, LANES, flows, lead, load, scene_at
from oracle import Published
from relay_kit import ACKED, DUPLICATE, Scene, new_job, update
from rough_proxy import RoughProxy

from relay.contract.errors import PublishUnconfirmed
from relay.contract.subjects import status_subject
from relay.leases.ownership import Ownership
from relay.local import cluster as nats_cluster
from relay.local.cluster import NODES, NatsCluster
from relay.local.facilitator import FacilitatorSimulator
from relay.local.faults import stall
from relay.nats.jetstream import publish_confirmed
from relay.service import app
from relay.service.app import Relay

WINDOW = 32
OUTAGE_S = 3
_HOST = "127.0.0.1"
_NOWHERE = f"{_HOST}:1"


class Network:
    """The network between the nodes: a proxy for each direction between two of them."""

    def __init__(self) -> None:
        self._ways = {way: RoughProxy(0) for way in permutations(range(NODES), 2)}

    @contextlib.asynccontextmanager
    async def cluster(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NatsCluster]:
        """A cluster whose nodes reach each other only through this network."""
        monkeypatch.setattr(nats_cluster, "_config", self._config)
        async with contextlib.AsyncExitStack() as serving:
            for proxy in self._ways.values():
                await serving.enter_async_context(proxy.serving())
            async with NatsCluster() as cluster:
                yield cluster

    @contextlib.contextmanager
    def cut_off(self, node: int) -> Iterator[None]:
        """Interrupt the network between this node and the others during the block."""
        ways = [proxy for way, proxy in self._ways.items() if node in way]
        for proxy in ways:
            proxy.hold()
        try:
            yield
        finally:
            for proxy in ways:
                proxy.release()

    def _config(self, number: int, ports: list[int]) -> str:
        routes = []
        for (start, end), proxy in self._ways.items():
            if start == number:
                proxy.target_port = ports[end]
                routes.append(f'"nats://{_HOST}:{proxy.port}"')
        # Nodes tell each other their addresses. With the true ones they would connect around the proxies.
        known_as = f'listen: "{_HOST}:{ports[number]}", advertise: "{_NOWHERE}"'
        return f"server_name: node-{number}\ncluster: {{name: local, {known_as}, routes: [{', '.join(routes)}]}}"


@pytest.fixture
async def facilitator() -> AsyncIterator[FacilitatorSimulator]:
    async with FacilitatorSimulator(service_time_s=0.001) as facilitator:
        yield facilitator


async def publish_by_and_by(scene: Scene, job: str, status: str) -> Published:
    """Publish until it is confirmed. If an unconfirmed publish was stored, the next one is only a repeat."""
    while True:
        with contextlib.suppress(PublishUnconfirmed):
            return await scene.publish(job, status)


def all_lanes_are_of(relay: Relay, scene: Scene) -> bool:
    return [relay._ownership._leases.worker] * LANES == [taking.worker for taking in scene.owners.values()]


async def test_leader_alone(monkeypatch, facilitator):
    """While the leader of everything is cut off from the other two, a relay at those takes over all lanes and keeps
    the order. A relay at the isolated node sends nothing that it has at hand. After the cut all updates are relayed.
    """
    network = Network()
    jobs = [new_job() for _ in range(200)]
    async with network.cluster(monkeypatch) as cluster:
        lonely, other, _ = cluster.nodes
        async with scene_at(other, facilitator, LEASE_TTL="1") as scene, scene.relay(NATS_URL=lonely.url):
            await lead(cluster, lonely)
            stalled = facilitator.inject(stall())
            await asyncio.gather(*(scene.publish(job, "received") for job in jobs))
            with network.cut_off(0):
                async with scene.relay(NATS_URL=other.url) as relay:
                    await scene.owned(lambda: all_lanes_are_of(relay, scene), ELECTION_S)
                    late = await asyncio.gather(*(publish_by_and_by(scene, job, "accepted") for job in jobs))
                    stalled.lift()
                    settled = await scene.settled(*late, timeout_s=ELECTION_S)
                    repeats = facilitator.replies[DUPLICATE]
            await cluster.until_current()
            await asyncio.gather(*(scene.publish(job, "completed", {}) for job in jobs))
            broken = await scene.broken_promises(ELECTION_S)
    assert [ACKED] * len(jobs) == settled
    assert repeats <= WINDOW  # these were at the Facilitator when the leases expired
    assert [] == broken


async def test_a_relay_moves_to_the_majority(monkeypatch, facilitator):
    """A relay connected to a node that is cut off from the other two goes to one of those, and relays."""
    monkeypatch.setattr(app, "Ownership", partial(Ownership, election_s=3.0))
    network = Network()
    async with network.cluster(monkeypatch) as cluster:
        lonely, other, _ = cluster.nodes
        await cluster.until_current()
        async with scene_at(other, facilitator, LEASE_TTL="1") as scene, scene.relay(NATS_URL=lonely.url) as relay:
            await lead(cluster, other)
            with network.cut_off(0):
                settled = await flows(scene, cluster)
                address = relay.worker_status.client.connected_url.netloc
            await cluster.until_current()
            broken = await scene.broken_promises(ELECTION_S)
    assert [ACKED] * LANES == settled
    assert address in {node.url.removeprefix("nats://") for node in (other, cluster.nodes[2])}
    assert [] == broken


async def test_two_nodes_die(facilitator):
    """While two of three nodes are dead, nothing is stored and no lane is driven; when they are back, all goes on."""
    async with NatsCluster() as cluster:
        left, *victims = cluster.nodes
        async with scene_at(left, facilitator, LEASE_TTL="1") as scene, scene.relay() as relay:
            async with load(scene):
                again = scene.published[0]  # if it was stored without a confirmation, this is a repeat
                await asyncio.gather(*map(cluster.kill, victims))
                await asyncio.sleep(OUTAGE_S)  # the duration of the outage; there is no event to wait for
                with pytest.raises(PublishUnconfirmed):
                    await publish_confirmed(
                        scene.nc, status_subject(again.job), update(again.job, again.status), timeout_s=1
                    )
                lanes = relay._ownership.lanes
                await asyncio.gather(*map(cluster.start, victims))
                await cluster.until_current()
                settled = await flows(scene, cluster)
            broken = await scene.broken_promises(ELECTION_S)
    assert [] == lanes
    assert [ACKED] * LANES == settled
    assert [] == broken
