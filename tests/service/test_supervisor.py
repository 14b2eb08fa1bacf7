"""`relay serve --workers`: real worker processes under one parent."""

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from process_kit import RelayProcess, ask, started
from prometheus_client.parser import text_string_to_metric_families
from relay_kit import DUPLICATE, Scene, new_job

from relay.core.backoff import Backoff
from relay.local.facilitator import FacilitatorSimulator
from relay.local.faults import stall
from relay.local.server import NatsServer
from relay.service.supervisor import Supervisor
from relay.service.worker_probes import WorkerProbes

TIMEOUT_S = 30
NOBODY = "ws://127.0.0.1:1/ws/v0/"


def supervised(environment: dict[str, str]) -> contextlib.AbstractAsyncContextManager[RelayProcess]:
    """Two workers under a parent."""
    return started("-m", "relay", "serve", "--workers", "2", settings=environment)


@contextlib.asynccontextmanager
async def relayed(**variables: str) -> AsyncIterator[tuple[Scene, RelayProcess, list[dict[str, Any]]]]:
    """Two workers that share four lanes, two each; yields also the log lines about their start."""
    async with (
        NatsServer() as server,
        FacilitatorSimulator() as facilitator,
        Scene(server, facilitator, LEASE_TTL="1", ACK_WAIT="1", LOG_FORMAT="json", **variables) as scene,
        supervised(scene.environment) as parent,
    ):
        workers = await parent.logs("worker started", times=2)
        await facilitator.wait_for(lambda facilitator: facilitator.accepted == 2, TIMEOUT_S)
        await scene.owned(lambda: [2, 2] == list(Counter(taking.worker for taking in scene.owners.values()).values()))
        yield scene, parent, workers


async def test_dead_worker_is_replaced():
    """A worker that is killed is started again with its number, and no update is lost or reordered."""
    async with relayed() as (scene, parent, workers):
        await scene.publish_lives(20)
        killed = workers[0]
        os.kill(killed["pid"], signal.SIGKILL)
        (told,) = await parent.logs("a worker ended")
        (replaced,) = await parent.logs("worker started")
        await scene.facilitator.wait_for(lambda facilitator: facilitator.accepted == 3, TIMEOUT_S)
        await scene.publish_lives(20)
        broken = await scene.broken_promises(20)
        _, metrics = await probe(parent, "/metrics")
    assert broken == []
    assert {str(killed["worker"]): 1, str(1 - killed["worker"]): 0} == series(metrics, "relay_worker_restarts_total")
    assert {"0": 1, "1": 1} == series(metrics, "relay_worker_up")
    assert "a worker ended with SIGKILL; starting it again" == told["event"]
    assert [killed["worker"]] * 2 == [told["worker"], replaced["worker"]]
    assert killed["pid"] != replaced["pid"]


async def probe(parent: RelayProcess, path: str) -> tuple[int, str]:
    """Status and body of an answer on the parent's port."""
    (line,) = parent.said("probes and metrics")
    answer = await ask(json.loads(line)["port"], path)
    return answer.status, answer.body


def hang_up(group: int, number: int) -> None:
    """As when a terminal is closed: from the kernel and from the shell."""
    os.killpg(group, number)
    os.killpg(group, number)


@pytest.mark.parametrize(
    ("send", "number"), [(os.kill, signal.SIGTERM), (os.killpg, signal.SIGINT), (hang_up, signal.SIGHUP)]
)
async def test_signal_drains_all(send, number):
    """SIGTERM, Ctrl-C in a terminal or its end lets all workers drain and exit with 0: nothing is sent twice."""
    async with relayed() as (scene, parent, workers):
        # Otherwise Ctrl-C would reach a worker twice, and the second signal stops it at once.
        assert parent.process.pid not in {os.getpgid(worker["pid"]) for worker in workers}
        await scene.publish_lives(50)
        send(parent.process.pid, number)  # a terminal signals the whole process group
        status = await parent.ended()
        async with scene.relay():
            broken = await scene.broken_promises(20)
    assert 0 == status
    assert 4 == len(parent.said('stopped"'))  # each worker logs it, and the parent for each
    assert [] == parent.said("a worker ended")
    assert broken == []
    assert (len(scene.published), 0) == (scene.facilitator.replies["success"], scene.facilitator.replies[DUPLICATE])


def series(body: str, name: str) -> dict[str, float]:
    """A metric's values, by worker."""
    return {
        sample.labels["worker"]: sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
        if sample.name == name
    }


async def in_each_lane(scene: Scene) -> None:
    """Check that an update in each lane is settled."""
    await scene.settled(*[await scene.publish(new_job(lane)) for lane in range(4)], timeout_s=TIMEOUT_S)


