"""Which worker drives which lane: the lease bucket of a real server, and workers that share the lanes with it."""

import asyncio
import contextlib
import dataclasses
import math
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from unittest.mock import AsyncMock

import pytest
from load_kit import steadily_published
from polling import until
from relay_kit import ACKED, Scene, new_job
from tcp_proxy import TcpProxy

from relay.contract.errors import BrokerUnavailable, JetStreamError
from relay.contract.subjects import FLOOR_HEADER, LEASE_STREAM, LEASE_SUBJECTS
from relay.leases.leases import Leases
from relay.leases.ownership import Ownership
from relay.local.facilitator import FacilitatorSimulator
from relay.local.faults import DROP_BEFORE_STORING
from relay.local.server import NatsServer
from relay.nats.jetstream import api_request, publish_confirmed
from relay.observability.metrics import Metrics
from relay.topology.provision import Topology, provision

LANES = 4
LONG_S = 60.0
"""A time to live that is never reached in a test, so that what happens has another cause."""
SHORT_S = 1.0
PROMPT_S = 5.0
"""Much less than a third of LONG_S, after which a worker looks at the bucket anyway."""


@pytest.fixture
def topology():
    return Topology(lanes=LANES, replicas=1, ack_wait_s=5, max_deliver=50, lease_ttl_s=LONG_S)


@pytest.fixture
def worker(provisioned, nats_server, connect):  # noqa: ARG001 - the bucket must exist
    """`await worker("a")`: the leases of worker `a`, over a connection of its own."""

    async def worker(name: str, ttl_s: float = LONG_S) -> Leases:
        return Leases(await connect(nats_server.url), name, ttl_s)

    return worker


async def owner_of(leases, lane=0):
    return (await leases.read()).owners.get(lane)


# The bucket.


async def test_two_rivals(worker):
    """If two workers both see a free lane, exactly one gets it."""
    a, b = await worker("a"), await worker("b")
    for lane in range(20):
        views = await asyncio.gather(a.read(), b.read())
        won = await asyncio.gather(a.acquire(lane, views[0]), b.acquire(lane, views[1]))
        assert [await owner_of(a, lane)] == [name for name, lease in zip("ab", won, strict=True) if lease is not None]


async def test_keys_of_others(worker, provisioned):
    """Keys that no relay has written are read and left alone."""
    for key in ("lane.x", "lane", "other"):
        await publish_confirmed(provisioned, f"$KV.RELAY_LEASES.{key}", b"somebody", {FLOOR_HEADER: "1"})
    table = await (await worker("a")).read()
    assert ({}, {}, frozenset()) == (table.owners, table.floors, table.workers)


async def test_taken_lane(worker):
    """A lane that is driven cannot be taken, even by a worker that saw it free earlier."""
    a, b = await worker("a"), await worker("b")
    free = await b.read()
    await a.acquire(0, free)
    assert None is await b.acquire(0, free)
    assert "a" == await owner_of(b)


async def test_renew(worker, nats_server):
    """A renewal replaces the revision before it. The lease counts from when it was sent, however late it is stored."""
    a = await worker("a")
    lease = await a.acquire(0, await a.read())
    before_s = time.monotonic()
    os.kill(nats_server.pid, signal.SIGSTOP)
    renewing = asyncio.create_task(a.renew(lease))
    await asyncio.sleep(0)  # the renewal starts
    stored_after_s = time.monotonic()
    os.kill(nats_server.pid, signal.SIGCONT)
    renewed = await renewing
    assert (0, lease.revision + 1) == (renewed.lane, renewed.revision)
    assert before_s <= renewed.good_until_s - LONG_S <= stored_after_s


async def test_lost_lease(worker):
    """A lease that another worker has taken cannot be renewed, and the attempt does not change it."""
    a, b = await worker("a"), await worker("b")
    lost = await a.acquire(0, await a.read())
    await a.release(lost)
    theirs = await b.acquire(0, await b.read())
    assert None is await a.renew(lost)
    assert theirs.revision + 1 == (await b.renew(theirs)).revision


async def test_vanished_lease(worker):
    """A renewal does not restore a lease that was released."""
    a = await worker("a")
    lease = await a.acquire(0, await a.read())
    await a.release(lease)
    assert None is await a.renew(lease)
    assert None is await owner_of(a)


async def test_unconfirmed_renewal(worker):
    """If a renewal was stored but its confirmation was lost, the next renewal succeeds."""
    a = await worker("a")
    lease = await a.acquire(0, await a.read())
    unseen = await a.renew(lease)
    adopted = await a.renew(lease)
    assert unseen.revision + 1 == adopted.revision
    assert adopted.revision + 1 == (await a.renew(adopted)).revision


