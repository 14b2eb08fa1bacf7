"""Makes every alert fire by its cause, and go out again, with a real Prometheus and a real cluster of nats-servers.

Run it from the top of the repository as `make rehearse-alerts`; `prometheus` and `promtool` must be on PATH (Debian's
package `prometheus`). It takes some ten minutes, and ends with exit code 1 if an alert does not fire or go out, or if
a query of the dashboard finds nothing. The rules are those of deploy/, with shorter times and smaller limits.
"""

import asyncio
import contextlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final, Self
from uuid import uuid4

import yaml

from relay.contract.errors import RelayError
from relay.contract.settings import NatsSettings
from relay.contract.subjects import LEASE_STREAM, STATUS_STREAM, api_stream_info, api_stream_update, status_subject
from relay.local.cluster import NatsCluster
from relay.local.facilitator import FacilitatorSimulator
from relay.local.ledger import DROPPED
from relay.nats.connection import close, connect
from relay.nats.frames import FrameClient
from relay.nats.jetstream import api_request, publish_confirmed

ROOT: Final = Path(__file__).parents[2]
RULES: Final = {
    "relay": ROOT / "deploy/kubernetes/monitoring/prometheusrule.yaml",
    "nats": ROOT / "deploy/kubernetes/nats-exporter/prometheusrule.yaml",
}
DASHBOARD: Final = ROOT / "deploy/grafana/job-status-relay.json"
CASES: Final = ROOT / "tests/docs/alert_cases.yaml"
SMALLER: Final = {
    "RelayUpdatesOld": ("> 300", "> 10"),
    "RelayUpdatesStuck": ("> 3600", "> 15"),
    "RelayUpdatesExpiring": ("> 3 * 86400", "> 20"),
    "RelayBacklog": ("> 10000", "> 100"),
    "RelayDeadLettersMany": ("> 20", "> 5"),
    "RelayFacilitatorUnsteady": ("> 10", "> 3"),
}
"""The limits that would take too long to reach."""
NOT_HERE: Final = {"RelayPodPending": "a Kubernetes cluster", "NatsStoreFilling": "NATS' exporter"}
"""What cannot be made to fire here, and what it needs. promtool checks these with values, as all others."""
SHORTER: Final = ((r"\[15m\]", "[40s]"), (r"\[30m\]", "[2m]"))
SCRAPE_S: Final = 4
"""Longer than a parent waits for a worker that hangs."""
WITHIN_S: Final = 240
LANES: Final = 4
RATE_PER_S: Final = 20


def groups_of(file: str) -> list[dict[str, Any]]:
    return yaml.safe_load(RULES[file].read_text())["spec"]["groups"]