async def test_one_port_answers_for_all():
    """On one port /livez and /readyz answer for all workers, and /metrics has each worker's series with its number. A
    suspended worker is named by /readyz and left out of the metrics.
    """
    async with relayed() as (scene, parent, workers):
        await in_each_lane(scene)
        assert (200, "ok\n") == await probe(parent, "/livez")
        both = [{"worker": number, "ready": True, "missing": []} for number in (0, 1)]
        status, body = await probe(parent, "/readyz")
        assert (200, {"ready": True, "missing": [], "workers": both}) == (status, json.loads(body))
        status, body = await probe(parent, "/metrics")
        assert 200 == status
        assert {"0": 1, "1": 1} == series(body, "relay_worker_up") == series(body, "relay_ready")
        assert {"0": 0, "1": 0} == series(body, "relay_worker_restarts_total")
        families = list(text_string_to_metric_families(body))
        assert [] == [sample for family in families for sample in family.samples if "worker" not in sample.labels]
        assert len(families) == len({family.name for family in families})

        hanging = workers[0]
        hung, other = str(hanging["worker"]), str(1 - hanging["worker"])
        os.kill(hanging["pid"], signal.SIGSTOP)
        try:
            (status, body), (_, metrics) = await asyncio.gather(probe(parent, "/readyz"), probe(parent, "/metrics"))
            assert (503, [f"worker {hung}: no answer within 1 s"]) == (status, json.loads(body)["missing"])
            assert {hung: 0, other: 1} == series(metrics, "relay_worker_up")
            assert {other} == series(metrics, "relay_ready").keys()
        finally:
            os.kill(hanging["pid"], signal.SIGCONT)


async def test_second_signal_is_passed_on():
    """While an answer is missing, a second SIGTERM stops the workers at once, and the exit status says so."""
    async with relayed() as (scene, parent, _):
        with scene.facilitator.inject(stall()):
            job = new_job(lane=0)
            await scene.publish(job)
            await scene.facilitator.wait_for(lambda facilitator: job in str(facilitator.received), TIMEOUT_S)
            parent.process.send_signal(signal.SIGTERM)
            await parent.logs("worker stopped")
            await scene.owned(lambda: set(scene.owners) == {0})
            parent.process.send_signal(signal.SIGTERM)
            assert 1 == await parent.ended()
        assert 1 == await scene.unsettled()
    (told,) = parent.said("a worker ended")
    assert "a worker ended undrained, with SIGTERM" in told


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
    """An unusable configuration, found by the parent or by a worker, ends all with 2 and without a second try."""
    environment = {"RELAY_FACILITATOR_URL": NOBODY, "RELAY_HTTP_PORT": "0", "RELAY_LOG_FORMAT": "json"}
    async with supervised(environment | setting) as parent:
        assert 2 == await parent.ended()
    assert started == len(parent.said("worker started"))
    assert parent.said(next(iter(setting.values())))


async def test_port_in_use():
    """If the port is in use, the parent exits with 2 before it starts a worker."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        environment = {"RELAY_FACILITATOR_URL": NOBODY, "RELAY_FACILITATOR_AUTH": "none", "RELAY_LOG_FORMAT": "json"}
        async with supervised(environment | {"RELAY_HTTP_PORT": str(other.getsockname()[1])}) as parent:
            assert 2 == await parent.ended()
    assert [] == parent.said("worker started")
    assert parent.said("RELAY_HTTP_PORT")


async def test_worker_that_keeps_dying(capsys):
    """If a worker dies again and again, all end with 1 and one line that says so."""
    backoff = Backoff(0.01, 0.02, random.random)
    assert 1 == await Supervisor(["false"], 2, WorkerProbes(2), backoff).run()
    assert 1 == capsys.readouterr().out.count("a worker ended 5 times within 60 s, with exit status 1; giving up")


async def test_worker_that_cannot_be_started(tmp_path, capsys):
    """If the system cannot start a worker again, the parent waits and tries again; if it never could, it gives up."""
    command = tmp_path / "worker"
    command.write_text(f"#!/bin/sh\nrm {command}\nexit 1")
    command.chmod(0o700)
    waits: list[float] = []

    def wait() -> float:
        waits.append(0.5)
        if len(waits) == 2:  # after its end, and after the start that failed
            command.write_text("#!/bin/sh\nexit 2")
            command.chmod(0o700)
        return 0.5

    assert 2 == await Supervisor([str(command)], 1, WorkerProbes(1), Backoff(0.01, 0.02, wait)).run()
    assert 1 == capsys.readouterr().out.count("No such file or directory: ")
    command.unlink()
    assert 1 == await Supervisor([str(command)], 2, WorkerProbes(2), Backoff(0.01, 0.02, wait)).run()
    told = capsys.readouterr().out
    assert (1, 1) == (told.count("a worker cannot be started: "), told.count("giving up"))
