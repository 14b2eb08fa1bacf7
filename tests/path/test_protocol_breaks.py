"""Drops, closes, odd replies and outages, as on the protocol page: nothing is lost, and no update is wrongly blamed."""

import asyncio
from collections import Counter
from dataclasses import replace

import pytest
from bittensor_wallet import Keypair
from relay_kit import ACKED, TERMED, Scene, counters, missing, new_job, said

from relay.contract.facilitator_messages import authentication_request
from relay.contract.subjects import Reason
from relay.local.facilitator import FacilitatorSimulator
from relay.local.faults import (
    ANSWER_TWICE,
    DROP_AFTER_STORING,
    DROP_BEFORE_STORING,
    NEVER_ANSWER,
    UNTIL_LIFTED,
    close_with,
    refuse,
    stall,
)
from relay.local.ledger import DROPPED

HOTKEY = Keypair.create_from_uri("//Alice")
PUBLIC_KEY = HOTKEY.public_key.hex()
SIGNED = authentication_request(PUBLIC_KEY, HOTKEY.sign(HOTKEY.public_key).hex())
FORGED = authentication_request(PUBLIC_KEY, Keypair.create_from_uri("//Bob").sign(HOTKEY.public_key).hex())


@pytest.fixture
async def rough(nats_server, facilitator):
    """A relay for one test."""
    async with Scene(nats_server, facilitator) as scene, scene.relay() as scene.running:
        yield scene


async def relays(scene: Scene, jobs: int = 5) -> None:
    """Publish this many lives, and check that all of it arrives."""
    updates = await scene.publish_lives(jobs)
    assert await scene.settled(*updates) == [ACKED] * len(updates)
    assert await scene.broken_promises() == []


def relayed(outcomes: Counter[str]) -> int:
    """How many were acknowledged, as stored or as duplicate: a drop may lose an answer that was on its way."""
    return outcomes["relay_updates acknowledged"] + outcomes["relay_updates duplicate"]


# Drops.


async def test_drop_before_storing(rough):
    """A drop costs the first unanswered update one attempt, and everything unanswered is sent again."""
    await relays(rough, 1)  # the drop may lose all answers on its connection, and something must be acknowledged
    with rough.facilitator.inject(DROP_BEFORE_STORING, nth=10) as injection:
        await relays(rough)
    assert injection.hits == 1
    assert rough.facilitator.accepted == 2
    outcomes = counters(rough.running)
    assert outcomes["relay_retries"] == 1
    assert outcomes["relay_facilitator_connections lost"] == 1
    assert relayed(outcomes) == 36


async def test_drop_after_storing(rough):
    """What was stored before the drop is sent again, and acknowledged as a duplicate."""
    await relays(rough, 1)
    with rough.facilitator.inject(DROP_AFTER_STORING, nth=10):
        await relays(rough)
    outcomes = counters(rough.running)
    assert outcomes["relay_updates duplicate"] >= 1
    repeats = outcomes["relay_updates duplicate"] + outcomes["relay_controls passed"]
    assert repeats == rough.facilitator.replies["job.integrity_error"]
    assert relayed(outcomes) == 36


@pytest.mark.parametrize("fault", [DROP_BEFORE_STORING, close_with(1009)], ids=["drop", "1009"])
async def test_poison(rough, fault):
    """An update that ends the connection each time is dead-lettered after MAX_ATTEMPTS; the others all arrive."""
    poison = new_job()
    with rough.facilitator.inject(fault, uuid=poison, status="executor_ready", times=None) as injection:
        early = [await rough.publish(poison, status) for status in ("received", "accepted")]
        dead_lettered = rough.publish(poison, "executor_ready", dead_letter=Reason.CONNECTION_DROPPED)
        (poor, late), neighbours = await asyncio.gather(
            _in_turn(dead_lettered, rough.publish(poison, "execution_done")), rough.publish_lives(5)
        )
        assert await rough.settled(*early, poor, late, *neighbours) == [ACKED, ACKED, TERMED] + [ACKED] * 31
    assert injection.hits in (3, 4)  # the first drop may lose an older update's answer, which is then blamed instead
    assert await rough.broken_promises() == []
    [letter] = await rough.dead_letters()
    assert letter.headers["Relay-Attempts"] == "3"
    assert letter.headers["Relay-Error"] == (
        "the Facilitator dropped the connection 3 times when this update was the first unanswered one,"
        " and answered a repeat of an earlier update in between"
    )


async def _in_turn(*coroutines):
    return [await coroutine for coroutine in coroutines]