async def test_release(worker):
    """A lane that was released can be taken at once."""
    a, b = await worker("a"), await worker("b")
    await a.release(await a.acquire(0, await a.read()))
    assert None is await owner_of(b)
    assert 0 == (await b.acquire(0, await b.read())).lane
    assert "b" == await owner_of(a)


async def test_release_of_a_lost_lease(worker):
    """To release a lease that was lost leaves the lane to its new owner."""
    a, b = await worker("a"), await worker("b")
    lost = await a.acquire(0, await a.read())
    await a.release(lost)
    theirs = await b.acquire(0, await b.read())
    await a.release(lost)
    assert "b" == await owner_of(a)
    assert theirs.revision + 1 == (await b.renew(theirs)).revision


async def test_workers(worker):
    """A worker is listed from its announcement until it leaves."""
    a, b = await worker("a"), await worker("b")
    await a.announce()
    await b.announce()
    assert {"a", "b"} == (await a.read()).workers
    await b.depart()
    assert {"a"} == (await a.read()).workers


async def changed_twice(leases):
    """Wait until `changed` is set for a write, and once more, because it may have been heard before it was stored."""
    for _ in range(2):
        await asyncio.wait_for(leases.changed.wait(), PROMPT_S)
        leases.changed.clear()


async def test_changed_by_news(worker):
    """`changed` is set when a worker comes or leaves, and when a lane is taken or released."""
    a, b = await worker("a"), await worker("b")
    await a.watch()
    await a.read()
    for change in (b.announce, b.depart):
        await change()
        await changed_twice(a)
    lease = await b.acquire(0, await b.read())
    await changed_twice(a)
    await b.release(lease)
    await changed_twice(a)


async def test_changed_by_the_first_delete(worker):
    """`changed` is set by the release of a lane also for a worker that started after the lane was taken."""
    a, b = await worker("a"), await worker("b")
    lease = await b.acquire(0, await b.read())
    await a.watch()
    await a.read()
    a.changed.clear()
    await b.release(lease)
    await asyncio.wait_for(a.changed.wait(), PROMPT_S)
    assert None is await owner_of(a)


async def test_not_changed_by_renewals(nats_server, connect, worker):
    """Renewals and repeated announcements do not set `changed`."""
    nc = await connect(nats_server.url)
    a, b = Leases(nc, "a", LONG_S), await worker("b")
    await a.watch()
    await nc.flush()
    lease = await b.acquire(0, await b.read())
    await b.announce()
    await nc.flush()
    await changed_twice(a)
    for _ in range(3):
        lease = await b.renew(lease)
        await b.announce()
        await a.read()
    await nc.flush()  # returns after the client has received what the server sent before
    assert not a.changed.is_set()


# Workers that share.


class Board:
    """What each driver reports to drive. Two drivers for one lane at a time is a collision, which must not happen."""

    def __init__(self) -> None:
        self.drivers: dict[int, str] = {}
        self.collisions: list[tuple[int, str, str]] = []
        self.moves: list[tuple[str, int, str, float]] = []
        self._moved = asyncio.Event()

    def begins(self, lane: int, name: str) -> None:
        if lane in self.drivers:
            self.collisions.append((lane, self.drivers[lane], name))
        self.drivers[lane] = name
        self._note("begins", lane, name)

    def ends(self, lane: int, name: str) -> None:
        if self.drivers.get(lane) == name:
            del self.drivers[lane]
        self._note("ends", lane, name)

    def shares(self) -> dict[str, int]:
        names = list(self.drivers.values())
        return {name: names.count(name) for name in names}

    def begun(self) -> list[str]:
        """The workers that began to drive a lane, in order."""
        return [name for what, _, name, _ in self.moves if what == "begins"]

    async def until(self, shares: dict[str, int], timeout_s: float = PROMPT_S) -> None:
        """Wait until each worker drives this many lanes."""
        await self.so(lambda: self.shares() == shares, timeout_s)

    async def so(self, condition: Callable[[], bool], timeout_s: float = PROMPT_S) -> None:
        """Wait until `condition()` holds."""
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            raise TimeoutError(f"{self.shares()} after {timeout_s} s: {self.moves}") from None

    def _note(self, what: str, lane: int, name: str) -> None:
        self.moves.append((what, lane, name, time.monotonic()))
        self._moved.set()


