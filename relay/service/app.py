"""The composition root: makes every part, connects them, starts them in order and stops them in the reverse order."""

import asyncio
import contextlib
import os
import random
import secrets
import socket
from collections.abc import Coroutine
from importlib.metadata import version
from typing import Any, Final, TypeVar

from relay.contract.errors import BrokerUnavailable, NotProvisioned
from relay.contract.settings import Settings
from relay.contract.subjects import STATUS_STREAM, lane_consumer, safe_token
from relay.contract.text import redact_url
from relay.core.backoff import Backoff
from relay.core.ports import InFlight
from relay.core.progress import LaneProgress
from relay.core.pull import expiry_s
from relay.core.session import Session
from relay.dead_letters.writer import DeadLetterWriter
from relay.facilitator.connection import Facilitator
from relay.leases.lane_count import LaneCount
from relay.leases.leases import Leases
from relay.leases.ownership import Ownership
from relay.nats.connection import Requester, close, connect, require_server
from relay.nats.frames import FrameClient
from relay.observability.logs import get_logger
from relay.observability.loop_lag import measure_loop_lag
from relay.observability.metrics import Metrics
from relay.observability.tracing import open_tracing
from relay.path.advisories import Advisories
from relay.path.backlog import Backlog
from relay.path.consumer import PullConsumer
from relay.path.lanes import Dispatcher
from relay.path.limits import Limits
from relay.path.receipts import Receipts
from relay.path.requests import Requests
from relay.query.answers import Answers
from relay.query.archive import Archive
from relay.query.progress_sources import ProgressSources
from relay.query.responders import ReportingDriver, serve_reports
from relay.query.service import StatusService
from relay.service.health import HealthServer, listen
from relay.service.worker_status import Line, WorkerStatus
from relay.topology.provision import LANE_CAPACITY, check, provision, topology_of

R = TypeVar("R")
_log = get_logger(__name__)

DRAIN_S: Final = 10.0
"""How long a lane that is given up may take to finish what is with the Facilitator."""
_LAST_PUSHES_S: Final = 5.0
_BATCH: Final = LANE_CAPACITY // 2
_PROVISION_CHECK_S: Final = 2.0


