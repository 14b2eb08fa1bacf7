"""What the relay publishes about itself: receipts of settled updates, and reports of its state."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import nats.errors
import pytest
from nats.aio.msg import Msg
from relay_kit import STATUSES, Scene, counters, new_job, said, serving, update

from relay.contract.report import ConnectionReport, Report
from relay.contract.subjects import REPORT_SUBJECT, query_subject, receipt_subject
from relay.local.faults import refuse, stall
from relay.nats.frames import FrameClient

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
async def scene(nats_server, facilitator) -> AsyncIterator[Scene]:
    async with Scene(nats_server, facilitator, RECEIPTS="true") as scene:
        yield scene


@contextlib.asynccontextmanager
async def heard(scene: Scene, job: str) -> AsyncIterator[asyncio.Queue[Msg]]:
    """The receipts of a job that come during the block."""
    queue: asyncio.Queue[Msg] = asyncio.Queue()
    subscription = await scene.nc.subscribe(receipt_subject(job), cb=queue.put)
    await scene.nc.flush()
    yield queue
    await subscription.unsubscribe()


async def receipt(queue: asyncio.Queue[Msg]) -> dict[str, Any]:
    """The next receipt, without the duration of its update."""
    async with asyncio.timeout(5):
        fields = json.loads((await queue.get()).data)
    assert fields.pop("relayed_ms") > 0
    return fields


async def test_receipts_of_large_updates_are_small(scene):
    """A receipt has the same few bytes, whether its update is large or not, and however it ended."""
    job = new_job()
    bodies = update(job, metadata={"text": "x" * 5_000_000}), b"{" * 5_000_000
    async with serving(scene), heard(scene, job) as receipts:
        for body in bodies:
            await scene.publish_body(job, body)
        async with asyncio.timeout(20):
            sizes = [len((await receipts.get()).data) for _ in bodies]
    assert max(sizes) < 300


async def test_outcomes(scene):
    """Every settled update gives one receipt: the update, how it ended, and after how many attempts."""
    job = new_job()
    expected = []
    async with serving(scene), heard(scene, job) as receipts:
        for body, status, outcome, reason, attempts in (
            (update(job), "accepted", "acknowledged", None, 0),
            (update(job, metadata={"again": True}), "accepted", "duplicate", None, 0),
            (b"{", None, "dead_lettered", "invalid_json", 0),
        ):
            published = await scene.publish_body(job, body)
            expected.append(
                {
                    "uuid": job,
                    "status": status,
                    "sequence": published.sequence,
                    "outcome": outcome,
                    "reason": reason,
                    "attempts": attempts,
                }
            )
        assert expected == [await receipt(receipts) for _ in expected]


async def test_attempts(scene, facilitator):
    """A receipt counts the attempts of its update, whether it was acknowledged at last or not."""
    job = new_job()
    async with serving(scene), heard(scene, job) as receipts:
        with facilitator.inject(refuse("job.busy"), uuid=job, times=2):
            await scene.publish(job, "received")
            third_time = await receipt(receipts)
        with facilitator.inject(refuse("job.busy"), uuid=job, times=None):
            await scene.publish(job, "accepted")
            never = await receipt(receipts)
    assert ("acknowledged", None, 2) == tuple(third_time[name] for name in ("outcome", "reason", "attempts"))
    assert ("dead_lettered", "refused", 3) == tuple(never[name] for name in ("outcome", "reason", "attempts"))


@pytest.mark.parametrize(
    ("sent", "carried"),
    [
        ({"traceparent": TRACE}, {"traceparent": TRACE}),
        ({"traceparent": TRACE, "tracestate": "a=1,b=2"}, {"traceparent": TRACE, "tracestate": "a=1,b=2"}),
        ({"traceparent": "no trace", "tracestate": "a=1"}, None),
        (None, None),
    ],
    ids=["trace", "with state", "malformed", "none"],
)
async def test_trace(scene, sent, carried):
    """A receipt carries its update's trace and the state of that, if the header is well-formed."""
    job = new_job()
    async with serving(scene), heard(scene, job) as receipts:
        await scene.publish_body(job, update(job), sent)
        async with asyncio.timeout(5):
            message = await receipts.get()
    assert carried == message.headers