@dataclasses.dataclass
class Driver:
    """Reports on the board that worker `name` drives its lanes; finishes draining when `drained` is set."""

    name: str
    board: Board
    drained: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    good_until_s: dict[int, float] = dataclasses.field(default_factory=dict)

    async def drive(self, number: int, ours_until_s: float, leaving: asyncio.Event) -> None:
        self.good_until_s[number] = ours_until_s
        self.board.begins(number, self.name)
        try:
            await leaving.wait()
            await self.drained.wait()
        finally:
            self.board.ends(number, self.name)

    def extend(self, number: int, ours_until_s: float) -> None:
        self.good_until_s[number] = ours_until_s


class Crew:
    """Workers that share the lanes of one server."""

    def __init__(self, worker) -> None:
        self.board = Board()
        self.known: dict[str, Leases] = {}
        """Leases that were made before their workers started."""
        self.drivers: dict[str, Driver] = {}
        self.owners: dict[str, Ownership] = {}
        self._worker = worker
        self._running: dict[str, tuple[asyncio.Task[None], asyncio.Event]] = {}

    async def join(self, name: str, ttl_s: float = LONG_S, drain_s: float = LONG_S, **options: float) -> None:
        driver = self.drivers[name] = Driver(name, self.board)
        driver.drained.set()
        stop = asyncio.Event()
        leases = self.known.get(name) or await self._worker(name, ttl_s)
        owner = Ownership(leases, LANES, lambda _lane: driver, drain_s=drain_s, metrics=Metrics(LANES), **options)
        self.owners[name] = owner
        self._running[name] = asyncio.create_task(owner.run(stop)), stop

    async def leave(self, name: str) -> None:
        running, stop = self._running.pop(name)
        stop.set()
        await running

    async def die(self, name: str) -> None:
        """Stop everything at once, as a crash does: nothing is released."""
        running, _ = self._running.pop(name)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    async def disband(self) -> None:
        for name in list(self._running):
            await self.die(name)


@pytest.fixture
async def crew(worker):
    crew = Crew(worker)
    yield crew
    await crew.disband()
    assert [] == crew.board.collisions


async def test_one_worker(crew):
    """A single worker drives every lane."""
    await crew.join("a")
    await crew.board.until({"a": 4})
    assert [0, 1, 2, 3] == crew.owners["a"].lanes


async def test_join(crew):
    """Workers that join get their fair share at once, and no other lane moves."""
    await crew.join("a")
    await crew.board.until({"a": 4})
    await crew.join("b")
    await crew.board.until({"a": 2, "b": 2})
    await crew.join("c")
    await crew.board.so(lambda: sorted(crew.board.shares().values()) == [1, 1, 2])
    assert ["a"] * 4 + ["b"] * 2 + ["c"] == crew.board.begun()


async def test_together(crew):
    """Workers that start at the same moment reach fair shares."""
    await asyncio.gather(*(crew.join(name) for name in "abc"))
    await crew.board.so(lambda: sorted(crew.board.shares().values()) == [1, 1, 2])


async def test_leave(crew):
    """The lanes of a worker that leaves are driven by the others at once."""
    for name, shares in (("a", {"a": 4}), ("b", {"a": 2, "b": 2})):
        await crew.join(name)
        await crew.board.until(shares)
    await crew.leave("b")
    await crew.board.until({"a": 4})
    await crew.leave("a")
    await crew.board.until({})


async def test_drained_first(crew):
    """A lane is kept until it is drained, and only then gets a new owner."""
    await crew.join("a")
    await crew.board.until({"a": 4})
    crew.drivers["a"].drained.clear()
    await crew.join("b")
    leases = await crew._worker("onlooker")
    await leases.watch()
    while "b" not in (await leases.read()).workers:
        await leases.changed.wait()
    assert {"a": 4} == crew.board.shares()
    crew.drivers["a"].drained.set()
    await crew.board.until({"a": 2, "b": 2})


async def test_drain_takes_too_long(crew):
    """A lane that is not drained in time is released anyway."""
    await crew.join("a", drain_s=0.1)
    await crew.board.until({"a": 4})
    crew.drivers["a"].drained.clear()
    await crew.leave("a")
    assert {} == crew.board.shares()
    await crew.join("b")
    await crew.board.until({"b": 4})


async def test_nobody_answers(worker, crew, monkeypatch):
    """If no answer about the leases comes for long, another server of the cluster is tried; a refusal is an answer."""
    silent, refusing = await worker("silent", SHORT_S / 4), await worker("refusing", SHORT_S / 4)
    tried: asyncio.Queue[str] = asyncio.Queue()
    failures = {silent: BrokerUnavailable([], "no answer"), refusing: JetStreamError("publish", 503, 10077, "full")}
    for leases, failure in failures.items():
        monkeypatch.setattr(leases, "read", AsyncMock(side_effect=failure))
        monkeypatch.setattr(leases, "try_elsewhere", AsyncMock(side_effect=partial(tried.put_nowait, leases.worker)))
    crew.known |= {leases.worker: leases for leases in failures}
    await crew.join("refusing", SHORT_S / 4, election_s=0.0)
    await crew.join("silent", SHORT_S / 4, election_s=0.0)
    assert ["silent", "silent"] == [await tried.get(), await tried.get()]


