"""Lowering the time to live of leases."""

import pytest
from load_kit import steadily_published
from relay_kit import Scene, lane_changes, said

from relay.topology.lease_ttl import steps_down

S = 10**9


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [(15, 15, []), (15, 10, []), (15, 9, [10]), (15, 5, [10, 6.67]), (5, 15, [])],
)
def test_steps(old, new, expected):
    """No step is larger than a third, and before the next one every worker has time to renew and to read it."""
    steps = list(steps_down(old * S, new * S))
    assert expected == [round(ttl / S, 2) for ttl, _ in steps]
    before = [old, *(ttl / S for ttl, _ in steps)]
    assert all(wait_s > ttl * 2 / 3 for (_, wait_s), ttl in zip(steps, before, strict=False))


async def test_lowered_under_load(nats_server, facilitator):
    """While relays run with the old value, it is lowered to less than a third: no lane is lost, and all is relayed."""
    async with (
        Scene(nats_server, facilitator, LEASE_TTL="3.6", ACK_WAIT="1") as scene,
        scene.relay() as one,
        scene.relay() as other,
    ):
        await scene.owned(lambda: len({taking.worker for taking in scene.owners.values()}) == 2)
        async with steadily_published(scene, backlog=50):
            scene.environment["RELAY_LEASE_TTL"] = "1.15"
            await scene.provision(downgrade=True)
            takings = len(scene.takings)
            renewals = await scene.nc.subscribe("$KV.RELAY_LEASES.lane.*")
            for _ in range(16):
                await renewals.next_msg(timeout=5)
        lost = [lane_changes(relay)["relay_lanes_left lost"] for relay in (one, other)]
        assert ([0, 0], takings) == (lost, len(scene.takings))
        assert [] == await scene.broken_promises(20)


async def test_other_settings(nats_server, facilitator):
    """A relay whose settings differ from the streams goes by theirs, relays, and says so on /readyz."""
    async with Scene(nats_server, facilitator, LEASE_TTL="1", ACK_WAIT="2", MAX_DELIVER="20") as scene:
        other = {"LEASE_TTL": "9", "ACK_WAIT": "60", "MAX_DELIVER": "50", "REPLICAS": "3"}
        async with scene.relay(**other) as relay:
            sent = await scene.publish_life("0b5f8c1e-5d3a-4e7b-8f60-1c2d3e4f5a6b")
            await scene.settled(*sent)
            await scene.owned(lambda: len(scene.owners) == 4)
            readiness = await said(relay, lambda told: told["ready"])
            memory_s = relay._memory.ack_wait_s
    assert {f"RELAY_{name}" for name in other} == {text.split()[0] for text in readiness["warnings"]}
    assert 2.0 == memory_s