def rehearsed(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rules with shorter times and smaller limits."""
    for rule in (rule for group in groups for rule in group["rules"]):
        for long, short in SHORTER:
            rule["expr"] = re.sub(long, short, rule["expr"])
        if "for" in rule:
            rule["for"] = "0s" if rule["for"] == "0m" else "3s"
        if (limit := SMALLER.get(rule.get("alert", ""))) is not None:
            assert limit[0] in rule["expr"], f"the limit of {rule['alert']} has changed"
            rule["expr"] = rule["expr"].replace(*limit)
    return groups


class Prometheus:
    """A Prometheus that scrapes one relay; started and ended by `async with`."""

    def __init__(self, folder: Path, relay_port: int) -> None:
        self._port = _free_port()
        self._folder = folder
        groups = rehearsed(groups_of("relay"))
        (folder / "rules.yml").write_text(yaml.safe_dump({"groups": groups}))
        scrape = {"job_name": "job-status-relay", "static_configs": [{"targets": [f"127.0.0.1:{relay_port}"]}]}
        every = {"scrape_interval": f"{SCRAPE_S}s", "scrape_timeout": f"{SCRAPE_S}s", "evaluation_interval": "1s"}
        config = {"global": every, "rule_files": ["rules.yml"], "scrape_configs": [scrape]}
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))

    async def __aenter__(self) -> Self:
        with (self._folder / "prometheus.log").open("w") as log:
            self._process = await asyncio.create_subprocess_exec(
                *("prometheus", f"--config.file={self._folder}/prometheus.yml"),
                *(f"--storage.tsdb.path={self._folder}/data", f"--web.listen-address=127.0.0.1:{self._port}"),
                stderr=log,
            )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._process.terminate()
        await self._process.wait()

    async def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its HTTP API; None while it does not answer."""
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            return json.loads(await asyncio.to_thread(_get, url))["data"]
        except OSError:
            return None

    async def firing(self) -> set[str]:
        """The names of the alerts that fire now."""
        while (found := await self.ask("alerts")) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.5)
        return {alert["labels"]["alertname"] for alert in found["alerts"] if alert["state"] == "firing"}

    async def until(self, condition: Callable[[set[str]], bool], what: str) -> float:
        """Wait until the alerts that fire fulfil the condition; returns how many seconds that took."""
        began_s = time.monotonic()
        while not condition(now := await self.firing()):
            if time.monotonic() - began_s > WITHIN_S:
                sys.exit(f"{what}: not within {WITHIN_S} s; firing: {', '.join(sorted(now)) or 'nothing'}")
            await asyncio.sleep(0.5)
        return time.monotonic() - began_s

    async def until_fired(self, alerts: tuple[str, ...], *, fire: bool) -> list[float]:
        """Wait until each of the alerts fires, or has gone out; returns how many seconds each took."""

        async def one(alert: str) -> float:
            return await self.until(
                lambda now: (alert in now) == fire, f"{alert} {'fires' if fire else 'has gone out'}"
            )

        return await asyncio.gather(*map(one, alerts))


