"""Updates that JetStream gave up on become dead letters, once each, whichever worker handles the advisory."""

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from delivery_kit import FakeDelivery
from nats.aio.msg import Msg
from oracle import Published
from relay_kit import Scene, counters, new_job, update

from relay.contract.subjects import (
    ADVISORY_STREAM,
    ADVISORY_SUBJECTS,
    ATTEMPTS_HEADER,
    DLQ_STREAM,
    DLQ_SUBJECTS,
    MSG_ID_HEADER,
    REASON_HEADER,
    REPLAYED_FROM_HEADER,
    SOURCE_SEQUENCE_HEADER,
    SOURCE_SUBJECT_HEADER,
    STATUS_STREAM,
    Reason,
    api_message_delete,
    api_message_get,
    api_pull,
    api_stream_info,
    api_stream_update,
    dlq_subject,
    lane_consumer,
    receipt_subject,
    status_subject,
)
from relay.core.continuity import ConsumerState, Continuity
from relay.core.lane import Lane
from relay.core.update import DeadLetterHorizon
from relay.core.verdict import Outcome
from relay.dead_letters.stored import StoredDeadLetter
from relay.dead_letters.writer import DeadLetterWriter
from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer
from relay.nats.jetstream import api_request, publish_confirmed
from relay.observability.metrics import Metrics
from relay.path import advisories
from relay.path.advisories import Advisories
from relay.timing.room import Room

LANE = 0
MAX_DELIVER = 2
TIMEOUT_S = 15


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with (
        NatsServer() as server,
        FacilitatorSimulator() as facilitator,
        Scene(server, facilitator, MAX_DELIVER=str(MAX_DELIVER), ACK_WAIT="0.3", LEASE_TTL="1") as scene,
    ):
        yield scene


@contextlib.asynccontextmanager
async def heard(scene: Scene, subject: str) -> AsyncIterator[asyncio.Queue[Msg]]:
    """The messages on `subject` during the block."""
    queue: asyncio.Queue[Msg] = asyncio.Queue()
    subscription = await scene.nc.subscribe(subject, cb=queue.put)
    await scene.nc.flush()
    yield queue
    await subscription.unsubscribe()


async def next_of(queue: asyncio.Queue[Msg], count: int = 1) -> list[Msg]:
    async with asyncio.timeout(TIMEOUT_S):
        return [await queue.get() for _ in range(count)]


@contextlib.asynccontextmanager
async def doomed_worker(scene: Scene, deliveries: int) -> AsyncIterator[None]:
    """A worker of LANE that dies of each update: it takes `deliveries` of them and settles none."""
    async with heard(scene, inbox := scene.nc.new_inbox()) as taken:
        request = json.dumps({"batch": deliveries + 1, "expires": 60 * 10**9}).encode()
        await scene.nc.publish(api_pull(STATUS_STREAM, lane_consumer(LANE)), request, reply=inbox)
        await next_of(taken, deliveries)
        yield


async def exhaust(scene: Scene, job: str, *, count: int = 1, **headers: str) -> list[Published]:
    """Publish updates and take them without settling until the server gives up on them. Write a header's `-` as `_`."""
    given = {name.replace("_", "-"): value for name, value in headers.items()} or None
    async with heard(scene, ADVISORY_SUBJECTS) as given_up:
        dead_lettered = [
            await scene.publish_body(job, update(job), given, dead_letter=Reason.MAX_DELIVER) for _ in range(count)
        ]
        async with doomed_worker(scene, count * MAX_DELIVER):
            await next_of(given_up, count)
    return dead_lettered


@contextlib.asynccontextmanager
async def deletions(scene: Scene) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    """`await until_deleted(n)` waits until the server has deleted n more advisories."""

    async def until_deleted(count: int) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while count:
                answered = json.loads((await served.get()).data)
                deleted = answered["subject"] == api_message_delete(ADVISORY_STREAM)
                count -= deleted and "success" in json.loads(answered["response"])

    async with heard(scene, "$JS.EVENT.ADVISORY.API") as served:
        yield until_deleted


async def advisories_kept(scene: Scene) -> int:
    info = await api_request(scene.nc, api_stream_info(ADVISORY_STREAM))
    return info["state"]["messages"]


def summary(letters: list[StoredDeadLetter]) -> list[tuple[int, str, str]]:
    return [(letter.source_sequence, letter.reason, letter.attempts) for letter in letters]


@contextlib.asynccontextmanager
async def watching(scene: Scene, *lanes: Lane, look_every_s: float = 5.0) -> AsyncIterator[Metrics]:
    """Handle the advisories of these lanes during the block; yields their common metrics."""
    metrics = Metrics(scene.settings.delivery.lanes)
    async with asyncio.TaskGroup() as group:
        watches = [
            group.create_task(
                Advisories(
                    scene.nc, lane, DeadLetterWriter(scene.nc), metrics, Room(1), look_every_s=look_every_s
                ).run()
            )
            for lane in lanes
        ]
        yield metrics
        for watch in watches:
            watch.cancel()


