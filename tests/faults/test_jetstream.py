"""Faults of JetStream: deleted consumers, full, slow or failing disks, changed lane counts, wrong clocks."""

import asyncio
import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

import pytest
from cluster_kit import load
from dead_letter_kit import change_stream
from load_kit import steadily_published
from oracle import oracle
from relay_kit import ACKED, DUPLICATE, PROBE, STATUSES, TERMED, Scene, new_job, running, update

from relay.contract.environment import load_settings
from relay.contract.errors import JetStreamError, PublishUnconfirmed, UnsafeChange
from relay.contract.subjects import (
    FLOOR_HEADER,
    LEASE_SUBJECTS,
    STATUS_STREAM,
    Reason,
    api_consumer_delete,
    api_consumer_info,
    lane_consumer,
    lane_key,
    lane_of,
    status_subject,
)
from relay.core.floors import Floors
from relay.local.facilitator import FacilitatorSimulator
from relay.local.faults import refuse, stall
from relay.local.server import NatsServer
from relay.nats.jetstream import api_request, publish_confirmed
from relay.path.backlog import Backlog
from relay.service.app import Relay
from relay.service.intervals import DEFAULTS
from relay.topology.lane_growth import WAITS_KEY
from relay.topology.provision import provision, resume_lanes, topology_of

STREAM_FULL = {10077}
STORE_FULL = {10023, 10047}
"""The err_codes that a producer gets when the whole store is full; they depend on the server's version."""
STANDSTILL_S = 1.5
SLOW_ROUNDS = 20
HOURS_S = 2 * 3600


@contextlib.asynccontextmanager
async def scene_with(jetstream: str = "", **variables: str) -> AsyncIterator[Scene]:
    """A scene whose server has these settings in its `jetstream` block."""
    block = f'jetstream: {{store_dir: "store"{jetstream}}}'
    async with (
        NatsServer(jetstream=False, extra_config=block) as server,
        FacilitatorSimulator(service_time_s=0.001) as facilitator,
        Scene(server, facilitator, **{"ACK_WAIT": "1"} | variables) as scene,
    ):
        yield scene


async def stored(scene, count):
    """Wait until the Facilitator has stored this many updates."""
    await scene.facilitator.wait_for(lambda facilitator: len(facilitator.rows) >= count, 20)


# Consumers.


@pytest.mark.parametrize("lanes", [1, 4])
async def test_consumers_deleted_under_load(monkeypatch, lanes):
    """Consumers that are deleted and provisioned again, before their floor is known, deliver everything again: relayed
    updates are duplicates, dead-lettered ones are not dead-lettered again, and the others keep their place.
    """
    monkeypatch.setattr(Floors, "header", lambda *_: None)
    async with scene_with() as scene, scene.relay():
        failed = [await scene.publish_body(new_job(lane), b"bad", dead_letter=Reason.INVALID_JSON) for lane in range(4)]
        relayed = [await scene.publish(new_job(lane)) for lane in range(4)]
        assert [TERMED] * 4 + [ACKED] * 4 == await scene.settled(*failed, *relayed)
        async with steadily_published(scene, backlog=100):
            await stored(scene, 100)
            for lane in range(lanes):
                await api_request(scene.nc, api_consumer_delete(STATUS_STREAM, lane_consumer(lane)))
            await scene.provision()
            await scene.facilitator.wait_for(lambda facilitator: facilitator.replies[DUPLICATE] > 0)
        broken = await scene.broken_promises(20)
    assert [] == broken
    assert set(scene.facilitator.replies) == {"success", DUPLICATE, PROBE}


