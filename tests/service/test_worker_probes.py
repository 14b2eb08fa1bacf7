"""What a parent reports about its workers; the workers are simulated in this process."""

import asyncio
import contextlib
from collections import Counter
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client import Counter as PrometheusCounter
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from relay.core.verdict import Outcome
from relay.observability.metrics import Metrics
from relay.service.health import HealthServer
from relay.service.supervisor import private_listener
from relay.service.worker_probes import Timeouts, WorkerProbes, merge

EXPOSITION = "# HELP relay_x x\n# TYPE relay_x gauge\nrelay_x 1.0\n"
IMPATIENT = Timeouts(readiness_s=0.05, metrics_s=0.05)


class Worker:
    """The answers of a worker, and its process: a socket, with a health server on it while `runs`."""

    def __init__(self, *missing: str, exposition: str = EXPOSITION) -> None:
        self.may = asyncio.Event()
        self.may.set()
        self._missing = missing
        self._exposition = exposition
        self._process = contextlib.ExitStack()
        self.listener = self._process.enter_context(private_listener())

    def hung(self):
        return ()

    async def readiness(self):
        return {"ready": not self._missing, "missing": self._missing}

    async def exposition(self):
        await self.may.wait()
        return self._exposition.encode()

    def runs(self):
        self._serving = asyncio.create_task(HealthServer([self.listener.dup()], self).serve())
        return self

    async def hangs(self):
        await ended(self._serving)

    def ends(self):
        self._process.close()


@pytest.fixture
async def parent():
    """`await parent(worker, None, ...)`: the probes of a parent with these workers; None does not run."""
    watching, started = [], []

    async def probes_of(*workers, **options):
        probes = WorkerProbes(len(workers), **options)
        for number, worker in enumerate(workers):
            if worker is not None:
                started.append(worker)
                watching.append(asyncio.create_task(probes.watch(number, worker.listener.getsockname())))
        await asyncio.sleep(0)  # the parent starts to watch
        return probes

    yield probes_of
    for task in watching:
        await ended(task)
    for worker in started:
        worker.ends()


@pytest.fixture
def clock():
    """A clock that stands still at `now_s`."""
    return SimpleNamespace(now_s=0.0)


async def ended(task):
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("platform", ["linux", "darwin"])
async def test_merged_readiness(parent, monkeypatch, platform):
    """/readyz lists what any worker lacks, with its number, and then every worker."""
    monkeypatch.setattr("relay.service.supervisor.sys", SimpleNamespace(platform=platform))
    probes = await parent(Worker().runs(), Worker("no NATS", "no lane").runs(), None)
    not_running = "it is not running; the parent starts it again"
    assert {
        "ready": False,
        "missing": ["worker 1: no NATS", "worker 1: no lane", f"worker 2: {not_running}"],
        "workers": [
            {"worker": 0, "ready": True, "missing": []},
            {"worker": 1, "ready": False, "missing": ["no NATS", "no lane"]},
            {"worker": 2, "ready": False, "missing": [not_running]},
        ],
    } == await probes.readiness()
    assert [] == probes.hung()


async def test_merged_metrics(parent):
    """/metrics has the series of every worker that answers, and shows which workers do."""
    large = EXPOSITION.replace("x\n", "x" * 1_000_000 + "\n", 1)
    probes = await parent(Worker(exposition=large).runs(), None, Worker().runs())
    body = (await probes.exposition()).decode()
    assert [1, 0, 1] == [body.count(f'\nrelay_worker_up{{worker="{number}"}} 1.0\n') for number in range(3)]
    assert body.endswith('\nrelay_x{worker="0"} 1.0\nrelay_x{worker="2"} 1.0\n')


async def test_slow_worker(parent):
    """A worker that does not answer in time is left out, and comes back with its next answer."""
    slow = Worker().runs()
    slow.may.clear()
    probes = await parent(slow, timeouts=IMPATIENT)
    assert b'relay_worker_up{worker="0"} 0.0' in await probes.exposition()
    slow.may.set()
    assert b'relay_worker_up{worker="0"} 1.0' in await probes.exposition()


