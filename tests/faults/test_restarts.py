"""Every process may die while it works, and be started again, without breaking the promise."""

import asyncio
import random
import signal
from pathlib import Path

import nats
import pytest
from bittensor_wallet import Keypair
from nats.aio.subscription import Subscription
from relay_kit import DUPLICATE, PROBE, STATUSES, Scene, new_job, update

from relay.contract.facilitator_messages import authentication_request
from relay.contract.subjects import STATUS_STREAM, status_subject
from relay.local.facilitator import FacilitatorSimulator
from relay.local.faults import Fault, stall
from relay.local.ledger import DROPPED
from relay.local.server import NatsServer
from relay.nats.jetstream import api_request
from relay.service.intervals import DEFAULTS

ROOT = Path(__file__).parents[2]
SWALLOW = Fault(store=False, answers=0)


@pytest.mark.timeout(120)
async def test_kill_9():
    """A relay that is killed in the middle of 10,000 updates and started again loses and reorders none."""
    rng = random.Random(1)
    async with (
        NatsServer() as server,
        FacilitatorSimulator() as facilitator,
        Scene(server, facilitator, ACK_WAIT="1", LEASE_TTL="1") as scene,
    ):
        async with scene.relay_process() as relay:
            publishing = asyncio.create_task(scene.publish_lives(10_000 // len(STATUSES)))
            stored = rng.randrange(1_000, 6_000)
            await facilitator.wait_for(lambda facilitator: len(facilitator.rows) >= stored, 60)
            relay.send_signal(signal.SIGKILL)
            await relay.wait()
        async with scene.relay_process():
            await publishing
            broken = await scene.broken_promises(60)
    assert broken == []
    assert set(facilitator.replies) <= {"success", DUPLICATE, PROBE}


async def test_what_the_dead_had_in_hand_goes_first():
    """A new update does not overtake one of its job that a killed relay had at hand, although JetStream delivers the
    new one at once and the old one only after `ack_wait`.
    """
    async with (
        NatsServer() as server,
        FacilitatorSimulator() as facilitator,
        Scene(server, facilitator, ACK_WAIT="3", LEASE_TTL="0.5") as scene,
    ):
        jobs = [new_job() for _ in range(20)]
        with facilitator.inject(SWALLOW, times=None) as silence:
            async with scene.relay_process() as relay:
                for job in jobs:
                    await scene.publish(job, "accepted")
                await facilitator.wait_for(lambda _: silence.hits == len(jobs))
                relay.send_signal(signal.SIGKILL)
                await relay.wait()
        for job in jobs:
            await scene.publish(job, "completed", {})
        async with scene.relay():  # in this process, so that it starts before `ack_wait` is over
            broken = await scene.broken_promises(20)
    assert broken == []


async def test_sigterm():
    """A relay that is stopped under load exits with 0, and its successor sends nothing a second time."""
    async with (
        NatsServer() as server,
        FacilitatorSimulator(service_time_s=0.001) as facilitator,
        Scene(server, facilitator) as scene,
    ):
        async with scene.relay_process() as relay:
            await scene.publish_lives(100)
            await facilitator.wait_for(lambda facilitator: len(facilitator.rows) >= 50)
            relay.send_signal(signal.SIGTERM)
            status = await relay.wait()
        stored = len(facilitator.rows)
        async with scene.relay_process():
            broken = await scene.broken_promises(20)
    assert status == 0
    assert 50 <= stored < len(scene.published)  # otherwise the test proves nothing
    assert broken == []
    assert dict(facilitator.replies) == {"success": len(scene.published), PROBE: 2}


@pytest.mark.parametrize("away", ["facilitator stalled", "facilitator gone", "nats gone"])
async def test_sigterm_while_somebody_is_away(away):
    """A relay that is stopped while the Facilitator or NATS is away ends in time, and acknowledges nothing unanswered:
    the next relay delivers all of it.
    """
    async with (
        NatsServer() as server,
        FacilitatorSimulator() as facilitator,
        Scene(server, facilitator, ACK_WAIT="1", LEASE_TTL="1") as scene,
    ):
        async with scene.relay_process() as relay:
            with facilitator.inject(SWALLOW, times=None) as silence:
                await scene.publish_lives(20)
                await facilitator.wait_for(lambda _: silence.hits >= 20)
                if away == "facilitator gone":
                    await facilitator.away(DROPPED)
                elif away == "nats gone":
                    await server.stop()
                relay.send_signal(signal.SIGTERM)
                async with asyncio.timeout(DEFAULTS.drain_s + 10):
                    status = await relay.wait()
        if away == "facilitator gone":
            await facilitator.back()
        elif away == "nats gone":
            await server.start()
            await scene.reconnected()
        async with scene.relay():
            broken = await scene.broken_promises(30)
    assert status == 0
    assert broken == []


async def test_last_deliveries_do_not_come(monkeypatch):
    """If the server does not answer while the relay waits for the last deliveries, it still releases its lanes, and
    the next relay goes on.
    """
    asked = []

    async def drain(subscription: Subscription) -> None:
        asked.append(subscription)
        raise nats.errors.TimeoutError

    async with NatsServer() as server, FacilitatorSimulator() as facilitator, Scene(server, facilitator) as scene:
        with monkeypatch.context() as patch:
            patch.setattr(Subscription, "drain", drain)
            async with scene.relay():
                await scene.settled(await scene.publish(new_job()))
        assert len(asked) >= 4, "one for each lane"
        async with scene.relay():
            await scene.settled(await scene.publish(new_job()))
            assert [] == await scene.broken_promises()


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_nats_restarts(end):
    """If nats-server stops or dies under load and comes back, no update is lost, and the order is kept."""
    async with (
        NatsServer() as server,
        FacilitatorSimulator(service_time_s=0.001) as facilitator,
        Scene(server, facilitator, ACK_WAIT="1") as scene,
        scene.relay(),
    ):
        await scene.publish_lives(200)
        for share in (4, 2):
            stored = len(scene.published) // share
            await facilitator.wait_for(lambda facilitator, stored=stored: len(facilitator.rows) >= stored, 20)
            await getattr(server, end)()
            await server.start()
            await scene.reconnected()
        broken = await scene.broken_promises(30)
    assert broken == []


async def test_stream_made_anew():
    """If the status stream is deleted and provisioned again, its sequences start again. New updates are relayed, not
    taken for the earlier updates with their sequences.
    """
    async with (
        NatsServer() as server,
        FacilitatorSimulator() as facilitator,
        Scene(server, facilitator) as scene,
        scene.relay(),
    ):
        before = [await scene.publish(new_job()) for _ in range(20)]
        await scene.settled(*before)
        await api_request(scene.nc, f"$JS.API.STREAM.DELETE.{STATUS_STREAM}")
        await scene.provision()
        after = [await scene.publish(new_job()) for _ in range(20)]
        broken = await scene.broken_promises(20)
    assert [update.sequence for update in before] == [update.sequence for update in after]
    assert broken == []


async def test_facilitator_away():
    """However long the Facilitator is away, and however often the relay restarts meanwhile, no update gets an attempt:
    with only one attempt allowed, none is dead-lettered.
    """
    hotkey = Keypair.create_from_uri("//validator")
    public_key = hotkey.public_key
    authentication = authentication_request(public_key.hex(), hotkey.sign(public_key).hex())
    async with (
        NatsServer() as server,
        FacilitatorSimulator([public_key.hex()]) as facilitator,
        Scene(server, facilitator, ACK_WAIT="0.3", MAX_ATTEMPTS="1") as scene,
    ):
        async with scene.relay(authentication):
            await scene.settled(await scene.publish(new_job()))
            with facilitator.inject(stall()):
                first, *_ = await scene.publish_life(new_job())
                await scene.kept(first)
                await facilitator.away(DROPPED)
                for _ in range(12):  # three heartbeats per ack_wait
                    await scene.kept(first)
        with facilitator.database_down():
            await facilitator.back()
            for _ in range(3):
                tried = facilitator.accepted
                async with scene.relay(authentication):
                    await facilitator.wait_for(lambda facilitator, tried=tried: facilitator.accepted >= tried + 2)
        async with scene.relay(authentication):
            broken = await scene.broken_promises(20)
    assert broken == []


async def test_server_started_by_hand():
    """With nats-server.conf as it is, updates of any NATS client are relayed, plain and in the old envelope."""
    async with (
        NatsServer(config_file=ROOT / "nats-server.conf") as server,
        FacilitatorSimulator() as facilitator,
        Scene(server, facilitator) as scene,
        scene.relay_process(),
    ):
        bare, enveloped = new_job(), new_job()
        envelope = b'{"type":"job_status_update","payload":' + update(enveloped) + b"}"
        client = await nats.connect(server.url)
        try:
            for job, body in ((bare, update(bare)), (enveloped, envelope)):
                await client.jetstream().publish(status_subject(job), body)
        finally:
            await client.close()
        await scene.dust_settled()
    assert {(row.uuid, row.status) for row in facilitator.rows} == {(bare, "accepted"), (enveloped, "accepted")}