async def test_consumer_deleted_with_a_floor(after):
    """A consumer that is deleted while a relay runs is made anew after what was settled: no flood of repeats, and what
    was published meanwhile is relayed.
    """
    looked = after(Backlog, "_look")
    async with scene_with(LEASE_TTL="1.5") as scene, scene.relay(intervals=replace(DEFAULTS, backlog_look_s=0.1)):
        job = new_job(0)
        earlier = [await scene.publish(new_job(0)) for _ in range(200)]
        await scene.settled(*earlier)
        looks = iter(range(3))
        await looked(lambda: next(looks, None) is None)
        leases = await scene.nc.subscribe(LEASE_SUBJECTS.replace(">", lane_key(0)))
        floor = str(earlier[-1].sequence)
        while (await leases.next_msg(timeout=5)).headers.get(FLOOR_HEADER, "").split()[:1] != [floor]:
            pass  # an older renewal
        await api_request(scene.nc, api_consumer_delete(STATUS_STREAM, lane_consumer(0)))
        later = [await scene.publish(job, status) for status in STATUSES]
        await scene.provision()
        assert [ACKED] * len(later) == await scene.settled(*later)
        broken = await scene.broken_promises(20)
    assert [] == broken
    assert 0 == scene.facilitator.replies[DUPLICATE]


# Full and slow.


async def publish_what_fits(scene: Scene, wanted: Iterable[tuple[str, str]]) -> tuple[list[tuple[str, str]], set[int]]:
    """Publish updates (job, status) while the job's earlier ones are stored; returns the rest, and the err_codes."""
    rest: list[tuple[str, str]] = []
    codes: set[int] = set()
    for job, status in wanted:
        if job in dict(rest):
            rest.append((job, status))
            continue
        try:
            await scene.publish(job, status, {})
        except JetStreamError as error:
            rest.append((job, status))
            codes.add(error.err_code)
    return rest, codes


async def test_status_stream_full():
    """When the status stream is full, the producer gets an error: acknowledged updates are relayed, and refused ones
    can be published when there is room again.
    """
    wanted = [(job, status) for job in [new_job() for _ in range(20)] for status in STATUSES]
    async with scene_with() as scene, scene.relay():
        await change_stream(scene.nc, STATUS_STREAM, max_msgs=100)
        refused, codes = await publish_what_fits(scene, wanted)
        broken_while_full = await scene.broken_promises()
        await change_stream(scene.nc, STATUS_STREAM, max_msgs=-1)
        refused_again, _ = await publish_what_fits(scene, refused)
        broken = await scene.broken_promises()
    assert (wanted[100:], STREAM_FULL, []) == (refused, codes, refused_again)
    assert ([], []) == (broken_while_full, broken)


async def fill_up(scene: Scene) -> None:
    """Fill the server's store to the last byte, with messages that do not concern the relay."""
    await api_request(scene.nc, "$JS.API.STREAM.CREATE.FILLER", {"name": "FILLER", "subjects": ["filler"]})
    for size in (900_000, 30_000, 1_000, 1):
        with contextlib.suppress(JetStreamError):
            while True:
                await publish_confirmed(scene.nc, "filler", b"x" * size)


async def test_store_full(capsys):
    """While the server's store is full, producers get errors. Leases cannot be renewed, so the relay stops and logs
    why. When there is room again it goes on, and nothing was lost or dead-lettered.
    """
    async with scene_with(", max_file_store: 8MB", LEASE_TTL="0.5") as scene, scene.relay():
        with scene.facilitator.inject(stall()):
            await scene.publish_lives(20)
            refused: list[tuple[str, str]] = []
            while not refused:  # expired messages leave gaps meanwhile
                await fill_up(scene)
                refused, codes = await publish_what_fits(scene, [(new_job(), "accepted")])
            await asyncio.sleep(STANDSTILL_S)  # the duration of the fault; there is no event to wait for
        await api_request(scene.nc, "$JS.API.STREAM.DELETE.FILLER")
        refused_again, _ = await publish_what_fits(scene, refused)
        broken = await scene.broken_promises(20)
    assert codes <= STORE_FULL
    assert [] == refused_again
    assert [] == broken
    assert "the lanes cannot be shared out" in capsys.readouterr().out


async def test_every_write_waits_for_the_disk():
    """If each write is synced to the disk before its acknowledgement (`sync_interval: always`), all is relayed once."""
    async with scene_with(", sync_interval: always") as scene, scene.relay():
        await scene.publish_lives(50)
        broken = await scene.broken_promises(20)
    assert [] == broken
    assert {"success": 300, PROBE: 1} == dict(scene.facilitator.replies)


