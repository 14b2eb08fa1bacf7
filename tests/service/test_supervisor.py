"""`relay serve --workers`: real processes under one parent."""

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from relay_kit import Scene, new_job

from relay.core.backoff import Backoff
from relay.local.facilitator import FacilitatorSimulator
from relay.local.faults import stall
from relay.local.server import NatsServer
from relay.service.supervisor import Supervisor
from relay.service.worker_probes import WorkerProbes

DUPLICATE = "job.integrity_error"
TIMEOUT_S = 30
NOBODY = "ws://127.0.0.1:1/ws/v0/"


class Parent:
    """A `relay serve --workers` that runs, and everything that it and its workers log."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log: list[dict[str, Any]] = []

    async def logged(self, text: str, times: int = 1) -> list[dict[str, Any]]:
        """The next `times` lines whose event contains `text`."""
        found: list[dict[str, Any]] = []
        async with asyncio.timeout(TIMEOUT_S):
            while len(found) < times:
                line = await self._read()
                assert line is not None, f"they ended without logging {text!r}: {self.log}"
                if text in line["event"]:
                    found.append(line)
        return found

    async def ended(self) -> int:
        """Its exit status, when it and every worker has ended: until then somebody holds standard error open."""
        async with asyncio.timeout(TIMEOUT_S):
            while await self._read() is not None:
                pass
            return await self.process.wait()

    async def probe(self, path: str) -> tuple[int, str]:
        """Status and body of an answer on the parent's one port."""
        (port,) = [line["port"] for line in self.of("probes and metrics")]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.1\r\nhost: relay\r\n\r\n".encode())
        async with asyncio.timeout(TIMEOUT_S):
            head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
        writer.close()
        await writer.wait_closed()
        return int(head.split()[1]), body

    def of(self, text: str) -> list[dict[str, Any]]:
        """The lines so far whose event contains `text`."""
        return [line for line in self.log if text in line["event"]]

    async def _read(self) -> dict[str, Any] | None:
        if not (line := await self.process.stderr.readline()):
            return None
        self.log.append(json.loads(line) if line.startswith(b"{") else {"event": line.decode()})
        return self.log[-1]


@contextlib.asynccontextmanager
async def supervised(environment: dict[str, str], workers: int = 2) -> AsyncIterator[Parent]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "relay", "serve", "--workers", str(workers)),
        env={name: value for name, value in os.environ.items() if not name.startswith("RELAY_")} | environment,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    parent = Parent(process)
    try:
        yield parent
    finally:
        if process.returncode is None:
            process.kill()
        await parent.ended()


@contextlib.asynccontextmanager
async def relayed(**variables: str) -> AsyncIterator[tuple[Scene, Parent, list[dict[str, Any]]]]:
    """Two workers that share four lanes, two each; the lines that say who was started."""
    async with (
        NatsServer() as server,
        FacilitatorSimulator() as facilitator,
        Scene(server, facilitator, LEASE_TTL="1", ACK_WAIT="1", LOG_FORMAT="json", **variables) as scene,
        supervised(scene.environment) as parent,
    ):
        started = await parent.logged("worker started", times=2)
        await facilitator.wait_for(lambda facilitator: facilitator.accepted == 2, TIMEOUT_S)
        await scene.owned(lambda: [2, 2] == list(Counter(taking.worker for taking in scene.owners.values()).values()))
        yield scene, parent, started


async def test_dead_worker_is_replaced():
    """A worker that is killed is started again, under its number; no update is lost or reordered by that."""
    async with relayed() as (scene, parent, started):
        await scene.publish_lives(20)
        killed = started[0]
        os.kill(killed["pid"], signal.SIGKILL)
        (told,) = await parent.logged("a worker ended")
        (replaced,) = await parent.logged("worker started")
        await scene.facilitator.wait_for(lambda facilitator: facilitator.accepted == 3, TIMEOUT_S)
        await scene.publish_lives(20)
        broken = await scene.broken_promises(20)
        _, metrics = await parent.probe("/metrics")
    assert broken == []
    assert {str(killed["worker"]): 1, str(1 - killed["worker"]): 0} == series(metrics, "relay_worker_restarts_total")
    assert {"0": 1, "1": 1} == series(metrics, "relay_worker_up")
    assert "a worker ended with SIGKILL; starting it again" == told["event"]
    assert [killed["worker"]] * 2 == [told["worker"], replaced["worker"]]
    assert killed["pid"] != replaced["pid"]


@pytest.mark.parametrize(("send", "number"), [(os.kill, signal.SIGTERM), (os.killpg, signal.SIGINT)])
async def test_signal_drains_all(send, number):
    """SIGTERM, or Ctrl-C at a terminal, lets every worker drain and all exit with 0: nothing is sent a second time."""
    async with relayed() as (scene, parent, started):
        # Otherwise Ctrl-C would reach a worker twice, and the second signal ends it at once.
        assert parent.process.pid not in {os.getpgid(worker["pid"]) for worker in started}
        await scene.publish_lives(50)
        send(parent.process.pid, number)  # a terminal signals the whole process group
        status = await parent.ended()
        async with scene.relay():
            broken = await scene.broken_promises(20)
    assert 0 == status
    assert 4 == len(parent.of("stopped"))  # each worker says so, and the parent of each
    assert [] == parent.of("a worker ended")
    assert broken == []
    assert (len(scene.published), 0) == (scene.facilitator.replies["success"], scene.facilitator.replies[DUPLICATE])


