"""A relay between a real nats-server and the simulated Facilitator, and a check of its promise.

    async with Scene(server, facilitator) as scene, scene.relay():
        await scene.publish(job, "accepted")
        assert await scene.broken_promises() == []

Tests wait for what happens on the wire: the scene subscribes to the relay's own acknowledgements.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from oracle import Published, oracle
from polling import until
from prometheus_client.parser import text_string_to_metric_families

from relay.contract.environment import load_settings
from relay.contract.settings import Settings
from relay.contract.subjects import (
    DLQ_STREAM,
    DLQ_SUBJECTS,
    LEASE_SUBJECTS,
    STATUS_STREAM,
    Reason,
    api_consumer_info,
    lane_consumer,
    lane_of,
    receipt_subject,
    status_subject,
)
from relay.dead_letters.stored import StoredDeadLetter
from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer
from relay.nats.ack_subject import ack_of_nothing, all_acks, parse_ack_subject
from relay.nats.connection import close, connect
from relay.nats.jetstream import api_request, publish_confirmed
from relay.nats.messages import find_message
from relay.service.app import Relay
from relay.service.intervals import DEFAULTS, Intervals
from relay.timing.waiting import set_within
from relay.topology.provision import provision, topology_of

STATUSES = ("received", "accepted", "executor_ready", "volumes_ready", "execution_done", "completed")
"""The statuses of a job's life, in order."""
ACKED, TERMED = "+ACK", "+TERM"
DUPLICATE = "job.integrity_error"
PROBE = "union_tag_not_found"
"""How the Facilitator answers the empty object that the relay sends first if it need not authenticate."""
_OF_LANES = ("relay_takeovers", "relay_lanes_left")
_QUICK = {
    "RELAY_FACILITATOR_AUTH": "none",
    "RELAY_HTTP_PORT": "0",
    "RELAY_MAX_ATTEMPTS": "3",
    "RELAY_BACKOFF_INITIAL": "0.05",
    "RELAY_BACKOFF_MAX": "0.2",
}


def new_job(lane: int | None = None, lanes: int = 4) -> str:
    """A new UUID; with `lane`, one whose updates belong to that lane."""
    job = str(uuid.uuid4())
    return job if lane in (None, lane_of(job, lanes)) else new_job(lane, lanes)


def update(job: str, status: Any = "accepted", metadata: Any = None, **changes: Any) -> bytes:
    """The body of an update; a field whose value is `...` is left out."""
    fields = {"message_type": "V0JobStatusUpdate", "uuid": job, "status": status, "metadata": metadata} | changes
    return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()


@dataclass(frozen=True, slots=True)
class Taking:
    """A change of a lane's owner, seen in the lease bucket. `worker` is empty if the lane was released.

    `heard_s` is on the monotonic clock. A lease that expires is not seen.
    """

    heard_s: float
    lane: int
    worker: str

    @property
    def pid(self) -> int | None:
        """The worker's process id; None if the lane was released."""
        return int(self.worker.rsplit("-", 2)[1]) if self.worker else None