async def test_after_the_fact(scene):
    """The status service confirms what a receipt says."""
    job = new_job()
    said = []
    async with serving(scene), heard(scene, job) as receipts:
        for status in STATUSES:
            await scene.publish(job, status, {})
            await receipt(receipts)
            answer = json.loads((await scene.nc.request(query_subject(job), timeout=5)).data)
            said.append((answer["status"], answer["progress"]))
    assert [(status, "acknowledged") for status in STATUSES] == said


async def test_switched_off(scene):
    """Without the setting there are no receipts."""
    job = new_job()
    async with serving(scene, RECEIPTS="false"), heard(scene, job) as receipts:
        await scene.settled(await scene.publish(job))
        await scene.nc.request(query_subject(job), timeout=5)  # a receipt would have come before the answer
        assert receipts.empty()


async def test_cannot_be_published(scene, monkeypatch):
    """Receipts that NATS does not take are dropped and counted, and updates go on."""
    write = FrameClient.write

    def refuse_receipts(client: FrameClient, lines: bytes) -> None:
        if lines.startswith(b"PUB job.relayed."):
            raise nats.errors.OutboundBufferLimitError
        write(client, lines)

    monkeypatch.setattr(FrameClient, "write", refuse_receipts)
    async with serving(scene) as relay:
        assert ["+ACK"] * 6 == await scene.settled(*await scene.publish_life(new_job()))
        await scene.nc.request(REPORT_SUBJECT, timeout=5)
        assert 6 == counters(relay)["relay_receipts_dropped"]


async def reports(scene: Scene, count: int) -> list[Report]:
    inbox = scene.nc.new_inbox()
    answers = await scene.nc.subscribe(inbox)
    await scene.nc.publish(REPORT_SUBJECT, reply=inbox)
    return [msgspec.json.decode((await answers.next_msg(5)).data, type=Report) for _ in range(count)]


async def test_report(scene, facilitator):
    """A worker reports its lanes, its connections, what it settled, and how long that took."""
    stuck = new_job(lane=2)
    async with serving(scene) as relay:
        await said(relay, lambda told: told["ready"])  # all lanes have started
        await scene.settled(await scene.publish_body(new_job(), b"{"), *await scene.publish_life(new_job()))
        with facilitator.inject(stall(), uuid=stuck) as stalled:
            await scene.publish(stuck)
            await facilitator.wait_for(lambda _: stalled.hits == 1)
            (report,) = await reports(scene, 1)
        version = relay._version
    lanes = {lane.lane: (lane.at_hand, lane.out, lane.held, lane.trouble) for lane in report.lanes}
    assert {2: (1, 1, False, None)} | dict.fromkeys((0, 1, 3), (0, 0, False, None)) == lanes
    assert [True, False] == [lane.oldest_at_hand_s > 0 for lane in report.lanes if lane.lane in (2, 3)][::1]
    (connection,) = report.connections
    assert (True, ConnectionReport(32, 1, None)) == (
        connection.waiting_s > 0,
        msgspec.structs.replace(connection, waiting_s=0.0),
    )
    assert {"acknowledged": 6, "duplicate": 0, "dead_lettered": 1} == report.updates
    assert {"invalid_json": 1} == {reason: count for reason, count in report.dead_letters.items() if count}
    assert (version, [], 0) == (report.version, report.missing, report.retries)
    assert {"hot_path": 6, "end_to_end": 6, "round_trip": 6} == {
        name: sum(timing.counts) for name, timing in report.timings.items()
    }


async def test_every_worker_reports(scene):
    """Each worker reports for itself, under the id that it has in the lease bucket."""
    async with serving(scene), serving(scene):
        await scene.owned(lambda: len({taking.worker for taking in scene.owners.values()}) == 2)
        workers = {report.worker for report in await reports(scene, 2)}
    assert {taking.worker for taking in scene.takings if taking.worker} == workers
