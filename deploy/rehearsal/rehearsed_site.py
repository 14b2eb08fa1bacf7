"""What rehearsals share: a cluster with the users of deploy/nats/users.conf, relays as processes, a steady flow."""

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final
from uuid import uuid4

from started_relay import StartedRelay

from relay.contract.errors import RelayError
from relay.contract.settings import NatsSettings
from relay.contract.subjects import DLQ_STREAM, api_stream_info, status_subject
from relay.local.cluster import NatsCluster
from relay.local.facilitator import FacilitatorSimulator
from relay.nats.connection import close, connect
from relay.nats.frames import FrameClient
from relay.nats.jetstream import api_request, publish_confirmed

ROOT: Final = Path(__file__).parents[2]
ROLES: Final = ("producer", "runner", "relay", "operator", "observer", "admin")
ANYBODY: Final = "anybody"
"""A user of the relay's account who may do everything; password likewise."""
CONNECTED_WITHIN_S: Final = 60
STATUSES: Final = ("received", "accepted", "executor_ready", "volumes_ready", "execution_done", "completed")


def password(role: str) -> str:
    return ANYBODY if role == ANYBODY else os.environ[f"NATS_{role.upper()}_PASSWORD"]


def give_passwords() -> None:
    """Put the passwords that users.conf needs into the environment."""
    os.environ.update({f"NATS_{role.upper()}_PASSWORD": f"secret-of-{role}" for role in ROLES})


def users() -> str:
    """users.conf, with the user who may do everything."""
    text = (ROOT / "deploy/nats/users.conf").read_text()
    return text.replace("users: [", f"users: [\n{{user: {ANYBODY}, password: {ANYBODY}}}", 1)


def sign_in(role: str) -> dict[str, str]:
    """The relay's settings for a user."""
    inbox = "_INBOX_relay" if role == "relay" else "_INBOX"
    return {"RELAY_NATS_USER": role, "RELAY_NATS_PASSWORD": password(role), "RELAY_NATS_INBOX_PREFIX": inbox}