async def test_server_stands_still():
    """If the server hangs for longer than a lease and `ack_wait`, as with a hanging disk, no update is lost."""
    async with scene_with(LEASE_TTL="1") as scene, scene.relay():
        async with steadily_published(scene, backlog=100):
            await stored(scene, 100)
            os.kill(scene.server.pid, signal.SIGSTOP)
            await asyncio.sleep(STANDSTILL_S)  # the duration of the fault; there is no event to wait for
            os.kill(scene.server.pid, signal.SIGCONT)
            await stored(scene, len(scene.facilitator.rows) + 200)
        broken = await scene.broken_promises(20)
    assert [] == broken


async def test_slow_server():
    """If the server only works for moments, as with a slow disk, no update is lost, and none is sent twice."""
    async with scene_with(ACK_WAIT="0.1") as scene, scene.relay():
        async with steadily_published(scene, backlog=100):
            await stored(scene, 100)
            for _ in range(SLOW_ROUNDS):
                for signal_, lasting_s in ((signal.SIGSTOP, 0.09), (signal.SIGCONT, 0.01)):
                    os.kill(scene.server.pid, signal_)
                    await asyncio.sleep(lasting_s)  # the duration of a phase; there is no event to wait for
            await stored(scene, len(scene.facilitator.rows) + 200)
        broken = await scene.broken_promises(20)
    assert [] == broken
    assert {"success": len(scene.published), PROBE: 1} == dict(scene.facilitator.replies)


def let_writes_fail(server: NatsServer, longest_bytes: int) -> None:
    """Let the server fail to write what would make a file longer than this, until it is restarted (Linux only)."""
    _, most = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (longest_bytes, most))


async def until_unconfirmed(scene: Scene, job: str) -> None:
    """Publish the first update of a job again and again until one gets no PubAck."""
    with contextlib.suppress(PublishUnconfirmed):
        while True:
            await publish_confirmed(scene.nc, status_subject(job), update(job, "received"), timeout_s=1)


@pytest.mark.parametrize("longest_bytes", [0, 60_000], ids=["everything", "the status stream"])
async def test_disk_fails(longest_bytes):
    """When JetStream's writes fail, producers get no PubAck. After a restart of nats-server with a good disk all goes
    on, and no acknowledged update is lost.

    What JetStream delivered and then lost is published again. Nothing in the stream explains that the Facilitator has
    it, so such an update may become a dead letter although it is stored.
    """
    job = new_job()
    async with scene_with(LEASE_TTL="1") as scene, scene.relay():
        async with load(scene):
            let_writes_fail(scene.server, longest_bytes)
            await until_unconfirmed(scene, job)
            await scene.server.restart()
            await scene.reconnected()
            await scene.publish(job, "received")
        await scene.dust_settled(20)
        letters = [letter for letter in await scene.dead_letters() if letter.reason != Reason.UNEXPLAINED_DUPLICATE]
    assert [] == oracle(scene.published, scene.facilitator.rows, letters)


# Lanes.