# Closes.


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, 3000, 3001])
async def test_close_in_mid_flow(rough, code):
    """A close code that does not complain about a message costs a reconnect, and no attempt."""
    with rough.facilitator.inject(close_with(code), nth=10) as injection:
        await relays(rough)
    assert injection.hits == 1
    assert +counters(rough.running) == {
        "relay_updates acknowledged": 30,
        "relay_facilitator_connections opened": 2,
        "relay_facilitator_connections lost": 1,
    }


async def test_close_for_a_frame_too_big(rough):
    """1009 complains about a message, so the first unanswered update becomes the suspect and gets one attempt."""
    with rough.facilitator.inject(close_with(1009), nth=10):
        await relays(rough)
    assert counters(rough.running)["relay_retries"] == 1


async def test_forgotten_authentication(nats_server, facilitator):
    """auth.not_authenticated is no update's fault, and the answers after it are not matched to updates."""
    forgetful = replace(refuse("auth.not_authenticated"), hold_s=UNTIL_LIFTED)
    async with Scene(nats_server, facilitator, ACK_WAIT="0.3") as scene, scene.relay() as relay:
        with facilitator.inject(forgetful):
            updates = [await scene.publish(new_job()) for _ in range(20)]
            await scene.kept(updates[-1])  # all are sent, so the answers come in one burst
        assert await scene.settled(*updates) == [ACKED] * 20
        assert await scene.broken_promises() == []
        assert facilitator.accepted == 2
        assert counters(relay)["relay_retries"] == 0


# Replies that cannot be trusted.


async def test_answered_twice(rough):
    """A surplus answer breaks the connection, and the next connection starts without it."""
    with rough.facilitator.inject(ANSWER_TWICE):
        first = await rough.publish(job := new_job(), "accepted")
        assert await rough.settled(first) == [ACKED]
        await rough.facilitator.wait_for(lambda facilitator: facilitator.accepted == 2)
    # If it were matched to the surplus success, this refusal would count as an acknowledgement.
    with rough.facilitator.inject(refuse("missing"), uuid=job):
        poor = await rough.publish(job, "failed", dead_letter=Reason.REFUSED)
        assert await rough.settled(poor) == [TERMED]
    await relays(rough)
    assert counters(rough.running)["relay_retries"] == 0


async def test_never_answered(nats_server, facilitator):
    """A missing answer breaks the connection at the reply timeout; what was stored meanwhile becomes a duplicate."""
    async with Scene(nats_server, facilitator, FACILITATOR_REPLY_TIMEOUT="0.3") as scene, scene.relay() as relay:
        with facilitator.inject(NEVER_ANSWER):
            silent = await scene.publish(new_job())
            assert await scene.settled(silent) == [ACKED]
        assert facilitator.replies["job.integrity_error"] == 1
        assert facilitator.replies["success"] == 0
        assert facilitator.accepted == 2
        assert counters(relay)["relay_retries"] == 0
        await relays(scene)


async def test_stalled_for_longer_than_the_reply_timeout(nats_server, facilitator):
    """A stall is no update's fault, however often it happens: all updates are sent until they are accepted."""
    async with Scene(nats_server, facilitator, FACILITATOR_REPLY_TIMEOUT="0.1") as scene, scene.relay() as relay:
        with facilitator.inject(stall(), times=None):
            updates = await scene.publish_lives(5)
            await facilitator.wait_for(lambda facilitator: facilitator.accepted > 4)
        assert await scene.settled(*updates) == [ACKED] * len(updates)
        assert await scene.broken_promises() == []
        assert counters(relay)["relay_retries"] == 0


# Signing in.


async def test_wrong_signature(nats_server):
    """With a wrong signature the relay is not ready and dead-letters nothing; with the right one all updates arrive."""
    async with FacilitatorSimulator({PUBLIC_KEY}) as facilitator, Scene(nats_server, facilitator) as scene:
        async with scene.relay(FORGED) as relay:
            updates = await scene.publish_lives(2)
            await facilitator.wait_for(lambda facilitator: facilitator.replies["auth.signature_invalid"] >= 3)
            assert await missing(relay, "refuses this validator") == (
                "the Facilitator refuses this validator: auth.signature_invalid: The signature does not match the"
                " public key.; check RELAY_FACILITATOR_HOTKEY_FILE, and that this validator is registered and active"
                " there"
            )
            assert await scene.dead_letters() == []
            assert await scene.unsettled() == len(updates)
        async with scene.relay(SIGNED) as relay:
            assert await scene.settled(*updates) == [ACKED] * len(updates)
            await said(relay, lambda told: told["ready"])
            assert await scene.broken_promises() == []