class Scene:
    """A provisioned `server` and a running `facilitator`, with a producer's connection to NATS.

    `variables` are settings of the relay without their prefix, such as `MAX_ATTEMPTS="1"`. They replace the scene's
    defaults, which are small and quick.
    """

    def __init__(self, server: NatsServer, facilitator: FacilitatorSimulator, **variables: str) -> None:
        self.server = server
        self.facilitator = facilitator
        self.environment = {
            **_QUICK,
            "RELAY_NATS_URL": server.url,
            "RELAY_FACILITATOR_URL": facilitator.url,
            **{f"RELAY_{name}": value for name, value in variables.items()},
        }
        self.published: list[Published] = []
        self.takings: list[Taking] = []
        """The changes of the lanes' owners, in order."""
        self._settled: dict[int, asyncio.Future[str]] = {}
        self._beats: dict[int, asyncio.Event] = {}
        self._news = asyncio.Event()
        self._taken = asyncio.Event()
        self._reconnected = asyncio.Event()

    async def __aenter__(self) -> Self:
        self.nc = await connect(self.settings.nats, name="test", on_reconnected=self._on_reconnected)
        await self.provision()
        for subject in all_acks(STATUS_STREAM):
            await self.nc.subscribe(subject, cb=self._on_word)
        await self.nc.subscribe(self.nc.on_wire(LEASE_SUBJECTS), cb=self._on_lease)
        await self.nc.flush()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await close(self.nc, timeout_s=2)

    @property
    def settings(self) -> Settings:
        return load_settings(self.environment, None)

    def settings_of(self, **variables: str) -> Settings:
        """The settings of a relay or a command with `variables` of its own."""
        return load_settings(self._changed(variables), None)

    async def provision(self, *, downgrade: bool = False) -> None:
        """Create or update streams and consumers as they should be, with `downgrade` also for shorter leases."""
        await provision(self.nc, topology_of(self.settings.delivery), downgrade=downgrade)

    # The relay.

    @contextlib.asynccontextmanager
    async def relay(
        self, authentication: str | None = None, *, intervals: Intervals = DEFAULTS, **variables: str
    ) -> AsyncIterator[Relay]:
        """A relay in this process that takes lanes; drained and stopped at the end.

        `variables` are settings of this relay alone.
        """
        async with running(Relay(self.settings_of(**variables), authentication, intervals=intervals)) as (relay, ended):
            ready = asyncio.create_task(relay.ready.wait())
            await asyncio.wait({ended, ready}, return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
            if not ended.done():
                yield relay

    @contextlib.asynccontextmanager
    async def relay_process(self, **variables: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """`relay serve` as a process of its own, connected; killed at the end if it still runs."""
        connections = self.facilitator.accepted
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "relay", "serve"), env={"PATH": os.environ["PATH"], **self._changed(variables)}
        )
        try:
            await self.facilitator.wait_for(lambda facilitator: facilitator.accepted > connections, 30)
            yield process
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
            await process.wait()

    @property
    def owners(self) -> dict[int, Taking]:
        """The last taking of each lane; a lane that was released has no owner."""
        last = {taking.lane: taking for taking in self.takings}
        return {lane: taking for lane, taking in last.items() if taking.worker}

    def lanes_of(self, process: asyncio.subprocess.Process) -> set[int]:
        """The lanes that this worker process took last."""
        return {lane for lane, taking in self.owners.items() if taking.pid == process.pid}

    async def owned(self, condition: Callable[[], bool], timeout_s: float = 10) -> None:
        """Wait until `condition()` holds; it is checked whenever a lane changes its owner."""
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    self._taken.clear()
                    await self._taken.wait()
        except TimeoutError:
            raise TimeoutError(f"not so after {timeout_s} s: {self.owners}") from None

    def _changed(self, variables: dict[str, str]) -> dict[str, str]:
        return self.environment | {f"RELAY_{name}": value for name, value in variables.items()}

    # The producer.

    async def publish(
        self, job: str, status: str = "accepted", metadata: Any = None, *, dead_letter: Reason | None = None
    ) -> Published:
        """Publish an update and wait for its PubAck. `dead_letter`: the reason with which it must be dead-lettered."""
        return await self.publish_body(job, update(job, status, metadata), status=status, dead_letter=dead_letter)

    async def publish_life(self, job: str, statuses: Iterable[str] = STATUSES) -> list[Published]:
        """Publish a job's updates, each after the PubAck of the one before."""
        return [await self.publish(job, status, {}) for status in statuses]

    async def publish_lives(self, jobs: int) -> list[Published]:
        """Publish the lives of new jobs concurrently, so that the window holds updates of several jobs at any time."""
        lives = await asyncio.gather(*(self.publish_life(new_job()) for _ in range(jobs)))
        return [update for life in lives for update in life]

    async def publish_body(
        self,
        job: str,
        body: bytes,
        headers: dict[str, str] | None = None,
        *,
        status: str | None = None,
        dead_letter: Reason | None = None,
    ) -> Published:
        """Publish any bytes on the subject of `job`. `status` is what the Facilitator must store of them."""
        ack = await publish_confirmed(self.nc, status_subject(job), body, headers)
        self.published.append(Published(ack.sequence, job, status, dead_letter))
        return self.published[-1]

    # The results.

    async def settled(self, *updates: Published, timeout_s: float = 10) -> list[str]:
        """Wait until the relay has settled all of these; returns ACKED or TERMED for each."""
        async with asyncio.timeout(timeout_s):
            return list(await asyncio.gather(*(self._settlement(each.sequence) for each in updates)))

    async def reconnected(self, timeout_s: float = 10) -> None:
        """Wait until the producer's connection is back, after the server was away."""
        async with asyncio.timeout(timeout_s):
            await self._reconnected.wait()
        self._reconnected.clear()

    async def kept(self, update: Published, timeout_s: float = 10) -> None:
        """Wait until the relay next extends the update's ack wait (`+WPI`)."""
        beat = self._beats[update.sequence] = asyncio.Event()
        async with asyncio.timeout(timeout_s):
            await beat.wait()

    async def unsettled(self) -> int:
        """How many updates of the lanes are not delivered or not acknowledged yet."""
        left = 0
        for lane in range(self.settings.delivery.lanes):
            consumer = lane_consumer(lane)
            # The answer shows that the server has processed all acknowledgements before.
            await self.nc.request(ack_of_nothing(STATUS_STREAM, consumer), b"+WPI", timeout=5)
            info = await api_request(self.nc, api_consumer_info(STATUS_STREAM, consumer))
            left += info["num_pending"] + info["num_ack_pending"]
        return left

    async def dust_settled(self, timeout_s: float = 10) -> None:
        """Wait until nothing is unsettled. Raises TimeoutError, which names what is left, after `timeout_s` seconds."""
        left = -1
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    self._news.clear()
                    if not (left := await self.unsettled()):
                        return
                    # The server may answer before it has taken in what was heard; it tells nobody of that.
                    await set_within(self._news, 0.05)
        except TimeoutError:
            raise TimeoutError(f"{left} updates are unsettled after {timeout_s} s: {self.facilitator!r}") from None

    async def dead_letters(self, subjects: str = DLQ_SUBJECTS) -> list[StoredDeadLetter]:
        """The dead letters on these subjects, in stream order."""
        letters: list[StoredDeadLetter] = []
        request = {"next_by_subj": subjects, "seq": 1}
        while (message := await find_message(self.nc, DLQ_STREAM, request)) is not None:
            letters.append(StoredDeadLetter.of(message))
            request["seq"] = message.sequence + 1
        return letters

    async def broken_promises(self, timeout_s: float = 10) -> list[str]:
        """What the oracle says when everything is settled."""
        await self.dust_settled(timeout_s)
        return oracle(self.published, self.facilitator.rows, await self.dead_letters())

    def _on_reconnected(self) -> None:
        self._reconnected.set()
        self._news.set()  # what was settled while disconnected was not heard

    async def _on_word(self, message: Msg) -> None:
        word, sequence = message.data.split()[0].decode(), parse_ack_subject(message.subject.encode()).sequence
        if word == "+WPI" and sequence in self._beats:
            self._beats.pop(sequence).set()
        elif word in (ACKED, TERMED):
            if not (settlement := self._settlement(sequence)).done():
                settlement.set_result(word)
            self._news.set()

    async def _on_lease(self, message: Msg) -> None:
        kind, name = message.subject.split(".")[-2:]
        owner = self.owners.get(int(name)) if kind == "lane" else None
        if kind == "lane" and message.data.decode() != (owner.worker if owner else ""):
            self.takings.append(Taking(time.monotonic(), int(name), message.data.decode()))
            self._taken.set()

    def _settlement(self, sequence: int) -> asyncio.Future[str]:
        return self._settled.setdefault(sequence, asyncio.get_running_loop().create_future())