class Site:
    """A cluster, a Facilitator, relays and a producer. `settings` are those of every relay and command.

    `logs` is the folder with the logs of the relays.
    """

    def __init__(self, cluster: NatsCluster, facilitator: FacilitatorSimulator, nats: FrameClient, logs: Path) -> None:
        self.cluster, self.facilitator, self.nats = cluster, facilitator, nats
        self.settings = {
            "RELAY_NATS_URL": ",".join(cluster.urls),
            "RELAY_FACILITATOR_URL": facilitator.url,
            "RELAY_FACILITATOR_AUTH": "none",
            "RELAY_HTTP_PORT": "0",
            "RELAY_RECEIPTS": "true",
            "RELAY_REPLICAS": "3",
            "RELAY_LEASE_TTL": "15",
        }
        self.published: list[tuple[str, str]] = []
        """Job and status of each update whose publish was confirmed, in order."""
        self.pause_s = 0.02
        """Between two updates of the producer."""
        self.longest_s = 0.0
        """The longest time that a publish took to be confirmed, tries included."""
        self._publishing = asyncio.Lock()
        self.relays: list[StartedRelay] = []
        self._logs, self._numbers = logs, itertools.count(1)
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}

    # Relays and commands.

    async def start_relay(self, at: Path = ROOT, **settings: str) -> None:
        """Start a relay of the version in a folder, and wait until it is connected to the Facilitator."""
        connections = self.facilitator.accepted
        version = "" if at == ROOT else "-of-the-older-version"
        log = self._logs / f"relay-{next(self._numbers)}{version}.log"
        with log.open("wb") as file:
            relay = StartedRelay(await self._run("serve", role="relay", at=at, stderr=file.fileno(), **settings), log)
        self.relays.append(relay)
        try:
            await self.facilitator.wait_for(lambda facilitator: facilitator.accepted > connections, CONNECTED_WITHIN_S)
        except TimeoutError:
            relay.require_running()
            relay.give_up(f"has no connection to the Facilitator after {CONNECTED_WITHIN_S} s")

    async def stop_relay(self) -> None:
        """Stop the oldest relay as a supervisor does."""
        await self.relays.pop(0).stop()

    def require_relays(self) -> None:
        """End the rehearsal, with the reason, if a relay has ended by itself."""
        for relay in self.relays:
            relay.require_running()

    async def relay(self, *arguments: str, at: Path = ROOT) -> tuple[int, str]:
        """Run a command of the relay as the operator; returns its exit code and what it printed."""
        pipe, same = asyncio.subprocess.PIPE, asyncio.subprocess.STDOUT
        process = await self._run(*arguments, role="operator", at=at, stdout=pipe, stderr=same)
        out, _ = await process.communicate()
        return process.returncode or 0, out.decode()

    async def _run(
        self,
        *arguments: str,
        role: str,
        at: Path = ROOT,
        stdout: int | None = None,
        stderr: int | None = None,
        **settings: str,
    ) -> asyncio.subprocess.Process:
        own = {f"RELAY_{name}": value for name, value in settings.items()}
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "relay", *arguments),
            cwd=at,
            env={**self._environment, **self.settings, **sign_in(role), **own},
            stdout=stdout,
            stderr=stderr,
        )

    async def nats_cli(self, *arguments: str, role: str = "operator", stdin: int | None = None) -> tuple[int, str]:
        """Run `nats` as a user; returns its exit code and what it printed."""
        process = await asyncio.create_subprocess_exec(
            *("nats", "--server", ",".join(self.cluster.urls), "--user", role, "--password", password(role)),
            *("--timeout", "20s", *arguments),
            stdin=asyncio.subprocess.DEVNULL if stdin is None else stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        return process.returncode or 0, out.decode()

    # The producer, and what became of its updates.

    async def publish(self, job: str, status: str, output: str = "") -> None:
        """Publish an update until it is confirmed."""
        body = json.dumps({"uuid": job, "status": status, "metadata": {"output": output}}).encode()
        headers = {"Nats-Msg-Id": str(uuid4())}
        async with self._publishing:
            began_s = time.monotonic()
            while True:
                with contextlib.suppress(RelayError):
                    await publish_confirmed(self.nats, status_subject(job), body, headers, timeout_s=2)
                    break
                await asyncio.sleep(0.05)
            self.published.append((job, status))
            self.longest_s = max(self.longest_s, time.monotonic() - began_s)

    async def publish_jobs(self) -> None:
        """Publish the lives of jobs, one after another, until cancelled."""
        while True:
            job = str(uuid4())
            for status in STATUSES:
                await self.publish(job, status)
                await asyncio.sleep(self.pause_s)

    def counted(self) -> tuple[int, int, int]:
        """How many updates were published, how many arrived out of order, and how many the Facilitator had already."""
        return len(self.published), self._reordered(), self.facilitator.replies["job.integrity_error"]

    async def until_settled(self, within_s: float = 90) -> int:
        """Wait until every update has arrived that is published by now; returns how many have not."""
        published, until_s = list(self.published), time.monotonic() + within_s
        while (missing := self._missing(published)) and time.monotonic() < until_s:  # noqa: ASYNC110 - of other processes
            await asyncio.sleep(0.2)
        return len(missing)

    async def dead_letters(self) -> int:
        return (await api_request(self.nats, api_stream_info(DLQ_STREAM)))["state"]["messages"]

    @contextlib.asynccontextmanager
    async def quiet(self) -> AsyncIterator[None]:
        """No update is published in this block, which begins when all are settled."""
        async with self._publishing:
            await self.until_settled()
            yield

    def _missing(self, published: list[tuple[str, str]]) -> list[tuple[str, str]]:
        arrived = {(row.uuid, row.status) for row in self.facilitator.rows}
        return [each for each in published if each not in arrived]

    def _reordered(self) -> int:
        place, last, count = {status: i for i, status in enumerate(STATUSES)}, dict[str, int](), 0
        for row in self.facilitator.rows:
            if row.status in place:
                count += place[row.status] < last.get(row.uuid, -1)
                last[row.uuid] = place[row.status]
        return count


@contextlib.asynccontextmanager
async def site(**settings: str) -> AsyncIterator[Site]:
    """A cluster of three, provisioned; with a producer that publishes, and no relay yet."""
    give_passwords()
    with tempfile.TemporaryDirectory() as logs:
        async with (
            NatsCluster(users(), ANYBODY, ANYBODY) as cluster,
            FacilitatorSimulator() as facilitator,
        ):
            nats = await connect(NatsSettings(urls=cluster.urls, user=ANYBODY, password=ANYBODY), name="rehearsal")
            site = Site(cluster, facilitator, nats, Path(logs))
            site.settings |= settings
            code, out = await site.relay("provision")
            assert code == 0, out
            publishing = asyncio.create_task(site.publish_jobs())
            try:
                yield site
            finally:
                publishing.cancel()
                for relay in site.relays:
                    await relay.end()
                await close(nats)


def require(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            sys.exit(f"{program} is not on PATH (docs/operations.md says which version, and how to get it)")