async def test_unknown_validator(nats_server):
    """With an unknown validator the relay is not ready and dead-letters nothing; once it is known, all goes on."""
    async with (
        FacilitatorSimulator(set()) as facilitator,
        Scene(nats_server, facilitator) as scene,
        scene.relay(SIGNED) as relay,
    ):
        updates = await scene.publish_lives(2)
        await facilitator.wait_for(lambda facilitator: facilitator.replies["auth.validator_not_found"] >= 3)
        assert await missing(relay, "refuses this validator") == (
            "the Facilitator refuses this validator: auth.validator_not_found: No active validator has this"
            " public key.; check RELAY_FACILITATOR_HOTKEY_FILE, and that this validator is registered and active there;"
            " the Facilitator reads its list of validators anew every 5 minutes, so a change may take that long"
        )
        assert await scene.unsettled() == len(updates)

        facilitator.ledger.validators.add(PUBLIC_KEY)
        assert await scene.settled(*updates) == [ACKED] * len(updates)
        await said(relay, lambda told: told["ready"])
        assert await scene.broken_promises() == []
        assert counters(relay)["relay_retries"] == 0


async def test_validator_removed_and_back(nats_server):
    """If a validator is removed under load (3001) and comes back, no update is lost and none gets an attempt."""
    async with (
        FacilitatorSimulator({PUBLIC_KEY}, service_time_s=0.002) as facilitator,
        Scene(nats_server, facilitator) as scene,
        scene.relay(SIGNED) as relay,
    ):
        publishing = asyncio.create_task(scene.publish_lives(5))
        await facilitator.wait_for(lambda facilitator: len(facilitator.rows) >= 10)
        await facilitator.remove_validator(PUBLIC_KEY)
        await facilitator.wait_for(lambda facilitator: facilitator.replies["auth.validator_not_found"] >= 3)
        facilitator.ledger.validators.add(PUBLIC_KEY)

        assert await scene.settled(*await publishing) == [ACKED] * 30
        assert await scene.broken_promises() == []
        assert counters(relay)["relay_retries"] == 0


async def test_headers_of_the_upgrade(nats_server):
    """The Facilitator gets the headers of RELAY_FACILITATOR_HEADERS with each request for a WebSocket."""
    headers = {"X-Validator-Version": "1.2.3", "X-Validator-Runner-Version": "7 (rc1)"}
    text = "; ".join(f"{name}: {value}" for name, value in headers.items())
    async with (
        FacilitatorSimulator() as facilitator,
        Scene(nats_server, facilitator, FACILITATOR_HEADERS=text) as scene,
        scene.relay(),
    ):
        await relays(scene, 1)
        first = dict(facilitator.upgrade_headers)
        accepted = facilitator.accepted
        await facilitator.close_all(1012)
        await facilitator.wait_for(lambda facilitator: facilitator.accepted > accepted)
        second = dict(facilitator.upgrade_headers)
    assert headers.items() <= first.items()
    assert headers.items() <= second.items()


# Outages.


@pytest.mark.parametrize("outage", ["database_down", "cache_down"])
async def test_outage_behind_the_facilitator(nats_server, outage):
    """While the Facilitator's database or cache is down, it drops every connection; the relay is not ready and says so,
    and no update is blamed.
    """
    async with (
        FacilitatorSimulator({PUBLIC_KEY}, service_time_s=0.002) as facilitator,
        Scene(nats_server, facilitator, MAX_ATTEMPTS="2") as scene,
        scene.relay(SIGNED) as relay,
    ):
        publishing = asyncio.create_task(scene.publish_lives(5))
        await facilitator.wait_for(lambda facilitator: len(facilitator.rows) >= 10)
        with getattr(facilitator, outage)():
            connections = facilitator.accepted
            await facilitator.wait_for(lambda facilitator: facilitator.accepted > connections + 2)
            told = "the connection to the Facilitator ended at the sign-in: it was dropped without a close frame"
            await said(relay, lambda status: status["missing"] == [told])

        assert await scene.settled(*await publishing) == [ACKED] * 30
        assert await scene.broken_promises() == []
        assert counters(relay)["relay_retries"] == 0


@pytest.mark.parametrize("code", [1012, DROPPED])
async def test_facilitator_restarts(rough, code):
    """If the Facilitator goes away and comes back, nothing is lost: 1012 is a restart, a drop is a killed worker."""
    rough.facilitator.service_time_s = 0.002
    publishing = asyncio.create_task(rough.publish_lives(5))
    await rough.facilitator.wait_for(lambda facilitator: len(facilitator.rows) >= 10)
    await rough.facilitator.away(code)
    updates = await publishing
    await rough.facilitator.back()

    assert await rough.settled(*updates) == [ACKED] * 30
    assert await rough.broken_promises() == []
