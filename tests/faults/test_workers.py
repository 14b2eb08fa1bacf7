"""Several workers share the lanes: they join, leave, die and are suspended, and the promise is kept."""

import asyncio
import contextlib
import random
import signal
import time

import pytest
from relay_kit import ACKED, DUPLICATE, PROBE, STATUSES, TERMED, Scene, new_job

from relay.contract.subjects import Reason, lane_of
from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer
from relay.overview.reports import gather_reports
from relay.path.dead_letter_worker import WRITERS

UPDATES = 3_600
"""How many updates the random test sends."""
CHANGES = 6
"""How often a worker joins, leaves or dies in the random test."""
LANES = 4
LONG_S = 60
"""A time to live of leases and an ack_wait that never expire during a test, however slow the machine is."""
PATIENCE_S = 40
"""The longest wait for an expected event. A loaded machine needs many seconds where an idle one needs one."""
CAUGHT_IN_THE_ACT = 1
"""How many updates a suspended worker may send when it wakes: it may be stopped between the check of its lease and
the system call that sends. Its successor has sent the same update by then, because it was the head of its job.
"""


class Crew:
    """Worker processes of one scene, in the order in which they joined."""

    def __init__(self, scene: Scene, stack: contextlib.AsyncExitStack) -> None:
        self.alive: list[asyncio.subprocess.Process] = []
        self.connections: dict[asyncio.subprocess.Process, int] = {}
        """The number of the first Facilitator connection that each made."""
        self._scene = scene
        self._stack = stack

    async def join(self) -> asyncio.subprocess.Process:
        worker = await self._stack.enter_async_context(self._scene.relay_process())
        self.alive.append(worker)
        self.connections[worker] = self._scene.facilitator.accepted
        return worker

    async def end(self, worker: asyncio.subprocess.Process, how: signal.Signals) -> int:
        """Send the signal and wait for the process to end; returns its exit status."""
        self.alive.remove(worker)
        worker.send_signal(how)
        return await worker.wait()

    async def shared_out(self) -> None:
        """Wait until the living workers share the lanes evenly."""

        def even() -> bool:
            counts = [len(self._scene.lanes_of(worker)) for worker in self.alive]
            return sum(counts) == LANES and max(counts) - min(counts) <= 1

        await self._scene.owned(even, PATIENCE_S)


@contextlib.asynccontextmanager
async def crew_of(count, *, lease_ttl_s=LONG_S, ack_wait_s=LONG_S, service_time_s=0.001, **variables):
    """A scene and its crew of `count` workers, which share the lanes evenly."""
    variables |= {"LEASE_TTL": f"{lease_ttl_s}", "ACK_WAIT": f"{ack_wait_s}", "LANES": f"{LANES}"}
    async with (
        NatsServer() as server,
        FacilitatorSimulator(service_time_s=service_time_s) as facilitator,
        Scene(server, facilitator, **variables) as scene,
        contextlib.AsyncExitStack() as stack,
    ):
        crew = Crew(scene, stack)
        await asyncio.gather(*(crew.join() for _ in range(count - 1)))
        await crew.join()
        await crew.shared_out()
        yield scene, crew


@contextlib.contextmanager
def asleep(worker):
    """Suspend the worker process during the block."""
    worker.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        worker.send_signal(signal.SIGCONT)


def trespasses(scene, heard, worker, connection):
    """The updates in `heard` that `worker` sent in a lane after another worker had taken it."""
    found = []
    for number, job, arrived_s in heard:
        if number == connection:
            lane = lane_of(job, LANES)
            before = [each for each in scene.takings if each.lane == lane and each.heard_s < arrived_s and each.worker]
            if before and before[-1].pid != worker.pid:
                found.append((job, lane, arrived_s - before[-1].heard_s))
    return found


def overhear(facilitator):
    """A list to which (connection, job, time) of every update is added when the Facilitator starts on it."""
    heard = []
    record = facilitator.ledger.record

    def overheard(update, connection, arrived_s, **options):
        heard.append((connection, update.job, arrived_s))
        return record(update, connection, arrived_s, **options)

    facilitator.ledger.record = overheard
    return heard


async def some_change(crew, rng):
    """Let one worker join, leave or die; one to three are alive at any time."""
    changes = []
    if len(crew.alive) < 3:
        changes.append("join")
    if len(crew.alive) > 1:
        changes += [signal.SIGTERM, signal.SIGKILL]
    change = rng.choice(changes)
    if change == "join":
        await crew.join()
    else:
        status = await crew.end(rng.choice(crew.alive), change)
        assert (0 if change == signal.SIGTERM else -signal.SIGKILL) == status


async def rows(scene, count):
    """Wait until the Facilitator has stored this many updates."""
    await scene.facilitator.wait_for(lambda facilitator: len(facilitator.rows) >= count, PATIENCE_S)