async def test_worker_that_hangs(parent, clock):
    """/livez names a worker that has not answered for 10 s (a minute, if it never has), until it answers."""
    worker = Worker()
    probes = await parent(worker, timeouts=IMPATIENT, clock=lambda: clock.now_s)
    for allowed_s in (60, 10):
        assert ["worker 0: no answer within 0.05 s"] == (await probes.readiness())["missing"]
        clock.now_s += allowed_s
        assert [] == probes.hung()
        clock.now_s += 1
        assert [f"worker 0: no answer for {allowed_s + 1} s; its event loop stands still"] == probes.hung()
        worker.runs()
        while not (await probes.readiness())["ready"]:
            pass
        assert [] == probes.hung()
        await worker.hangs()
    assert (await probes.readiness())["missing"] == ["worker 0: no answer within 0.05 s"]


async def test_questions_are_bounded(parent):
    """A worker that does not answer gets no more than a limited number of requests."""
    probes = await parent(Worker(), timeouts=Timeouts(readiness_s=0.001))
    while (missing := (await probes.readiness())["missing"]) == ["worker 0: no answer within 0.001 s"]:
        pass
    assert ["worker 0: it has left too many questions unanswered"] == missing


async def test_worker_that_ends(parent):
    """When a worker ends, requests to it fail at once, those that wait and later ones."""
    worker = Worker()
    probes = await parent(worker)
    asking = asyncio.create_task(probes.readiness())
    worker.listener.settimeout(0)
    for _ in range(2):  # the parent's own request and the one of the test
        connection, _ = await asyncio.get_running_loop().sock_accept(worker.listener)
        connection.close()
    assert ["worker 0: it has ended"] == (await asking)["missing"]
    worker.ends()
    assert ["worker 0: it has ended"] == (await probes.readiness())["missing"]


def parsed(text):
    """Every sample with its family, labels and value; and how often each family occurs."""
    families = list(text_string_to_metric_families(text))
    samples = [
        (family.name, family.type, family.documentation, sample.name, sorted(sample.labels.items()), sample.value)
        for family in families
        for sample in family.samples
    ]
    return samples, Counter(family.name for family in families)


@pytest.mark.parametrize("workers", [(), (0,), (3, 10, 0)])
def test_everything_once_with_its_worker(workers):
    """In the merged metrics each sample of each worker occurs once, with its number, and each family occurs once."""
    texts = {}
    for worker in workers:
        metrics = Metrics(lanes=2 + worker)  # series that only one worker has do no harm
        metrics.answered([], [], {Outcome.ACKNOWLEDGED: [0.001 * worker]})
        metrics.at_hand(1, worker)
        texts[worker] = metrics.render().decode()
    samples, families = parsed(merge(texts).decode())
    expected = [
        (*rest, sorted([*labels, ("worker", str(worker))]), value)
        for worker, text in texts.items()
        for *rest, labels, value in parsed(text)[0]
    ]
    assert sorted(expected) == sorted(samples)
    assert set(families.values()) <= {1}


def test_awkward_text():
    """Braces, quotes, commas, blanks and line ends in help and label values stay unchanged."""
    registry = CollectorRegistry()
    awkward = 'a "b", {c} \\ # HELP x y\n# TYPE x z\nd 1'
    Gauge("g", awkward, ["l"], registry=registry).labels(awkward).set(2)
    PrometheusCounter("plain", "without labels", registry=registry).inc()
    samples, _ = parsed(merge({7: generate_latest(registry).decode()}).decode())
    assert [
        ("g", "gauge", awkward, "g", [("l", awkward), ("worker", "7")], 2),
        ("plain", "counter", "without labels", "plain_total", [("worker", "7")], 1),
    ] == [sample for sample in samples if not sample[3].endswith("_created")]
