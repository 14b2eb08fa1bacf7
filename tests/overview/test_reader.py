"""Reading a snapshot from a real nats-server with a running relay."""

import asyncio
import time
from collections import Counter

from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig
from relay_kit import Scene, new_job
from snapshot_kit import WORKER, report

from relay.contract.report import LaneReport
from relay.contract.subjects import (
    DLQ_STREAM,
    REPORT_SUBJECT,
    STATUS_STREAM,
    api_stream_create,
    api_stream_info,
    dlq_subject,
    status_subject,
)
from relay.dead_letters.reasons import ReasonCounts
from relay.leases.leases import Leases
from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer
from relay.nats.frames import FrameClient
from relay.nats.jetstream import api_request, publish_confirmed
from relay.overview.reader import SnapshotReader, _aged
from relay.overview.reports import gather_reports
from relay.overview.snapshot import LaneSnapshot
from relay.topology.provision import Topology, provision

TIMEOUT_S = 30


async def test_read(nats_server):
    """A snapshot has the lanes with owner, backlog and its age, the dead letters, and the reports."""
    async with FacilitatorSimulator() as simulator, Scene(nats_server, simulator) as scene:
        async with scene.relay():
            await scene.settled(await scene.publish(new_job(2)))
            settled_s = time.monotonic()
        await scene.publish(new_job(2))
        scene.takings.clear()
        async with scene.relay(FACILITATOR_URL="ws://127.0.0.1:1/ws/v0/"):
            await scene.owned(lambda: len(scene.owners) == 4)
            found = await SnapshotReader(scene.nc).read()
        owner = scene.takings[0].worker
    assert [(lane, owner) for lane in range(4)] == [(lane.lane, lane.owner) for lane in found.lanes]
    assert [0, 0, 1, 0] == [lane.unsettled for lane in found.lanes]
    assert [None, None, None] == [found.lanes[lane].oldest_s for lane in (0, 1, 3)]
    assert 0 < found.lanes[2].oldest_s < found.taken_s - settled_s, "it is that of the second update"
    assert ({owner}, {owner}) == (set(found.workers), set(found.reports))
    assert (2, 0, ReasonCounts()) == (found.streams[STATUS_STREAM].last_sequence, found.advisories, found.dead_letters)
    assert abs(found.server_ahead_s) < 1


def test_oldest_after_a_clock_was_set_back():
    """If the server tells no age, because an update was stored in its future, the owner knows how long it has it."""
    lane, of_other = LaneSnapshot(0, WORKER, delivered=1, oldest_s=0.0), LaneSnapshot(1, "other", oldest_s=7.0)
    at_hand = report(lanes=[LaneReport(0, 1, 1, held=False, oldest_at_hand_s=120.0, trouble=None)])
    assert [120.0, 7.0] == [_aged(each, {WORKER: at_hand}).oldest_s for each in (lane, of_other)]
    assert 0.0 == _aged(lane, {WORKER: report(lanes=[])}).oldest_s


async def test_large_updates_are_not_read_again_and_again(provisioned, monkeypatch):
    """Whole updates are read once to know their age, a few at a time, and again only when something was settled."""
    reader, request, under_way, counts = SnapshotReader(provisioned), FrameClient.request, Counter(), [0, 0]

    async def counted(self, subject, *arguments, **options):
        if not subject.startswith("$JS.API.STREAM.MSG.GET.JOB_STATUS"):
            return await request(self, subject, *arguments, **options)
        under_way["requests"] += 1
        counts[:] = counts[0] + 1, max(counts[1], under_way["requests"])
        try:
            return await request(self, subject, *arguments, **options)
        finally:
            under_way["requests"] -= 1

    monkeypatch.setattr(FrameClient, "request", counted)
    await provision(provisioned, Topology(lanes=8, replicas=1, ack_wait_s=5, max_deliver=50, lease_ttl_s=5))
    for lane in range(8):
        await publish_confirmed(provisioned, status_subject(new_job(lane, lanes=8)), b"{}")
    counts[:] = 0, 0
    first, second = await reader.read(), await reader.read()
    assert [8, 4] == counts
    assert all(after.oldest_s > before.oldest_s > 0 for before, after in zip(first.lanes, second.lanes, strict=True))
    [delivery] = await (await provisioned.jetstream().pull_subscribe_bind("relay-lane-3", "JOB_STATUS")).fetch(1)
    await delivery.ack_sync()
    third = await reader.read()
    assert (8, None) == (counts[0], third.lanes[3].oldest_s)