def receipt_of(message: Msg) -> dict[str, Any]:
    return json.loads(message.data)


def new_lane() -> Lane:
    return Lane(LANE, Continuity(patience_s=0), DeadLetterHorizon(-math.inf, -math.inf))


async def test_exhausted_update_becomes_a_dead_letter(scene):
    """An update that killed its workers each time becomes an unchanged dead letter, and its job goes on."""
    job = new_job(LANE)
    body, headers = update(job, "received"), {"X-Trace": "a: 1", MSG_ID_HEADER: "once"}
    dead_lettered = await scene.publish_body(job, body, headers, status="received", dead_letter=Reason.MAX_DELIVER)
    async with heard(scene, ADVISORY_SUBJECTS) as given_up, doomed_worker(scene, MAX_DELIVER):
        await next_of(given_up)
    await scene.publish(job, "accepted")
    async with (
        deletions(scene) as until_deleted,
        heard(scene, receipt_subject(job)) as receipts,
        scene.relay(RECEIPTS="true") as relay,
    ):
        await scene.publish(job, "completed", {})
        await until_deleted(1)
        told = {receipt["sequence"]: receipt for receipt in map(receipt_of, await next_of(receipts, 3))}
    receipt = told[dead_lettered.sequence]
    assert ("dead_lettered", "max_deliver", "received", 2) == tuple(
        receipt[name] for name in ("outcome", "reason", "status", "attempts")
    )
    assert [] == await scene.broken_promises()
    (letter,) = await scene.dead_letters(f"job.dlq.{job}")
    assert [(dead_lettered.sequence, "max_deliver", "2")] == summary([letter])
    assert body == letter.body
    assert ("a: 1", "once") == (letter.headers["X-Trace"], letter.headers[f"Relay-Original-{MSG_ID_HEADER}"])
    assert 0 == await advisories_kept(scene)
    assert 1 == counters(relay)["relay_dead_letters max_deliver"]


async def test_given_up_while_the_lane_is_driven(scene):
    """If the server gives up on an update of a driven lane, it is dead-lettered when the advisory comes; if it was a
    replayed one, that is counted.
    """
    async with watching(scene, new_lane(), look_every_s=3600) as metrics, deletions(scene) as until_deleted:
        (dead_lettered,) = await exhaust(scene, new_job(LANE), **{REPLAYED_FROM_HEADER: "1"})
        await until_deleted(1)
    assert b'relay_replayed_updates_total{outcome="dead_lettered"} 1.0' in metrics.render()
    assert [(dead_lettered.sequence, "max_deliver", "2")] == summary(await scene.dead_letters())


async def test_heard_before_it_is_stored(scene, monkeypatch):
    """An advisory that comes before the server has stored its copy is followed up a moment later."""
    find, looks = advisories.find_message, []

    async def find_late(*arguments):
        looks.append(arguments)
        return None if len(looks) == 2 else await find(*arguments)  # the second look is that of the advisory

    monkeypatch.setattr(advisories, "find_message", find_late)
    async with watching(scene, new_lane(), look_every_s=3600), deletions(scene) as until_deleted:
        (dead_lettered,) = await exhaust(scene, new_job(LANE))
        await until_deleted(1)
    assert [(dead_lettered.sequence, "max_deliver", "2")] == summary(await scene.dead_letters())


async def test_two_relays_and_a_restart(scene):
    """With two relays, a restart of the server and one of a relay, each exhausted update is dead-lettered once."""
    first = await exhaust(scene, new_job(LANE), count=3)
    await scene.server.restart()
    await scene.reconnected()
    async with deletions(scene) as until_deleted, scene.relay(), scene.relay():
        await until_deleted(3)
    second = await exhaust(scene, new_job(LANE), count=2)
    async with deletions(scene) as until_deleted, scene.relay(), scene.relay():
        await until_deleted(2)
    assert [] == await scene.broken_promises()
    assert [each.sequence for each in first + second] == [
        letter.source_sequence for letter in await scene.dead_letters()
    ]
    assert 0 == await advisories_kept(scene)


async def test_two_owners_at_once(scene, capsys):
    """Two workers that both believe to own a lane write each dead letter once, without an error."""
    dead_lettered = await exhaust(scene, new_job(LANE), count=5)
    async with deletions(scene) as until_deleted, watching(scene, new_lane(), new_lane()):
        await until_deleted(5)
    assert [(each.sequence, "max_deliver", "2") for each in dead_lettered] == summary(await scene.dead_letters())
    assert 0 == await advisories_kept(scene)
    assert "[error" not in capsys.readouterr().out