@contextlib.asynccontextmanager
async def running(relay: Relay) -> AsyncIterator[tuple[Relay, asyncio.Task[None]]]:
    """The relay, told to run, and the task in which it does; drained and stopped at the end."""
    stop = asyncio.Event()
    task = asyncio.create_task(relay.run(stop))
    try:
        yield relay, task
    finally:
        stop.set()
        await task


@contextlib.asynccontextmanager
async def serving(scene: Scene, **variables: str) -> AsyncIterator[Relay]:
    """A relay that answers requests for the status of jobs."""
    async with scene.relay(**variables) as relay:
        await relay.serving.wait()
        yield relay


async def said(relay: Relay, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """What /readyz says as soon as the condition holds for it."""

    async def look() -> dict[str, Any] | None:
        told = await relay.worker_status.readiness()
        return told if condition(told) else None

    return await until(look)


async def missing(relay: Relay, part: str) -> str:
    """The sentence with `part` among what /readyz calls missing, as soon as there is one; others may come first."""
    told = await said(relay, lambda told: part in str(told["missing"]))
    return next(sentence for sentence in told["missing"] if part in sentence)


async def heard_no_receipt(nc: Client, job: str) -> None:
    """Publish something that is no receipt again and again, until somebody hears it."""
    with contextlib.suppress(nats.errors.TimeoutError):
        while True:
            with contextlib.suppress(nats.errors.NoRespondersError):
                await nc.request(receipt_subject(job), b'{"uuid":"\xff"}', timeout=0.1)


def counters(relay: Relay) -> Counter[str]:
    """The relay's counters by name without `_total`, and label, such as `relay_retries`; without those of lanes."""
    return Counter({name: int(value) for name, value in _samples(relay, "counter") if not name.startswith(_OF_LANES)})


def lane_changes(relay: Relay) -> Counter[str]:
    """The relay's counters of lanes taken and left: `relay_takeovers free`, `relay_lanes_left lost`."""
    return Counter({name: int(value) for name, value in _samples(relay, "counter") if name.startswith(_OF_LANES)})


def gauges(relay: Relay) -> dict[str, float]:
    """The relay's gauges by name and label: `relay_in_flight`, `relay_at_hand 0`."""
    return dict(_samples(relay, "gauge"))


def _samples(relay: Relay, kind: str) -> Iterator[tuple[str, float]]:
    relay.worker_status.refresh_metrics()
    for family in text_string_to_metric_families(relay.metrics.render().decode()):
        if family.type == kind and family.name.startswith("relay_"):
            for sample in family.samples:
                yield " ".join((family.name, *sample.labels.values())), sample.value