async def test_consumer_that_acknowledges_nothing(provisioned):
    """A lane's consumer that somebody made anew, without acknowledgements, has no `ack_wait`. It can be looked at."""
    jetstream, name = provisioned.jetstream(), "relay-lane-0"
    await jetstream.delete_consumer(STATUS_STREAM, name)
    config = ConsumerConfig(durable_name=name, filter_subject="job.status.0.*", ack_policy=AckPolicy.NONE)
    await jetstream.add_consumer(STATUS_STREAM, config)
    assert [None] * 4 == [lane.trouble for lane in (await SnapshotReader(provisioned).read()).lanes]


async def test_no_worker_answers(provisioned):
    """If no worker subscribes to the question, the reader does not wait for answers."""
    async with asyncio.timeout(TIMEOUT_S):
        assert {} == await gather_reports(provisioned, expected=3, timeout_s=2 * TIMEOUT_S)


async def test_answer_that_is_no_report(provisioned):
    """An answer that cannot be read counts as one: the reader does not wait for another."""

    async def answer(message: Msg) -> None:
        await message.respond(b'{"worker":"\xff"}')

    await provisioned.subscribe(REPORT_SUBJECT, cb=answer)
    async with asyncio.timeout(TIMEOUT_S):
        assert {} == await gather_reports(provisioned, expected=1, timeout_s=2 * TIMEOUT_S)


async def test_dead_letters_that_cannot_be_counted(provisioned):
    """If JetStream refuses to let dead letters be read, the snapshot says why, and has everything else."""
    config = (await api_request(provisioned, api_stream_info(DLQ_STREAM)))["config"] | {"max_consumers": 1}
    jetstream = provisioned.jetstream()
    await jetstream.delete_stream(DLQ_STREAM)
    await api_request(provisioned, api_stream_create(DLQ_STREAM), config)
    await jetstream.add_consumer(DLQ_STREAM, durable_name="other")
    await publish_confirmed(provisioned, dlq_subject(new_job()), b"{}")
    found = (await SnapshotReader(provisioned).read()).dead_letters
    assert (1, 0, True) == (found.total, found.counted, "maximum consumers limit reached" in found.uncounted)


async def test_how_long_workers_are_silent(provisioned):
    """A worker that does not renew its announcement is silent for longer and longer."""
    reader, leases = SnapshotReader(provisioned), Leases(provisioned, "vm-1-frozen", 5)
    await leases.announce()
    first = second = (await reader.read()).silent_s["vm-1-frozen"]
    while second < 0.3:
        second = (await reader.read()).silent_s["vm-1-frozen"]
    began_s = time.monotonic()
    await leases.announce()
    renewed = (await reader.read()).silent_s["vm-1-frozen"]
    assert 0 <= first <= second
    assert renewed < 0.2 + time.monotonic() - began_s


async def test_user_who_may_not_ask(connect, topology):
    """If the NATS user may not ask the workers, the reader does not wait, and the snapshot says that none was asked."""
    user = '{user: u, password: p, permissions: {publish: {deny: "relay.report"}}}'
    async with NatsServer(extra_config=f"accounts {{A {{jetstream: enabled, users: [{user}]}}}}") as server:
        client = await connect(server.url, user="u", password="p")
        await provision(client, topology)
        assert not (await SnapshotReader(client).read()).may_ask_workers