class Scene:
    """Two relay workers between a cluster and a simulated Facilitator, with a steady flow of updates."""

    def __init__(self, cluster: NatsCluster, facilitator: FacilitatorSimulator, nats: FrameClient, port: int) -> None:
        self.cluster, self.facilitator, self.nats = cluster, facilitator, nats
        self._settings = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RELAY_")},
            "RELAY_NATS_URL": ",".join(cluster.urls),
            "RELAY_FACILITATOR_URL": facilitator.url,
            "RELAY_FACILITATOR_AUTH": "none",
            "RELAY_REPLICAS": "3",
            "RELAY_LEASE_TTL": "15",
            "RELAY_HTTP_PORT": str(port),
        }

    async def command(self, *arguments: str) -> None:
        """Run a command of the relay to its end."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "relay", *arguments), env=self._settings, stdout=subprocess.DEVNULL
        )
        await process.wait()

    async def start(self, log: str = os.devnull) -> None:
        stderr = os.open(log, os.O_WRONLY)
        self.relay = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "relay", "serve", "--workers", "2"), env=self._settings, stderr=stderr
        )
        os.close(stderr)

    async def stop(self) -> None:
        self.relay.terminate()
        await self.relay.wait()

    def workers(self) -> list[int]:
        """The process ids of the workers that run."""
        return [int(pid) for pid in Path(f"/proc/{self.relay.pid}/task/{self.relay.pid}/children").read_text().split()]

    async def publish(self) -> None:
        """Publish a good update of another job again and again."""
        while True:
            job = str(uuid4())
            body = json.dumps({"uuid": job, "status": "received"}).encode()
            with contextlib.suppress(RelayError):  # nothing is stored while the servers are away or full
                await publish_confirmed(self.nats, status_subject(job), body, timeout_s=1)
            await asyncio.sleep(1 / RATE_PER_S)

    async def change_limit(self, messages: int) -> None:
        config = (await api_request(self.nats, api_stream_info(STATUS_STREAM)))["config"]
        await api_request(self.nats, api_stream_update(STATUS_STREAM), config | {"max_msgs": messages})

    async def pause(self, until: str) -> None:
        for lane in range(LANES):
            subject = f"$JS.API.CONSUMER.PAUSE.{STATUS_STREAM}.relay-lane-{lane}"
            await api_request(self.nats, subject, {"pause_until": until})


Cause = Callable[[Scene], Awaitable[None]]


async def facilitator_away(scene: Scene) -> None:
    await scene.facilitator.away(DROPPED)


async def facilitator_back(scene: Scene) -> None:
    await scene.facilitator.back()


async def facilitator_drops(scene: Scene) -> None:
    for _ in range(5):
        await scene.facilitator.close_all(DROPPED)
        await asyncio.sleep(3)


async def nothing(_: Scene) -> None:
    """It goes out by itself."""


async def bad_updates(scene: Scene) -> None:
    for _ in range(40):
        await publish_confirmed(scene.nats, status_subject(str(uuid4())), b"{", timeout_s=5)


async def purge(scene: Scene) -> None:
    await scene.command("dlq", "purge", "--all", "--yes")


async def facilitator_stores_nothing(scene: Scene) -> None:
    scene.facilitator.integrity_errors(seconds=15)


async def last_attempts_and_purge(scene: Scene) -> None:
    await asyncio.sleep(40)  # the last of them become dead letters
    await purge(scene)


async def lease_bucket_removed(scene: Scene) -> None:
    await api_request(scene.nats, f"$JS.API.STREAM.DELETE.{LEASE_STREAM}")


async def provisioned(scene: Scene) -> None:
    await scene.command("provision")


async def consumers_paused(scene: Scene) -> None:
    await scene.pause("2100-01-01T00:00:00Z")


async def consumers_resumed(scene: Scene) -> None:
    await scene.pause("0001-01-01T00:00:00Z")


async def stream_full(scene: Scene) -> None:
    await scene.change_limit(1)


async def stream_has_room(scene: Scene) -> None:
    await scene.change_limit(-1)


async def servers_killed(scene: Scene) -> None:
    for node in scene.cluster.nodes:
        await scene.cluster.kill(node)


async def servers_started(scene: Scene) -> None:
    for node in scene.cluster.nodes:
        await scene.cluster.start(node)


async def server_killed(scene: Scene) -> None:
    await scene.cluster.kill(scene.cluster.nodes[2])


async def server_started(scene: Scene) -> None:
    await scene.cluster.start(scene.cluster.nodes[2])


async def worker_hangs(scene: Scene) -> None:
    os.kill(scene.workers()[0], signal.SIGSTOP)


async def worker_runs(scene: Scene) -> None:
    for pid in scene.workers():
        os.kill(pid, signal.SIGCONT)


async def worker_dies(scene: Scene) -> None:
    for _ in range(4):
        os.kill(max(scene.workers()), signal.SIGKILL)  # the one that was started last
        await asyncio.sleep(3 * SCRAPE_S)  # each start is seen by a scrape


async def relay_stopped(scene: Scene) -> None:
    await scene.stop()


async def relay_started(scene: Scene) -> None:
    await scene.start()


async def log_full(scene: Scene) -> None:
    await scene.stop()
    await scene.start("/dev/full")
    await asyncio.sleep(4 * SCRAPE_S)  # an increase is seen from the second scrape on
    await scene.facilitator.close_all(DROPPED)  # which is a line in the log


async def log_has_room(scene: Scene) -> None:
    await scene.stop()
    await scene.start()


REHEARSALS: Final[tuple[tuple[str, Cause, Cause, tuple[str, ...]], ...]] = (
    (
        "the Facilitator is away",
        facilitator_away,
        facilitator_back,
        (
            *("RelayFacilitatorAway", "RelayUpdatesOld", "RelayUpdatesStuck", "RelayUpdatesExpiring"),
            *("RelayBacklog", "RelayNotReady"),
        ),
    ),
    ("it drops its connections", facilitator_drops, nothing, ("RelayFacilitatorUnsteady",)),
    ("it stores nothing", facilitator_stores_nothing, last_attempts_and_purge, ("RelayUnexplainedDuplicates",)),
    ("bad updates", bad_updates, purge, ("RelayDeadLetters", "RelayDeadLettersNew", "RelayDeadLettersMany")),
    ("consumers are paused", consumers_paused, consumers_resumed, ("RelayLaneStandsStill",)),
    ("JOB_STATUS is full", stream_full, stream_has_room, ("RelayIntakeDown",)),
    ("the lease bucket is removed", lease_bucket_removed, provisioned, ("RelayLaneUnowned",)),
    ("a server of NATS dies", server_killed, server_started, ("RelayCopiesMissing",)),
    ("all of them die", servers_killed, servers_started, ("RelayNatsAway",)),
    ("a worker hangs", worker_hangs, worker_runs, ("RelayWorkerMissing",)),
    ("a worker dies again and again", worker_dies, nothing, ("RelayRestarting",)),
    ("the log cannot be written", log_full, log_has_room, ("RelayLogLost",)),
    ("no relay runs", relay_stopped, relay_started, ("RelayGone",)),
)
"""What happens, how it is done and undone, and which alerts it must make fire."""


async def rehearse(scene: Scene, prometheus: Prometheus) -> None:
    """Make each alert fire and go out, and print how long both took."""
    await prometheus.until(lambda firing: not firing, "no alert fires while all is well")
    print(f"{'cause':30} {'alert':28} {'fires':>6} {'out':>6}")
    for cause, do, undo, alerts in REHEARSALS:
        await prometheus.until_fired(alerts, fire=False)  # nothing is left of the cause before
        await do(scene)
        fired_s = await prometheus.until_fired(alerts, fire=True)
        await undo(scene)
        out_s = await prometheus.until_fired(alerts, fire=False)
        for alert, fired, out in zip(alerts, fired_s, out_s, strict=True):
            print(f"{cause:30} {alert:28} {fired:4.0f} s {out:4.0f} s", flush=True)
    await prometheus.until(lambda firing: not firing, "no alert fires at the end")
    print("then no alert fires")
    for alert, needs in NOT_HERE.items():
        print(f"{alert} needs {needs}: only promtool has checked it")


async def ask_for_dashboard(prometheus: Prometheus) -> None:
    """Each query of the dashboard finds something while the relay works."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    for query in [*queries, "namespace:relay_lag_to_scale_by:sum"]:
        filled = re.sub(r'"\$\w+"', '".*"', re.sub(r"\$__\w+", "1m", query))
        until_s = time.monotonic() + WITHIN_S
        while not ((await prometheus.ask("query", query=filled)) or {"result": []})["result"]:
            if time.monotonic() > until_s:
                sys.exit(f"nothing is found by {query}")
            await asyncio.sleep(1)
    print(f"each of the {len(queries)} queries of the dashboard finds something, and so does what autoscalers ask")