class Relay:
    """One worker process: its share of the lanes, its connections, probes and metrics.

    Args:
        settings: must have passed `require_facilitator`.
        authentication: the first message to the Facilitator, or None if it wants none.
        provision_first: bring streams and consumers to the wanted state instead of waiting until somebody does.
        listener: where to answer probes, instead of on RELAY_HTTP_HOST and RELAY_HTTP_PORT.

    Raises ConfigurationError if the port for probes and metrics is taken, or tracing is wanted and cannot be had.
    """

    def __init__(
        self,
        settings: Settings,
        authentication: str | None,
        *,
        provision_first: bool = False,
        listener: socket.socket | None = None,
    ) -> None:
        self.metrics = Metrics(settings.delivery.lanes)
        self.ready = asyncio.Event()
        """Set when updates flow for the first time."""
        self.serving = asyncio.Event()
        """Set when requests for the status of jobs are answered."""
        self._settings = settings
        self._authentication = authentication
        self._provision_first = provision_first
        self._backoff = Backoff(settings.delivery.backoff_initial_s, settings.delivery.backoff_max_s, random.random)
        # Random, because a process in a container often has the same id as the one before it.
        self._worker = safe_token(f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(3)}")
        self._version = version("job-status-relay")
        self._tracing = open_tracing(settings.tracing, worker=self._worker, version=self._version)
        self.worker_status = WorkerStatus(settings, self.metrics, worker=self._worker, version=self._version)
        """What keeps updates from flowing, the metrics, and the report."""
        self._lines: list[Line] = []
        self._ownership: Ownership | None = None
        self._closed = asyncio.Event()
        self._health = HealthServer(listener or listen(settings.http.host, settings.http.port), self.worker_status)

    @property
    def http_port(self) -> int:
        """The port of probes and metrics."""
        return self._health.port

    async def run(self, stop: asyncio.Event) -> None:
        """Relay until `stop` is set, then drain.

        Raises UnsuitableServer, UnsafeChange or JetStreamError if NATS cannot carry the relay, BrokerUnavailable
        if the server closed the connection for good. Waits for whatever is merely away.
        """
        async with asyncio.TaskGroup() as group:
            probes = group.create_task(self._health.serve())
            try:
                await self._connect_and_relay(stop)
            finally:
                if self._tracing is not None:
                    await self._tracing.close()
            probes.cancel()
        _log.info("stopped")

    async def _connect_and_relay(self, stop: asyncio.Event) -> None:
        nc = await _unless(stop, self._connect())
        if nc is None:
            return
        try:
            if await _unless(stop, self._until_provisioned(nc)):
                await self._relay(nc, stop)
        finally:
            await close(nc)

    async def _relay(self, nc: FrameClient, stop: asyncio.Event) -> None:
        requests, receipts = Requests(nc, self._backoff, self.metrics), Receipts(nc, self.metrics)
        self._lines = self._make_lines(nc, requests, receipts if self._settings.delivery.receipts else None)
        self._ownership = self._make_ownership(nc)
        lane_count = LaneCount(nc, self._settings.delivery.lanes)
        leave = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            carrying = [group.create_task(requests.run()), group.create_task(receipts.run())]
            carrying.append(group.create_task(measure_loop_lag(self.metrics.loop_lagged)))
            carrying.append(group.create_task(Backlog(nc, self.worker_status.lanes, self.metrics).run()))
            carrying.append(group.create_task(lane_count.run()))
            carrying.append(group.create_task(self._make_service(nc).run()))
            carrying.append(group.create_task(serve_reports(nc, self.worker_status.report)))
            for dispatcher, facilitator in self._lines:
                carrying.append(group.create_task(dispatcher.run()))
                carrying.append(group.create_task(facilitator.run(dispatcher)))
            owning = group.create_task(self._ownership.run(leave))
            self.worker_status.relaying(self._lines, self._ownership, lane_count)
            self.ready.set()
            await self._until_stopped(stop)
            # Lanes first: their answers come over the connections that also bring pushes, which are published last.
            self.worker_status.waiting_for = "stopping"
            _log.info("draining", lanes=self._ownership.lanes, at_most_s=DRAIN_S)
            leave.set()
            await owning
            await _publish_the_rest(requests)
            for task in carrying:
                task.cancel()

    async def _until_stopped(self, stop: asyncio.Event) -> None:
        if await _unless(stop, self._closed.wait()):
            servers = list(map(redact_url, self._settings.nats.urls))
            raise BrokerUnavailable(servers, "the server closed the connection for good")

    async def _connect(self) -> FrameClient:
        attempt = 0
        while True:
            try:
                return await self._connect_once()
            except BrokerUnavailable as error:
                self._wait_for(str(error))
                attempt += 1
                await asyncio.sleep(self._backoff.delay_s(attempt))

    async def _connect_once(self) -> FrameClient:
        nc = await connect(
            self._settings.nats,
            name="job-status-relay",
            on_reconnected=self._on_reconnected,
            on_closed=self._closed.set,
        )
        try:
            await require_server(nc)
        except BaseException:
            await close(nc)
            self._closed.clear()
            raise
        self.worker_status.client = nc
        return nc

    async def _until_provisioned(self, nc: FrameClient) -> bool:
        topology = topology_of(self._settings.delivery)
        while True:
            try:
                if self._provision_first:
                    for line in (await provision(nc, topology)).lines:
                        _log.info(line)
                    return True
                plan = await check(nc, topology)
            except BrokerUnavailable as error:
                self._wait_for(str(error))
            else:
                if plan.in_place:
                    return True
                self._wait_for(str(NotProvisioned(plan.differences)))
            await asyncio.sleep(_PROVISION_CHECK_S)

    def _make_ownership(self, nc: FrameClient) -> Ownership:
        delivery = self._settings.delivery
        drivers = [ReportingDriver(nc, dispatcher, dispatcher.standing) for dispatcher, _ in self._lines]

        def driver_of(lane: int) -> ReportingDriver:
            return drivers[lane % len(drivers)]

        leases = Leases(nc, self._worker, delivery.lease_ttl_s)
        return Ownership(leases, delivery.lanes, driver_of, drain_s=DRAIN_S, metrics=self.metrics)

    def _make_service(self, nc: FrameClient) -> StatusService:
        lanes = self._settings.delivery.lanes

        def here(lane: int, job: str) -> LaneProgress | None:
            return self._lines[lane % len(self._lines)][0].standing(lane, job)

        def answers(client: Requester) -> Answers:
            archive = Archive(client)
            return Answers(archive, ProgressSources(client, archive, here, lanes), lanes, lambda: nc.max_payload)

        return StatusService(nc, answers, worker=self._worker, version=self._version, on_serving=self.serving.set)

    def _make_lines(self, nc: FrameClient, requests: Requests, receipts: Receipts | None) -> list[Line]:
        """A dispatcher for each connection to the Facilitator; no more of them than there are lanes."""
        connections = min(self._settings.facilitator.connections, self._settings.delivery.lanes)
        return [self._make_line(nc, requests, receipts) for _ in range(connections)]

    def _make_line(self, nc: FrameClient, requests: Requests, receipts: Receipts | None) -> Line:
        settings, delivery = self._settings.facilitator, self._settings.delivery
        session: Session[InFlight] = Session(
            window=settings.window, reply_timeout_s=settings.reply_timeout_s, authentication=self._authentication
        )
        facilitator = Facilitator(
            settings.url, session, self._backoff, self.metrics, ping_timeout_s=settings.reply_timeout_s
        )

        expires_s = expiry_s(delivery.lease_ttl_s, delivery.ack_wait_s)

        def open_source(lane: int, **callbacks: Any) -> PullConsumer:
            return PullConsumer(nc, STATUS_STREAM, lane_consumer(lane), batch=_BATCH, expires_s=expires_s, **callbacks)

        dead_letters = DeadLetterWriter(nc)
        dispatcher = Dispatcher(
            open_source,
            facilitator,
            dead_letters,
            requests,
            watch_advisories=lambda lane: Advisories(nc, lane, dead_letters, self.metrics).run(),
            limits=Limits(LANE_CAPACITY, delivery.max_attempts, delivery.ack_wait_s),
            backoff=self._backoff,
            metrics=self.metrics,
            receipts=receipts,
            tracing=self._tracing,
        )
        return dispatcher, facilitator

    def _on_reconnected(self) -> None:
        self.metrics.nats_reconnected()
        for dispatcher, _ in self._lines:
            dispatcher.on_broker_reconnected()

    def _wait_for(self, what: str) -> None:
        if what != self.worker_status.waiting_for:
            _log.error(what)
        self.worker_status.waiting_for = what


async def _publish_the_rest(requests: Requests) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LAST_PUSHES_S):
            await requests.drain()
    for push in requests.unpublished():
        _log.error("a push of the Facilitator could not be published before the end, and is lost", push=push)


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, R]) -> R | None:
    """The result of `work`, or None if `stop` came first; `work` is cancelled then."""
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)
