"""Reading a snapshot from a real nats-server with a running relay."""

import asyncio
import time

from relay_kit import Scene, new_job

from relay.dead_letters.reasons import ReasonCounts
from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer
from relay.overview.reader import SnapshotReader
from relay.overview.reports import gather_reports
from relay.topology.provision import provision

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
    assert (2, 0, ReasonCounts()) == (found.published, found.advisories, found.dead_letters)
    assert abs(found.server_ahead_s) < 1


async def test_no_worker_answers(provisioned):
    """If no worker subscribes to the question, the reader does not wait for answers."""
    async with asyncio.timeout(TIMEOUT_S):
        assert {} == await gather_reports(provisioned, expected=3, timeout_s=2 * TIMEOUT_S)


async def test_user_who_may_not_ask(connect, topology):
    """If the NATS user may not ask the workers, the reader does not wait, and the snapshot says that none was asked."""
    user = '{user: u, password: p, permissions: {publish: {deny: "relay.report"}}}'
    async with NatsServer(extra_config=f"accounts {{A {{jetstream: enabled, users: [{user}]}}}}") as server:
        client = await connect(server.url, user="u", password="p")
        await provision(client, topology)
        assert not (await SnapshotReader(client).read()).may_ask_workers