@contextlib.asynccontextmanager
async def working(port: int) -> AsyncIterator[Scene]:
    async with NatsCluster() as cluster, FacilitatorSimulator() as facilitator:
        nats = await connect(NatsSettings(urls=cluster.urls), name="rehearsal")
        scene = Scene(cluster, facilitator, nats, port)
        await scene.command("provision")
        await scene.start()
        publishing = asyncio.create_task(scene.publish())
        try:
            yield scene
        finally:
            publishing.cancel()
            await scene.stop()
            await close(nats)


def check_with_promtool(folder: Path) -> None:
    """Check the rules, and with values when each fires and when not. Raises CalledProcessError."""
    for name in RULES:
        (folder / f"{name}.rules.yml").write_text(yaml.safe_dump({"groups": groups_of(name)}))
    (folder / "cases.yml").write_text(CASES.read_text().replace("../../", ""))
    for arguments in (("check", "rules", *(f"{name}.rules.yml" for name in RULES)), ("test", "rules", "cases.yml")):
        subprocess.run(["promtool", *arguments], check=True, cwd=folder, stdout=subprocess.DEVNULL)


async def main() -> None:
    logging.disable()  # the client reports each server that it kills
    for program in ("prometheus", "promtool"):
        if shutil.which(program) is None:
            sys.exit(f"{program} is not on PATH: install Prometheus (Debian: apt-get install prometheus)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        check_with_promtool(folder)
        print("promtool: the rules and their cases are right")
        port = _free_port()
        async with working(port) as scene, Prometheus(folder, port) as prometheus:
            await ask_for_dashboard(prometheus)
            await rehearse(scene, prometheus)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read()


if __name__ == "__main__":
    asyncio.run(main())
