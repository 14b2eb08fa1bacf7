"""Breaks one of eight things, without saying which, so that people can practise to find it with `relay doctor` alone.

Run it from the top of the repository as `make rehearse-incident`. It starts a nats-server with the users of
deploy/nats/users.conf, a simulated Facilitator and a relay, breaks something, and says how to call the doctor. When you
press Enter, it says what it was. `make rehearse-incidents` breaks all eight, one after another, and lets the doctor
find each within a minute; it ends with exit code 1 if one is not found. tests/doctor/test_incidents.py does the same.
"""

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from started_relay import StartedRelay

from relay.contract.errors import RelayError
from relay.contract.settings import NatsSettings
from relay.contract.subjects import (
    STATUS_STREAM,
    api_consumer_delete,
    api_stream_info,
    api_stream_update,
    lane_consumer,
    status_subject,
)
from relay.local.facilitator import FacilitatorSimulator
from relay.local.faults import DROP_BEFORE_STORING
from relay.local.ledger import DROPPED
from relay.local.server import NatsServer
from relay.nats.connection import close, connect
from relay.nats.frames import FrameClient
from relay.nats.jetstream import api_request, publish_confirmed
from relay.topology.provision import Topology, provision

USERS: Final = Path(__file__).parents[2] / "deploy/nats/users.conf"
ANYBODY: Final = "anybody"
WITHIN_S: Final = 60
CLOCK_OFF_S: Final = -90.0
CLOCK: Final = """
import sys, time
real, ahead_s = time.time, float(sys.argv.pop(1))
time.time = lambda: real() + ahead_s
from relay.cli import main
main()
"""
"""`relay` with another clock: there is no clock of its own for a process without a machine of its own."""
LARGE_BYTES: Final = 400_000


@dataclasses.dataclass(frozen=True, slots=True)
class Site:
    """What can be broken."""

    server: NatsServer
    config: Path
    """The configuration of the server."""
    facilitator: FacilitatorSimulator
    nats: FrameClient
    """A connection that may do everything."""
    set_clock: Callable[[float], Awaitable[None]]
    """Gives the relay a clock that is so many seconds ahead."""

    async def publish(self, job: str, body: dict[str, Any] | None = None, padding: int = 0) -> None:
        update = body or {"uuid": job, "status": "accepted", "metadata": {"padding": "x" * padding}}
        await publish_confirmed(self.nats, status_subject(job), json.dumps(update).encode(), timeout_s=1)


@dataclasses.dataclass(frozen=True, slots=True)
class Incident:
    """`cause` and `way_out` are words of the same line of the doctor, from what it found and from its advice."""

    name: str
    happens: Callable[[Site], Awaitable[None]]
    check: str
    cause: str
    way_out: str

    def is_named(self, findings: list[dict[str, str]]) -> bool:
        """Whether the doctor names the cause and the way out."""
        return any(
            finding["check"] == self.check
            and finding["verdict"] != "ok"
            and self.cause in finding["found"]
            and self.way_out in finding["remedy"]
            for finding in findings
        )


async def facilitator_away(site: Site) -> None:
    await site.facilitator.away(DROPPED)


async def poison(site: Site) -> None:
    """An update at which the Facilitator drops the connection each time."""
    await site.publish(str(uuid4()))
    job = str(uuid4())
    site.facilitator.inject(DROP_BEFORE_STORING, uuid=job, times=None)
    await site.publish(job)


async def lanes_raised(site: Site) -> None:
    """Somebody provisions twice as many lanes, and restarts no relay."""
    await provision(site.nats, Topology(lanes=8, replicas=1, ack_wait_s=5, max_deliver=50, lease_ttl_s=5))