class TestShortLeases:
    """What happens when leases expire."""

    @pytest.fixture
    def topology(self):
        return Topology(lanes=LANES, replicas=1, ack_wait_s=5, max_deliver=50, lease_ttl_s=SHORT_S)

    async def test_crash(self, crew):
        """The lanes of a worker that died are driven by another, which names it, but only after its leases expired."""
        await crew.join("a", SHORT_S)
        await crew.board.until({"a": 4})
        await crew.join("b", SHORT_S)
        await crew.board.until({"a": 2, "b": 2})
        await crew.die("a")
        await crew.board.until({"b": 4}, 3 * SHORT_S)
        for _, lane, _, began_s in crew.board.moves[-2:]:
            assert crew.drivers["a"].good_until_s[lane] <= began_s
        assert "a" == crew.owners["b"].lost_owner.worker

    async def test_held_while_draining(self, crew, nc):
        """A worker that leaves keeps its lanes until they are drained, and takes no lanes again."""
        heard = asyncio.Queue()
        await nc.subscribe(LEASE_SUBJECTS, cb=heard.put)
        await crew.join("a", SHORT_S)
        await crew.join("b", SHORT_S)
        await crew.board.until({"a": 2, "b": 2})
        crew.drivers["a"].drained.clear()
        leaving = asyncio.create_task(crew.leave("a"))
        async with asyncio.timeout(PROMPT_S):
            while (word := await heard.get()).subject.rpartition(".")[2] != "a" or word.data:
                pass  # until it has left
            lane = next(lane for lane, name in crew.board.drivers.items() if name == "a")
            after = []
            while [message.subject.rpartition(".")[2] for message in after].count(str(lane)) < 4:
                after.append(await heard.get())
        assert {"a": 2, "b": 2} == crew.board.shares()
        crew.drivers["a"].drained.set()
        await leaving
        await crew.board.until({"b": 4})
        assert [] == [message.data for message in after if message.subject.endswith("worker.a")]

    async def test_other_hand(self, crew, nc):
        """A worker stops driving a lane that another worker has taken."""
        await crew.join("a", SHORT_S)
        await crew.board.until({"a": 4})
        await publish_confirmed(nc, LEASE_SUBJECTS.replace(">", "lane.2"), b"somebody", {})
        await crew.board.until({"a": 3})
        await crew.board.until({"a": 4})  # one of them does not renew

    async def test_bucket_deleted(self, crew, nc, topology):
        """If the bucket is deleted, lanes are dropped when their leases expire, and taken again when it is back."""
        await crew.join("a", SHORT_S)
        await crew.join("b", SHORT_S)
        await crew.board.until({"a": 2, "b": 2})
        await api_request(nc, f"$JS.API.STREAM.DELETE.{LEASE_STREAM}")
        await crew.board.until({}, 3 * SHORT_S)
        assert all("10059" in str(owner.trouble) for owner in crew.owners.values())
        await provision(nc, topology)
        await crew.board.until({"a": 2, "b": 2})
        # The board shows a taken lane slightly before its owner has finished.
        await until(lambda: not any(owner.trouble for owner in crew.owners.values()))

    async def test_bucket_made_anew(self, crew, nc, topology):
        """If the bucket is suddenly empty, the workers reach fair shares again."""
        await crew.join("a", SHORT_S)
        await crew.join("b", SHORT_S)
        await crew.board.until({"a": 2, "b": 2})
        await api_request(nc, f"$JS.API.STREAM.DELETE.{LEASE_STREAM}")
        await provision(nc, topology)
        before = len(crew.board.begun())
        await crew.board.so(
            lambda: len(crew.board.begun()) >= before + LANES and crew.board.shares() == {"a": 2, "b": 2}
        )
        crew.board.collisions.clear()  # without the bucket's entries, collisions cannot be prevented


# Leases and sending.