async def relay_says(scene: Scene, words: str, **variables: str) -> str:
    """Start `relay serve`, wait until it logs these words, and stop it; returns its last line of log."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "relay", "serve"),
        env={"PATH": os.environ["PATH"]} | scene.environment | variables,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(20):
            while words not in (line := (await process.stderr.readline()).decode()):
                assert line, "it ended without a word of that"
    finally:
        process.send_signal(signal.SIGTERM)
        await process.communicate()
    return line


async def test_lanes_changed():
    """The number of lanes cannot be changed while updates are unsettled. After a change, jobs go on in order in their
    new lanes, and a relay with the old number logs what is wrong and relays nothing.
    """
    jobs = [new_job() for _ in range(40)]
    async with scene_with(LANES="4") as scene:
        more = topology_of(load_settings(scene.environment | {"RELAY_LANES": "6"}, None).delivery)
        async with scene.relay():
            with scene.facilitator.inject(stall()):
                early = [await scene.publish(job, "received") for job in jobs]
                with pytest.raises(UnsafeChange, match=r"lanes 4 -> 6 while \d+ updates are not settled"):
                    await provision(scene.nc, more)
            assert [ACKED] * 40 == await scene.settled(*early)
            await scene.dust_settled()
        await provision(scene.nc, more)
        late = [await scene.publish(job, "completed", {}) for job in jobs]
        said = await relay_says(scene, "not provisioned")
        rows = len(scene.facilitator.rows)
        scene.environment["RELAY_LANES"] = "6"
        async with scene.relay():
            broken = await scene.broken_promises(20)
    assert "lanes 6 -> 4" in said
    assert (len(early), len(early) + len(late)) == (rows, len(scene.facilitator.rows))
    assert [] == broken


async def test_lanes_raised_with_a_backlog():
    """Twice as many lanes while updates wait and more come in: the new lanes wait for the old ones, until a relay that
    provisions resumes them; each job's updates arrive in order, and nothing is lost.
    """
    jobs = [new_job() for _ in range(40)]
    async with scene_with(LANES="2") as scene, contextlib.AsyncExitStack() as relays:
        await scene.publish_lives(50)
        async with steadily_published(scene, backlog=400):
            for job in jobs:
                await scene.publish(job, "received")
            scene.environment["RELAY_LANES"] = "4"
            await scene.provision()
            assert 2 == len(await resume_lanes(scene.nc))
            later = [await scene.publish(job, "accepted") for job in jobs]
            await relays.enter_async_context(running(Relay(scene.settings, None, provision_first=True)))
            assert [ACKED] * len(later) == await scene.settled(*later, timeout_s=30)
        broken = await scene.broken_promises(20)
        info = await api_request(scene.nc, api_consumer_info(STATUS_STREAM, lane_consumer(3)))
    assert [] == broken
    assert (False, None) == (info.get("paused", False), info["config"]["metadata"].get(WAITS_KEY))


async def test_lanes_changed_under_a_relay():
    """If the number of lanes is raised while a relay runs, it relays its own lanes in order, and the others wait for
    a relay with the new number.
    """
    jobs = [new_job() for _ in range(40)]
    async with scene_with(LANES="4") as scene:
        async with scene.relay():
            await scene.settled(*[await scene.publish(job, "received") for job in jobs])
            await scene.dust_settled()
            scene.environment["RELAY_LANES"] = "8"
            await scene.provision()
            late = [update for job in jobs for update in await scene.publish_life(job, STATUSES[1:])]
            await scene.settled(*(update for update in late if lane_of(update.job, 8) < 4))
            waiting = await scene.unsettled()
        async with scene.relay():
            broken = await scene.broken_promises(20)
    assert len([update for update in late if lane_of(update.job, 8) >= 4]) == waiting
    assert [] == broken


# Clocks.


class WallClock:
    """`time.time` of a machine whose clock is changed."""

    def __init__(self) -> None:
        self.wrong_by_s = 0
        self._right = time.time

    def __call__(self) -> float:
        return self._right() + self.wrong_by_s


@pytest.mark.parametrize("first_s", [HOURS_S, -HOURS_S], ids=["back", "forward"])
async def test_wall_clock_is_set(monkeypatch, capsys, first_s):
    """If the wall clock is wrong by hours and is set twice under load, no lane is lost, and the order is kept."""
    monkeypatch.setattr(time, "time", clock := WallClock())
    clock.wrong_by_s = first_s
    async with scene_with(LEASE_TTL="2", MAX_ATTEMPTS="100") as scene, scene.relay():
        async with steadily_published(scene, backlog=100):
            for wrong_by_s in (-first_s, 0):
                await publish_bad_ones(scene)
                clock.wrong_by_s = wrong_by_s
                await publish_bad_ones(scene)
        broken = await scene.broken_promises(20)
    assert [] == broken
    assert "lane lost" not in capsys.readouterr().out


async def publish_bad_ones(scene: Scene) -> None:
    """One update that must be dead-lettered, and ten that are accepted only at a retry, among 100 good ones."""
    with scene.facilitator.inject(refuse("job.not_found"), nth=20, times=10):
        await scene.publish_body(new_job(), b"bad", dead_letter=Reason.INVALID_JSON)
        await stored(scene, len(scene.facilitator.rows) + 100)