async def disk_full(site: Site) -> None:
    """A write fails; then there is room again."""
    _, most = resource.prlimit(site.server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(site.server.pid, resource.RLIMIT_FSIZE, (LARGE_BYTES // 2, most))
    with contextlib.suppress(RelayError):
        await site.publish(str(uuid4()), padding=LARGE_BYTES)
    resource.prlimit(site.server.pid, resource.RLIMIT_FSIZE, (most, most))


async def consumer_deleted(site: Site) -> None:
    await api_request(site.nats, api_consumer_delete(STATUS_STREAM, lane_consumer(2)))


async def clock_off(site: Site) -> None:
    await site.set_clock(CLOCK_OFF_S)


async def permission_removed(site: Site) -> None:
    """The relay's user may write no dead letters any more."""
    configured = site.config.read_text()
    changed = configured.replace('"job.dlq.*", "job.request.*"', '"job.request.*"')
    assert changed != configured, "users.conf has changed"
    site.config.write_text(changed)
    os.kill(site.server.pid, signal.SIGHUP)


async def stream_edited(site: Site) -> None:
    """As `nats stream edit JOB_STATUS --max-age 1h`."""
    config = (await api_request(site.nats, api_stream_info(STATUS_STREAM)))["config"]
    await api_request(site.nats, api_stream_update(STATUS_STREAM), config | {"max_age": 3600 * 10**9})


INCIDENTS: Final = (
    Incident("the Facilitator is away", facilitator_away, "facilitator", "cannot connect to ws://", "it is down"),
    Incident("a poison update", poison, "dead letters", "connection_dropped 1", "read the Facilitator's log"),
    Incident(
        "no worker for a lane", lanes_raised, "topology", "lanes 8 -> 4", "start the relays and this with RELAY_LANES=8"
    ),
    Incident("the disk was full", disk_full, "intake", "JOB_STATUS stores nothing", "make room, and restart it"),
    Incident(
        "a consumer is deleted", consumer_deleted, "lanes", "relay-lane-2 is missing", "run `relay provision` now"
    ),
    Incident("a clock is 90 s off", clock_off, "clock", "its clock is 90 s behind", "NTP"),
    Incident("a permission is missing", permission_removed, "permissions", "job.dlq", "permit it"),
    Incident("a stream was edited", stream_edited, "topology", "max_age 1h -> 7d", "run `relay provision`"),
)


class Rehearsal:
    """A site whose relay is a process of its own, as is the doctor."""

    def __init__(self, config: Path, server: NatsServer, facilitator: FacilitatorSimulator, nats: FrameClient) -> None:
        self.site = Site(server, config, facilitator, nats, self._restart)
        self.settings = {
            "RELAY_NATS_URL": server.url,
            "RELAY_NATS_USER": "relay",
            "RELAY_NATS_PASSWORD": os.environ["NATS_RELAY_PASSWORD"],
            "RELAY_NATS_INBOX_PREFIX": "_INBOX_relay",
            "RELAY_FACILITATOR_URL": facilitator.url,
            "RELAY_FACILITATOR_AUTH": "none",
        }
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
        self._environment |= self.settings

    async def start(self, ahead_s: float = 0.0) -> None:
        """Start the relay, and wait until it relays."""
        log = self.site.config.with_name("relay.log")
        with log.open("wb") as file:
            process = await self._run("-c", CLOCK, str(ahead_s), "serve", stderr=file.fileno())
        self._relay = StartedRelay(process, log)
        await self.site.publish(str(uuid4()))
        rows = len(self.site.facilitator.rows)
        await self.site.facilitator.wait_for(lambda facilitator: len(facilitator.rows) > rows, WITHIN_S)

    async def stop(self) -> None:
        await self._relay.stop()

    async def examine(self) -> list[dict[str, str]]:
        """What `relay doctor` finds."""
        doctor = await self._run("-m", "relay", "doctor", "--json", stdout=asyncio.subprocess.PIPE)
        return json.loads((await doctor.communicate())[0])["findings"]

    async def find(self, incident: Incident) -> float:
        """Break it, and call the doctor until it names it; returns how many seconds that took."""
        if incident.is_named(await self.examine()):
            sys.exit(f"{incident.name}: the doctor names it before it has happened")
        began_s = time.monotonic()
        await incident.happens(self.site)
        while not incident.is_named(findings := await self.examine()):
            if time.monotonic() - began_s > WITHIN_S:
                sys.exit(f"{incident.name}: the doctor does not name it within {WITHIN_S} s: {findings}")
        return time.monotonic() - began_s

    async def _restart(self, ahead_s: float) -> None:
        await self.stop()
        await self.start(ahead_s)

    async def _run(self, *arguments: str, **pipes: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(sys.executable, *arguments, env=self._environment, **pipes)


@contextlib.asynccontextmanager
async def rehearsal() -> AsyncIterator[Rehearsal]:
    """A new server, Facilitator and relay."""
    for user in ("PRODUCER", "RUNNER", "RELAY", "OPERATOR", "OBSERVER", "ADMIN"):
        os.environ[f"NATS_{user}_PASSWORD"] = f"secret-of-{user.lower()}"
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "nats-server.conf"
        users = USERS.read_text().replace("users: [", f"users: [{{user: {ANYBODY}, password: {ANYBODY}}}", 1)
        config.write_text(f'jetstream {{store_dir: "store"}}\nmax_payload: 8MB\n{users}')
        async with NatsServer(config_file=config) as server, FacilitatorSimulator() as facilitator:
            nats = await connect(NatsSettings(urls=(server.url,), user=ANYBODY, password=ANYBODY), name="rehearsal")
            await provision(nats, Topology(lanes=4, replicas=1, ack_wait_s=5, max_deliver=50, lease_ttl_s=5))
            rehearsal = Rehearsal(config, server, facilitator, nats)
            try:
                await rehearsal.start()
                yield rehearsal
            finally:
                await rehearsal.stop()
                await close(nats)


async def practise() -> None:
    """Break one thing, and let somebody find it."""
    incident = random.choice(INCIDENTS)
    async with rehearsal() as running:
        await incident.happens(running.site)
        variables = " ".join(f"{name}={value}" for name, value in running.settings.items())
        print(
            f"Something is broken. What is it, and what is to be done? In another terminal:\n\n{variables} relay doctor"
        )
        await asyncio.to_thread(input, "\nPress Enter to be told. ")
        print(
            f"{incident.name}: see the line {incident.check!r}, {incident.cause!r}, and {incident.way_out!r} below it"
        )


async def find_all() -> None:
    """Break each thing, and let the doctor find it."""
    print(f"{'incident':26} {'the doctor names it in the line':32}")
    for incident in INCIDENTS:
        async with rehearsal() as running:
            print(f"{incident.name:26} {incident.check:16} {await running.find(incident):4.0f} s", flush=True)


if __name__ == "__main__":
    logging.disable()  # the client reports each server that is stopped
    asyncio.run(find_all() if "--all" in sys.argv else practise())