@pytest.mark.timeout(180)
async def test_come_and_go():
    """Workers that join, leave and die at random under load lose and reorder no update."""
    rng = random.Random(1)
    # A lane has a new owner before the dead one's updates come back, so the order is at risk.
    async with crew_of(2, lease_ttl_s=1, ack_wait_s=2) as (scene, crew):
        for _ in range(CHANGES):
            publishing = asyncio.create_task(scene.publish_lives(UPDATES // len(STATUSES) // CHANGES))
            await rows(scene, len(scene.facilitator.rows) + rng.randrange(UPDATES // CHANGES))
            await some_change(crew, rng)
            await publishing
        broken = await scene.broken_promises(PATIENCE_S)
        await crew.shared_out()
    assert broken == []
    assert set(scene.facilitator.replies) <= {"success", DUPLICATE, PROBE}


async def leave(crew):
    """Stop one of two workers; it exits with 0."""
    assert 0 == await crew.end(crew.alive[0], signal.SIGTERM)


async def join(crew):
    await crew.join()
    await crew.shared_out()


@pytest.mark.parametrize(("workers", "change"), [(2, leave), (1, join)])
async def test_planned_hand_over(workers, change):
    """When a worker stops or joins under load, lanes are handed over, and nothing is sent twice."""
    async with crew_of(workers) as (scene, crew):
        publishing = asyncio.create_task(scene.publish_lives(300))
        await rows(scene, 200)
        await change(crew)
        changed_at = len(scene.facilitator.rows)
        await publishing
        broken = await scene.broken_promises(PATIENCE_S)
        await crew.shared_out()
    assert changed_at < len(scene.published)  # otherwise no updates were sent after the change
    assert broken == []
    assert {"success": len(scene.published), PROBE: 2} == dict(scene.facilitator.replies)


@pytest.mark.timeout(120)
async def test_sleeper():
    """A worker that is suspended until its leases expire sends nothing of the lost lanes when it wakes, and takes lanes
    again; meanwhile the other worker drives all lanes, and reports from whom it took them.
    """
    async with crew_of(2, lease_ttl_s=1, ack_wait_s=1) as (scene, crew):
        heard = overhear(scene.facilitator)
        sleeper, other = crew.alive
        publishing = asyncio.create_task(scene.publish_lives(100))
        await rows(scene, 100)
        with asleep(sleeper):
            await scene.owned(lambda: len(scene.lanes_of(other)) == LANES, PATIENCE_S)
            (report,) = (await gather_reports(scene.nc, 1, PATIENCE_S)).values()
            await publishing
            await scene.publish_lives(20)
            await scene.dust_settled(PATIENCE_S)
            heard.clear()
        await scene.publish_lives(50)
        await crew.shared_out()
        await scene.publish_lives(20)
        broken = await scene.broken_promises(PATIENCE_S)
    assert broken == []
    assert {report.lost_owner.worker} == {taking.worker for taking in scene.takings if taking.pid == sleeper.pid}
    assert len(trespasses(scene, heard, sleeper, crew.connections[sleeper])) <= CAUGHT_IN_THE_ACT
    assert set(scene.facilitator.replies) <= {"success", DUPLICATE, PROBE}


@pytest.mark.timeout(120)
async def test_sleeper_in_mid_work():
    """A worker that wakes after its lease expired, with updates at hand, sends none of them."""
    async with crew_of(2, lease_ttl_s=1, ack_wait_s=1, service_time_s=0.002, FACILITATOR_WINDOW="1") as (scene, crew):
        heard = overhear(scene.facilitator)
        sleeper, other = crew.alive
        mine = sorted(scene.lanes_of(sleeper))
        updates = [await scene.publish(new_job(lane), "accepted", {}) for lane in mine for _ in range(100)]
        await rows(scene, 20)
        with asleep(sleeper):
            await scene.owned(lambda: len(scene.lanes_of(other)) == LANES, PATIENCE_S)
            heard.clear()
        await crew.shared_out()
        broken = await scene.broken_promises(PATIENCE_S)
    assert len(scene.facilitator.rows) == len(updates)
    assert broken == []
    assert len(trespasses(scene, heard, sleeper, crew.connections[sleeper])) <= CAUGHT_IN_THE_ACT


async def test_late_renewal(monkeypatch):
    """If a lease is renewed late, a bad update that waits to be dead-lettered is dead-lettered after the renewal, and
    its job's next update is sent.
    """
    async with (
        NatsServer() as server,
        FacilitatorSimulator() as facilitator,
        Scene(server, facilitator, LANES="1", LEASE_TTL="60", ACK_WAIT="1") as scene,
        scene.relay() as relay,
    ):
        lanes = relay._lines[0].lanes
        write, may_write = lanes._dead_letters.write, asyncio.Event()

        async def write_later(*arguments):
            await may_write.wait()
            await write(*arguments)

        monkeypatch.setattr(lanes._dead_letters, "write", write_later)
        *first, last = [
            await scene.publish_body(new_job(), b"bad", dead_letter=Reason.INVALID_JSON) for _ in range(WRITERS + 1)
        ]
        next_one = await scene.publish(last.job)
        await scene.kept(last)  # it is at hand, and all writers are busy
        lanes.extend(0, time.monotonic())
        may_write.set()
        assert [TERMED] * len(first) == await scene.settled(*first)
        lanes.extend(0, time.monotonic() + 60)
        assert [TERMED, ACKED] == await scene.settled(last, next_one)


@pytest.mark.timeout(120)
async def test_sleepers_keep_nothing():
    """A suspended worker is given no more updates: the lost lane's updates go to the new owner."""
    async with crew_of(1, lease_ttl_s=1) as (scene, crew):
        await scene.publish_lives(25)
        await scene.dust_settled(PATIENCE_S)
        sleeper = crew.alive[0]
        with asleep(sleeper):
            other = await crew.join()
            await scene.owned(lambda: len(scene.lanes_of(other)) == LANES, PATIENCE_S)
            await scene.publish_life(new_job())
            await scene.dust_settled(LONG_S / 2)  # updates given to the sleeper would come back after LONG_S
        broken = await scene.broken_promises(PATIENCE_S)
    assert broken == []