def series(body: str, name: str) -> dict[str, float]:
    """The samples of a metric by worker."""
    return {
        sample.labels["worker"]: sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
        if sample.name == name
    }


async def in_each_lane(scene: Scene) -> None:
    """An update settled in each lane: all of them flow."""
    await scene.settled(*[await scene.publish(new_job(lane)) for lane in range(4)], timeout_s=TIMEOUT_S)


async def test_one_port_answers_for_all():
    """On one port /livez and /readyz speak for every worker, and /metrics has the series of each with its number. A
    worker that stands still is named by /readyz and left out of the metrics.
    """
    async with relayed() as (scene, parent, started):
        await in_each_lane(scene)
        assert (200, "ok\n") == await parent.probe("/livez")
        both = [{"worker": number, "ready": True, "missing": []} for number in (0, 1)]
        status, body = await parent.probe("/readyz")
        assert (200, {"ready": True, "missing": [], "workers": both}) == (status, json.loads(body))
        status, body = await parent.probe("/metrics")
        assert 200 == status
        assert {"0": 1, "1": 1} == series(body, "relay_worker_up") == series(body, "relay_ready")
        assert {"0": 0, "1": 0} == series(body, "relay_worker_restarts_total")
        families = list(text_string_to_metric_families(body))
        assert [] == [sample for family in families for sample in family.samples if "worker" not in sample.labels]
        assert len(families) == len({family.name for family in families})

        hanging = started[0]
        hung, other = str(hanging["worker"]), str(1 - hanging["worker"])
        os.kill(hanging["pid"], signal.SIGSTOP)
        try:
            (status, body), (_, metrics) = await asyncio.gather(parent.probe("/readyz"), parent.probe("/metrics"))
            assert (503, [f"worker {hung}: no answer within 1 s"]) == (status, json.loads(body)["missing"])
            assert {hung: 0, other: 1} == series(metrics, "relay_worker_up")
            assert {other} == series(metrics, "relay_ready").keys()
        finally:
            os.kill(hanging["pid"], signal.SIGCONT)


async def test_second_signal_is_passed_on():
    """With an answer that never comes, a second SIGTERM ends the workers at once; the exit status owns up to it."""
    async with relayed() as (scene, parent, _):
        with scene.facilitator.inject(stall()):
            job = new_job(lane=0)
            await scene.publish(job)
            await scene.facilitator.wait_for(lambda facilitator: job in str(facilitator.received), TIMEOUT_S)
            parent.process.send_signal(signal.SIGTERM)
            await parent.logged("worker stopped")
            await scene.owned(lambda: set(scene.owners) == {0})
            parent.process.send_signal(signal.SIGTERM)
            assert 1 == await parent.ended()
        assert 1 == await scene.unsettled()
    assert ["a worker ended undrained, with SIGTERM"] == [line["event"] for line in parent.of("a worker ended")]


async def test_parent_killed():
    """A parent that is killed leaves no worker behind."""
    async with relayed() as (scene, parent, _):
        parent.process.kill()
        assert -signal.SIGKILL == await parent.ended()
        await scene.facilitator.wait_for(lambda facilitator: facilitator.connections == 0)
        assert 2 == scene.facilitator.accepted


@pytest.mark.parametrize(
    ("setting", "started"),
    [({"RELAY_LANES": "many"}, 0), ({"RELAY_FACILITATOR_HOTKEY_FILE": "no-such-hotkey"}, 2)],
)
async def test_bad_configuration(setting, started):
    """A configuration that cannot be used, as the parent or a worker finds out, ends all with 2 and no second try."""
    environment = {"RELAY_FACILITATOR_URL": NOBODY, "RELAY_HTTP_PORT": "0", "RELAY_LOG_FORMAT": "json"}
    async with supervised(environment | setting) as parent:
        assert 2 == await parent.ended()
    assert started == len(parent.of("worker started"))
    assert parent.of(next(iter(setting.values())))


async def test_port_in_use():
    """A port that something else listens on ends the parent with 2, before any worker is started."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        environment = {"RELAY_FACILITATOR_URL": NOBODY, "RELAY_FACILITATOR_AUTH": "none", "RELAY_LOG_FORMAT": "json"}
        async with supervised(environment | {"RELAY_HTTP_PORT": str(other.getsockname()[1])}) as parent:
            assert 2 == await parent.ended()
    assert [] == parent.of("worker started")
    assert parent.of("RELAY_HTTP_PORT")


async def test_worker_that_keeps_dying(capsys):
    """A worker that dies again and again ends all with 1 and one line that says so."""
    backoff = Backoff(0.01, 0.02, random.random)
    assert 1 == await Supervisor(["false"], 2, WorkerProbes(2), backoff).run()
    assert 1 == capsys.readouterr().out.count("a worker ended 5 times within 60 s, with exit status 1; giving up")