async def test_cut_off():
    """A worker that cannot renew, but still reaches the Facilitator, sends nothing after its lease has expired."""
    ttl_s = 2.0
    async with (
        NatsServer() as server,
        TcpProxy(server.port).serving() as proxy,
        FacilitatorSimulator(service_time_s=0.01) as facilitator,
        Scene(server, facilitator, LANES="1", LEASE_TTL=f"{ttl_s}", ACK_WAIT="1", FACILITATOR_WINDOW="1") as scene,
        scene.relay(NATS_URL=proxy.url),
        contextlib.AsyncExitStack() as rivals,
    ):
        renewed_s = []
        await scene.nc.subscribe(LEASE_SUBJECTS.replace(">", "lane.0"), cb=_times_in(renewed_s))
        async with steadily_published(scene, backlog=200):
            await facilitator.wait_for(lambda facilitator: len(facilitator.rows) >= 50)
            proxy.freeze()
            frozen_s = time.monotonic()
            await rivals.enter_async_context(scene.relay())
            await scene.owned(lambda: len(scene.takings) == 2)
            await facilitator.wait_for(lambda facilitator: facilitator.rows[-1].connection == 2)
            of_first = [row.arrived_s for row in facilitator.rows if row.connection == 1]
        for connection in proxy._connections:
            connection.cancel()  # so that the first one reconnects and takes lanes again
        broken = await scene.broken_promises(20)
    second = scene.takings[1]
    good_until_s = max(heard_s for heard_s in renewed_s if heard_s < second.heard_s) + ttl_s
    *earlier, last = sorted(of_first)
    assert frozen_s + ttl_s / 2 < max(earlier) < good_until_s  # it sent as long as it was allowed to
    assert last < second.heard_s  # with a window of 1, one may be on its way when the lease ends
    assert good_until_s < second.heard_s
    assert broken == []


async def test_suspect_of_a_lane_given_up():
    """A worker that has released a lane does not retry an update of it that may have dropped the connection."""
    async with (
        NatsServer() as server,
        FacilitatorSimulator() as facilitator,
        Scene(server, facilitator, LANES="2", LEASE_TTL="30", ACK_WAIT="30") as scene,
        scene.relay() as relay,
        contextlib.AsyncExitStack() as rivals,
    ):
        await scene.settled(await scene.publish(new_job(0, 2)), await scene.publish(new_job(1, 2)))
        await facilitator.away()
        suspect = new_job(1, 2)
        facilitator.inject(DROP_BEFORE_STORING, uuid=suspect)
        await scene.publish(suspect)
        await facilitator.wait_for(lambda facilitator: facilitator.connections == 0)
        rival = await rivals.enter_async_context(scene.relay())
        await scene.owned(lambda: len({taking.worker for taking in scene.owners.values()}) == 2)
        await facilitator.back()
        await scene.settled(await scene.publish(new_job(0, 2)), await scene.publish(new_job(0, 2)))
        assert ([0], [1]) == (relay._ownership.lanes, rival._ownership.lanes)
        assert [] == facilitator.rows_of(suspect)


async def test_late_renewal():
    """A lane whose lease was over for a moment, because the renewal came late, goes on without any other event."""
    async with (
        NatsServer() as server,
        FacilitatorSimulator() as facilitator,
        Scene(server, facilitator, LANES="1", LEASE_TTL="3") as scene,
        scene.relay() as relay,
    ):
        await scene.settled(await scene.publish(new_job(0, 1)))
        (lane,) = relay._lines[0].lanes.turns.lanes
        lane.ours_until_s = -math.inf
        late = await scene.publish(new_job(0, 1))
        assert [ACKED] == await scene.settled(late)


async def test_bucket_made_anew_under_load():
    """When the lease bucket is deleted and provisioned again under load, updates are neither lost nor reordered."""
    async with (
        NatsServer() as server,
        FacilitatorSimulator(service_time_s=0.002) as facilitator,
        Scene(server, facilitator, LANES="4", LEASE_TTL="1", ACK_WAIT="1") as scene,
        scene.relay(),
        scene.relay(),
    ):
        await scene.owned(lambda: len({taking.worker for taking in scene.owners.values()}) == 2)
        async with steadily_published(scene, backlog=100):
            for _ in range(2):
                await api_request(scene.nc, f"$JS.API.STREAM.DELETE.{LEASE_STREAM}")
                await scene.provision()
                await _all_lanes_held(scene)
        broken = await scene.broken_promises(20)
    assert broken == []


async def _all_lanes_held(scene):
    """Wait until the current bucket holds a lease on every lane."""
    leases = Leases(scene.nc, "watcher", 10)
    await leases.watch()
    while len((await leases.read()).owners) < LANES:
        await leases.changed.wait()
        leases.changed.clear()


def _times_in(times):
    async def note(_message) -> None:
        times.append(time.monotonic())

    return note