async def test_killed_before_the_advisory_is_deleted(scene):
    """A dead letter that a killed worker wrote is not written again, however long ago that was."""
    job = new_job(LANE)
    (dead_lettered,) = await exhaust(scene, job)
    # Without a message id: the server forgets ids after its duplicate window.
    headers = {
        SOURCE_SEQUENCE_HEADER: str(dead_lettered.sequence),
        SOURCE_SUBJECT_HEADER: status_subject(job),
        REASON_HEADER: "max_deliver",
        ATTEMPTS_HEADER: "2",
    }
    await publish_confirmed(scene.nc, dlq_subject(job), b"", headers)
    async with deletions(scene) as until_deleted, watching(scene, new_lane()) as metrics:
        await until_deleted(1)
    assert [(dead_lettered.sequence, "max_deliver", "2")] == summary(await scene.dead_letters())
    assert b'relay_updates_total{outcome="dead_lettered"} 0.0' in metrics.render()


async def test_dead_letter_stream_is_full(scene):
    """An advisory is kept and tried again until its dead letter can be written."""
    (dead_lettered,) = await exhaust(scene, new_job(LANE))
    config = (await api_request(scene.nc, api_stream_info(DLQ_STREAM)))["config"]
    await api_request(scene.nc, api_stream_update(DLQ_STREAM), config | {"max_bytes": 1})
    async with watching(scene, new_lane(), look_every_s=0.1), heard(scene, DLQ_SUBJECTS) as tried:
        await next_of(tried, 2)
        assert 1 == await advisories_kept(scene)
        async with deletions(scene) as until_deleted:
            await api_request(scene.nc, api_stream_update(DLQ_STREAM), config)
            await until_deleted(1)
    assert [(dead_lettered.sequence, "max_deliver", "2")] == summary(await scene.dead_letters())


@pytest.mark.parametrize("outcome", Outcome)
async def test_update_at_hand_is_left_to_the_lane(scene, monkeypatch, outcome):
    """While an update is at hand in its lane, its advisory waits; if the lane settles it, nothing is written."""
    job = new_job(LANE)
    (dead_lettered,) = await exhaust(scene, job)
    lane = new_lane()
    lane.admit([FakeDelivery(dead_lettered.sequence)], 0.0)
    lane.resolve(ConsumerState(0, 0, 0), 0.0)
    async with watching(scene, lane, look_every_s=0.1):
        async with heard(scene, api_message_get(ADVISORY_STREAM)) as looks:
            await next_of(looks, 5)
        assert 1 == await advisories_kept(scene)
        async with deletions(scene) as until_deleted:
            lane.settle(lane.take(0), outcome)
            monkeypatch.setattr(lane, "outcome_of", lambda _: None)  # as if thousands had been settled since
            await until_deleted(1)
    assert [] == await scene.dead_letters()


async def test_update_is_gone(scene):
    """An advisory whose update is no longer in the stream is deleted, and those after it are handled."""
    gone, dead_lettered = await exhaust(scene, new_job(LANE), count=2)
    await api_request(scene.nc, api_message_delete(STATUS_STREAM), {"seq": gone.sequence})
    async with deletions(scene) as until_deleted, watching(scene, new_lane()):
        await until_deleted(2)
    assert [(dead_lettered.sequence, "max_deliver", "2")] == summary(await scene.dead_letters())


async def test_unreadable_advisory(scene):
    """Other messages on the advisories' subject are deleted, and delay nothing."""
    await publish_confirmed(scene.nc, ADVISORY_SUBJECTS.replace("*", lane_consumer(LANE)), b"no advisory")
    (dead_lettered,) = await exhaust(scene, new_job(LANE))
    async with deletions(scene) as until_deleted, watching(scene, new_lane()):
        await until_deleted(2)
    assert [(dead_lettered.sequence, "max_deliver", "2")] == summary(await scene.dead_letters())


async def test_largest_update(scene):
    """The largest update that the stream takes can be dead-lettered through an advisory, too."""
    job = new_job(LANE)
    limit = (await api_request(scene.nc, api_stream_info(STATUS_STREAM)))["config"]["max_msg_size"]
    body = b"x" * limit
    async with heard(scene, ADVISORY_SUBJECTS) as given_up:
        await scene.publish_body(job, body, dead_letter=Reason.MAX_DELIVER)
        async with doomed_worker(scene, MAX_DELIVER):
            await next_of(given_up)
    async with deletions(scene) as until_deleted, watching(scene, new_lane()):
        await until_deleted(1)
    assert [body] == [letter.body for letter in await scene.dead_letters()]
