"""What a parent says of its workers, over their private channels; the workers are made up, and in this process."""

import asyncio
import contextlib
import socket
from types import SimpleNamespace

import pytest

from relay.service import worker_probes as fleet
from relay.service.channel import METRICS, MISSING, NoAnswer, ProbeChannel, WorkerChannel
from relay.service.worker_probes import WorkerProbes

EXPOSITION = b"# HELP relay_x x\n# TYPE relay_x gauge\nrelay_x 1\n"
MERGED = '# HELP relay_x x\n# TYPE relay_x gauge\nrelay_x{worker="%d"} 1\n'


class Worker:
    """It answers once it may. `size` is that of its metrics, in bytes, if it must have a certain size."""

    def __init__(self, *missing: str, size: int = 0) -> None:
        self.lacks = missing
        self.may, self.asked = asyncio.Event(), asyncio.Event()
        self.may.set()
        self._size = size

    def missing(self) -> tuple[str, ...]:
        return self.lacks

    async def exposition(self) -> bytes:
        self.asked.set()
        await self.may.wait()
        return EXPOSITION + b"#" * (self._size - len(EXPOSITION))


class Parent:
    """A fleet of made up workers."""

    def __init__(self, *workers: Worker | None) -> None:
        self.fleet = WorkerProbes(len(workers))
        self._workers = workers
        self.lives: list[asyncio.Task[None]] = []
        self._serving: list[asyncio.Task[None]] = []

    async def __aenter__(self):
        for number, worker in enumerate(self._workers):
            if worker is not None:
                ours, theirs = socket.socketpair()
                self._serving.append(asyncio.create_task(ProbeChannel(theirs, worker).serve()))
                self.lives.append(asyncio.create_task(self.fleet.watch(number, WorkerChannel(ours))))
        await asyncio.sleep(0)  # the lives begin
        return self

    async def __aexit__(self, *exc_info):
        for task in self.lives + self._serving:
            await ended(task)


@pytest.fixture
def clock(monkeypatch):
    """The clock that a fleet goes by; `now` in seconds. And nobody waits long for an answer."""
    monkeypatch.setattr(fleet, "_ANSWER_WITHIN_S", 0.05)
    monkeypatch.setattr(fleet, "_METRICS_WITHIN_S", 0.05)
    stopped = SimpleNamespace(now=0.0)
    monkeypatch.setattr(fleet, "time", SimpleNamespace(monotonic=lambda: stopped.now))
    return stopped


async def ended(task):
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_merged_readiness():
    """/readyz has everything that any worker lacks, after its number, and every worker by itself."""
    async with Parent(Worker(), Worker("no NATS", "no lane"), None) as parent:
        not_running = "it is not running; the parent starts it again"
        assert {
            "ready": False,
            "missing": ["worker 1: no NATS", "worker 1: no lane", f"worker 2: {not_running}"],
            "workers": [
                {"worker": 0, "ready": True, "missing": []},
                {"worker": 1, "ready": False, "missing": ["no NATS", "no lane"]},
                {"worker": 2, "ready": False, "missing": [not_running]},
            ],
        } == await parent.fleet.readiness()
        assert [] == parent.fleet.hung()


async def test_merged_metrics():
    """/metrics has the series of every worker that runs, and says which do."""
    async with Parent(Worker(), None, Worker()) as parent:
        body = (await parent.fleet.exposition()).decode()
        up = [f'relay_worker_up{{worker="{number}"}} {value}' for number, value in enumerate(("1.0", "0.0", "1.0"))]
        assert up == [line for line in body.splitlines() if line.startswith("relay_worker_up{")]
        assert body.endswith(MERGED % 0 + 'relay_x{worker="2"} 1\n')


async def test_slow_worker(monkeypatch):
    """A worker that does not answer in time is left out; its late answer is not taken for that to a later question."""
    monkeypatch.setattr(fleet, "_ANSWER_WITHIN_S", 0.05)
    monkeypatch.setattr(fleet, "_METRICS_WITHIN_S", 0.05)
    slow = Worker("something")
    slow.may.clear()
    async with Parent(slow, Worker()) as parent:
        assert b'relay_worker_up{worker="0"} 0.0' in await parent.fleet.exposition()
        assert ["worker 0: no answer within 0.05 s"] == (await parent.fleet.readiness())["missing"]
        slow.may.set()
        monkeypatch.setattr(fleet, "_ANSWER_WITHIN_S", 5)
        monkeypatch.setattr(fleet, "_METRICS_WITHIN_S", 5)
        assert ["worker 0: something"] == (await parent.fleet.readiness())["missing"]
        assert b'relay_worker_up{worker="0"} 1.0' in await parent.fleet.exposition()


async def test_hung_worker(clock):
    """A worker that has answered and then stands still is named by /livez after 10 s, and until it answers again."""
    hung = Worker()
    async with Parent(Worker(), hung) as parent:
        await parent.fleet.readiness()
        hung.may.clear()
        asking = asyncio.create_task(parent.fleet.exposition())
        await hung.asked.wait()
        clock.now += 10
        assert [] == parent.fleet.hung()
        clock.now += 1
        await asking
        assert ["worker 1: no answer for 11 s; its event loop stands still"] == parent.fleet.hung()
        hung.may.set()
        await parent.fleet.readiness()
        assert [] == parent.fleet.hung()


async def test_worker_that_starts(clock):
    """Until its first answer a worker has a minute, and no more."""
    parent = WorkerProbes(1)
    ours, theirs = socket.socketpair()
    with theirs:
        life = asyncio.create_task(parent.watch(0, WorkerChannel(ours)))
        assert ["worker 0: no answer within 0.05 s"] == (await parent.readiness())["missing"]
        clock.now += 60
        assert [] == parent.hung()
        clock.now += 1
        assert ["worker 0: no answer for 61 s; its event loop stands still"] == parent.hung()
        await ended(life)
    assert [] == parent.hung()


async def test_questions_are_bounded():
    """A worker that answers nothing any more is not asked on and on."""
    silent = Worker("something")
    silent.may.clear()
    ours, theirs = socket.socketpair()
    channel = WorkerChannel(ours)
    tasks = [asyncio.create_task(ProbeChannel(theirs, silent).serve()), asyncio.create_task(channel.run())]
    assert b'["something"]' == await channel.ask(MISSING, 5)
    for _ in range(16):
        with pytest.raises(NoAnswer, match=r"no answer within 0\.001 s"):
            await channel.ask(METRICS, 0.001)
    with pytest.raises(NoAnswer, match="it has left 16 questions unanswered"):
        await channel.ask(MISSING, 5)
    for task in tasks:
        await ended(task)


async def test_worker_that_ends():
    """Whoever waits for an answer is told at once that the worker has ended."""
    worker = Worker()
    worker.may.clear()
    ours, theirs = socket.socketpair()
    channel = WorkerChannel(ours)
    serving, running = asyncio.create_task(ProbeChannel(theirs, worker).serve()), asyncio.create_task(channel.run())
    asking = asyncio.create_task(channel.ask(METRICS, 10))
    await worker.asked.wait()
    await ended(serving)
    with pytest.raises(NoAnswer, match="it has ended"):
        await asking
    await running
    with pytest.raises(NoAnswer, match="it has ended"):
        await channel.ask(METRICS, 10)


async def test_large_answer():
    """Metrics of any size come through whole."""
    async with Parent(Worker(size=1_000_000)) as parent:
        assert 1_000_000 < len(await parent.fleet.exposition())
