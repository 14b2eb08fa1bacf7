"""Whose fault a dropped connection is: a control tells whether the Facilitator can store anything at all."""

import asyncio

import pytest
from relay_kit import ACKED, TERMED, Scene, counters, new_job, said

from relay.contract.subjects import Reason
from relay.local.faults import DROP_BEFORE_STORING

DROPS = 12
"""How often the connection drops in these tests, at least: four times as often as an update may fail."""


@pytest.fixture
async def scene(nats_server, facilitator):
    async with Scene(nats_server, facilitator, BACKOFF_MAX="0.1") as scene:
        yield scene


async def acknowledge_one(scene: Scene) -> None:
    """Have an update acknowledged by every connection, so that each has a control."""
    assert await scene.settled(await scene.publish(new_job(), "completed", {})) == [ACKED]


async def test_inserts_fail(scene, facilitator):
    """While INSERTs fail every update drops the connection: nothing is dead-lettered or counted, all arrives after."""
    async with scene.relay() as relay:
        await acknowledge_one(scene)
        with facilitator.inserts_fail() as fault:
            updates = await scene.publish_lives(3)
            await facilitator.wait_for(lambda _: fault.hits >= DROPS)
            troubles = relay.worker_status.missing()
        assert await scene.settled(*updates) == [ACKED] * len(updates)
        assert await scene.broken_promises() == []
        counted = counters(relay)
        assert (1, 0) == (counted["relay_controls lost"], counted["relay_retries"])
        assert counted["relay_controls missing"] >= DROPS - 3
        assert any("acknowledged nothing since" in trouble for trouble in troubles), troubles
        await said(relay, lambda told: told["ready"])


async def test_inserts_fail_from_the_start(scene, facilitator):
    """A relay that starts while INSERTs fail has seen nothing acknowledged: it dead-letters nothing either."""
    with facilitator.inserts_fail() as fault:
        async with scene.relay() as relay:
            updates = await scene.publish_lives(1)
            await facilitator.wait_for(lambda _: fault.hits >= DROPS)
            fault.lift()
            assert await scene.settled(*updates) == [ACKED] * len(updates)
            assert await scene.broken_promises() == []
            assert counters(relay)["relay_retries"] == 0


async def test_poison_while_inserts_fail(scene, facilitator):
    """An update that drops the connection anyway becomes a dead letter only after INSERTs work again."""
    poison = new_job()
    async with scene.relay() as relay:
        await acknowledge_one(scene)
        with facilitator.inserts_fail() as fault:
            facilitator.inject(DROP_BEFORE_STORING, uuid=poison, times=None)
            doomed = await scene.publish(poison, dead_letter=Reason.CONNECTION_DROPPED)
            await facilitator.wait_for(lambda _: fault.hits >= DROPS)
            assert await scene.dead_letters() == []
        fine = await scene.publish(new_job())
        assert await scene.settled(doomed, fine) == [TERMED, ACKED]
        assert await scene.broken_promises() == []
        [letter] = await scene.dead_letters()
        assert letter.headers["Relay-Attempts"] == "3"
        assert counters(relay)["relay_controls lost"] == 1


async def test_poison_with_a_control(scene, facilitator):
    """On a healthy Facilitator it is sent MAX_ATTEMPTS times, each time but the first after a control that passed."""
    poison = new_job()
    async with scene.relay() as relay:
        await acknowledge_one(scene)
        with facilitator.inject(DROP_BEFORE_STORING, uuid=poison, times=None) as drops:
            assert await scene.settled(await scene.publish(poison, dead_letter=Reason.CONNECTION_DROPPED)) == [TERMED]
        assert await scene.broken_promises() == []
        assert (3, 3) == (drops.hits, facilitator.replies["job.integrity_error"])
        # The controls are not counted as updates: not as duplicates, nor as anything else.
        assert +counters(relay) == {
            "relay_updates acknowledged": 1,
            "relay_updates dead_lettered": 1,
            "relay_dead_letters connection_dropped": 1,
            "relay_retries": 3,
            "relay_controls passed": 3,
            "relay_facilitator_connections opened": 4,
            "relay_facilitator_connections lost": 3,
        }
        assert sum(relay.metrics.timings()["round_trip"].counts) == 1


async def test_poison_without_a_control(scene, facilitator):
    """With nothing acknowledged, an update that drops the connection waits, until another one is acknowledged."""
    poison, later = new_job(), new_job()
    async with scene.relay() as relay:
        with facilitator.inject(DROP_BEFORE_STORING, uuid=poison, times=None) as drops:
            doomed = await scene.publish(poison, dead_letter=Reason.CONNECTION_DROPPED)
            await facilitator.wait_for(lambda _: drops.hits >= DROPS)
            assert any("acknowledged nothing since" in trouble for trouble in relay.worker_status.missing())
            assert counters(relay)["relay_retries"] == 0
            assert await scene.settled(await scene.publish(later), doomed) == [ACKED, TERMED]
        assert await scene.broken_promises() == []
        assert [letter.headers["Relay-Attempts"] for letter in await scene.dead_letters()] == ["3"]


async def test_job_of_the_control_deleted(scene, facilitator):
    """A control whose job was deleted is answered without storing anything: it does not blame an update."""
    async with scene.relay() as relay:
        gone = new_job()
        assert await scene.settled(await scene.publish(gone)) == [ACKED]
        facilitator.unknown_jobs.add(gone)
        with facilitator.inserts_fail() as fault:
            update = await scene.publish(new_job())
            await facilitator.wait_for(lambda _: fault.hits >= DROPS)
            assert await scene.dead_letters() == []
        assert await scene.settled(update) == [ACKED]
        assert await scene.broken_promises() == []
        assert counters(relay)["relay_retries"] == 0


async def test_a_control_that_has_become_poison(scene, facilitator):
    """If the Facilitator drops the connection at the control itself, other updates go on, and give a new control."""
    poison, first = new_job(), new_job()
    async with scene.relay() as relay:
        assert await scene.settled(await scene.publish(first, "completed", {})) == [ACKED]
        facilitator.inject(DROP_BEFORE_STORING, uuid=first, times=None)
        drops = facilitator.inject(DROP_BEFORE_STORING, uuid=poison, times=None)
        doomed = await scene.publish(poison, dead_letter=Reason.CONNECTION_DROPPED)
        await facilitator.wait_for(lambda _: drops.hits > 0)
        lives = await asyncio.gather(scene.publish_life(new_job()), scene.publish_life(new_job()))
        updates = [update for life in lives for update in life]
        assert await scene.settled(doomed, *updates) == [TERMED] + [ACKED] * len(updates)
        assert await scene.broken_promises() == []
        assert counters(relay)["relay_controls lost"] == 1
