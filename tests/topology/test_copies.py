"""Counting the copies of streams and consumers."""

import asyncio
import contextlib
from dataclasses import replace

from cluster_kit import lead, scene_at
from relay_kit import gauges

from relay.contract.errors import BrokerUnavailable
from relay.contract.settings import NatsSettings
from relay.contract.subjects import STATUS_STREAM
from relay.doctor.checks import run_checks
from relay.local.cluster import ADMIN, ELECTION_TIMEOUT_S, NatsCluster
from relay.local.facilitator import FacilitatorSimulator
from relay.nats.connection import close, connect
from relay.nats.jetstream import api_request
from relay.service.intervals import DEFAULTS
from relay.topology.copies import count_missing, find_lost
from relay.topology.provision import check, topology_of
from relay.topology.watch import TopologyWatch


def kept(*followers, wanted=3, leader="a"):
    cluster = {"name": "local", "leader": leader, "replicas": [{"name": name, "current": ok} for name, ok in followers]}
    return {"config": {"num_replicas": wanted}, "cluster": cluster}


def test_counted():
    """A copy that nobody keeps is lost; one that is behind is missing; a consumer has the copies of its stream."""
    streams = {STATUS_STREAM: kept(("b", True), ("c", False)), "JOB_DLQ": kept(("b", True))}
    consumers = {"relay-lane-0": kept(("b", True), wanted=0), "relay-lane-1": kept(wanted=1)}
    lost = [text.partition(":")[0] for text in find_lost(streams, consumers)]
    assert ["stream JOB_DLQ has 2 of its 3 copies", "consumer relay-lane-0 has 2 of its 3 copies"] == lost
    assert 3 == count_missing(streams, consumers)


def test_single_server():
    """A server without a cluster tells nothing of copies, so none is missing."""
    info = {"config": {"num_replicas": 1}, "cluster": {"leader": "NCM4"}}
    assert (0, []) == (count_missing({STATUS_STREAM: info}, {}), list(find_lost({STATUS_STREAM: info}, {})))


async def remove_peer(cluster: NatsCluster, peer: str) -> None:
    """As `nats server cluster peer-remove`, again and again until there is a leader that does it."""
    admin = await connect(NatsSettings(urls=cluster.urls[:2], user=ADMIN, password=ADMIN), name="admin")
    async with asyncio.timeout(ELECTION_TIMEOUT_S):
        while True:
            with contextlib.suppress(BrokerUnavailable):
                await api_request(admin, "$JS.API.SERVER.REMOVE", {"peer": peer}, timeout_s=1)
                break
    await close(admin)


async def test_server_removed_from_the_cluster(after):
    """After the loss and `peer-remove` of a server, the check, the doctor, /readyz and the metric name lost copies."""
    looked = after(TopologyWatch, "_look")
    async with (
        NatsCluster() as cluster,
        FacilitatorSimulator() as facilitator,
        scene_at(cluster.nodes[0], facilitator) as scene,
    ):
        await lead(cluster, cluster.nodes[0])
        await cluster.kill(cluster.nodes[2])
        await remove_peer(cluster, "node-2")
        async with scene.relay(intervals=replace(DEFAULTS, topology_look_s=0.2)) as relay:
            await looked(lambda: gauges(relay).get("relay_missing_copies") == 9)
            readiness = await relay.worker_status.readiness()
            plan = await check(scene.nc, topology_of(scene.settings.delivery))
            found = await run_checks(scene.settings, None, timeout_s=20, connect_timeout_s=20)
    lost = "stream JOB_STATUS has 2 of its 3 copies: if a server was removed from the cluster"
    assert "copies" not in " ".join(readiness["missing"]), "updates flow meanwhile"
    assert [True] == [text.startswith(lost) for text in readiness["warnings"] if STATUS_STREAM in text]
    assert (9, True, False) == (len(plan.differences), plan.suffices, plan.in_place)
    copies = [finding.found for finding in found if finding.check == "copies" and STATUS_STREAM in finding.found]
    assert ["stream JOB_STATUS has 2 of its 3 copies"] == copies
