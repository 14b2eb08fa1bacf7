"""The composition root: makes every part, connects them, starts them in order and stops them in the reverse order."""

import asyncio
import contextlib
import os
import random
import secrets
import socket
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any, Final

from relay.contract.errors import (
    BrokerUnavailable,
    ConfigurationError,
    JetStreamError,
    NotProvisioned,
    RelayError,
    UnsafeChange,
    UnsuitableServer,
)
from relay.contract.settings import Settings
from relay.contract.subjects import safe_token
from relay.core.backoff import Backoff
from relay.core.connect_pace import ConnectPace, Place, any_place
from relay.core.floors import Floors
from relay.core.memory import Memory
from relay.core.ports import SettlementObserver
from relay.core.progress import LaneProgress
from relay.core.pull import expiry_s
from relay.core.verdict import RetryPolicy
from relay.facilitator.connection import Endpoint
from relay.leases.lane_count import LaneCount
from relay.leases.leases import Leases
from relay.leases.ownership import Ownership
from relay.nats.connection import close, connect
from relay.nats.frames import FrameClient
from relay.nats.jetstream import Requester, require_server
from relay.network.listener import listen
from relay.observability.logs import get_logger
from relay.observability.loop_lag import measure_loop_lag
from relay.observability.metrics import Metrics
from relay.observability.tracing import open_tracing
from relay.path.backlog import Backlog
from relay.path.dead_letter_count import DeadLetterCount
from relay.path.limits import LaneLimits
from relay.path.pushes import PushPublisher
from relay.path.receipts import Receipts
from relay.query.answers import Answers
from relay.query.archive import Archive
from relay.query.progress_sources import ProgressSources
from relay.query.responders import ReportingDriver, serve_reports
from relay.query.service import StatusService
from relay.service.health import HealthServer
from relay.service.intervals import DEFAULTS, Intervals
from relay.service.lifecycle import background, unless
from relay.service.line import Line, LineSettings, for_lane
from relay.service.permission_watch import PermissionWatch
from relay.service.worker_status import Parts, WorkerStatus
from relay.topology.intake import Intake
from relay.topology.provision import LANE_CAPACITY, check, provision, resume_all_lanes, topology_of, wanted
from relay.topology.watch import TopologyWatch

_NATS_RETRIES: Final = Backoff(initial_s=0.1, max_s=2.0, random=random.random)
"""The waits while NATS is away, or refuses to store: short, because a long outage is no reason to be late after it."""
_PASSING: Final = (BrokerUnavailable, UnsuitableServer, JetStreamError, UnsafeChange)
"""What may be mended on the side of NATS while the relay waits: a server is upgraded, an account gets JetStream."""
_log = get_logger(__name__)


class Relay:
    """One worker process: its share of the lanes, its connections, probes and metrics.

    Args:
        settings: must have passed `require_facilitator`.
        authentication: the first message to the Facilitator, or None if it wants none.
        provision_first: bring streams and consumers to the wanted state instead of waiting until somebody does.
        listener: where to answer probes, instead of on RELAY_HTTP_HOST and RELAY_HTTP_PORT.
        intervals: how long and how often it waits, where there is no setting for it.

    Raises ConfigurationError if the port for probes and metrics is taken, or tracing is wanted and cannot be had.
    """

    def __init__(
        self,
        settings: Settings,
        authentication: str | None,
        *,
        provision_first: bool = False,
        listener: socket.socket | None = None,
        intervals: Intervals = DEFAULTS,
    ) -> None:
        self.metrics = Metrics(settings.delivery.lanes)
        self.ready = asyncio.Event()
        """Set when updates flow for the first time."""
        self.serving = asyncio.Event()
        """Set when requests for the status of jobs are answered."""
        self._settings = settings
        self._authentication = authentication
        self._provision_first = provision_first
        self._intervals = intervals
        self._backoff = Backoff(settings.delivery.backoff_initial_s, settings.delivery.backoff_max_s, random.random)
        # Random, because a process in a container often has the same id as the one before it.
        self._worker = safe_token(f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(3)}")
        self._version = version("job-status-relay")
        self._tracing = open_tracing(settings.tracing, worker=self._worker, version=self._version)
        self.worker_status = WorkerStatus(settings, self.metrics, worker=self._worker, version=self._version)
        """What keeps updates from flowing, the metrics, and the report."""
        delivery = settings.delivery
        self._memory = Memory(delivery.memory_bytes, delivery.ack_wait_s, delivery.lanes)
        self._floors = Floors()
        self._lines: list[Line] = []
        self._ownership: Ownership | None = None
        self._place_until_known = any_place(random.random)
        self._health = HealthServer(
            [listener] if listener else listen(settings.http.host, settings.http.port, prefix="RELAY_HTTP"),
            self.worker_status,
        )

    @property
    def http_port(self) -> int:
        """The port of probes and metrics."""
        return self._health.port

    async def run(self, stop: asyncio.Event) -> None:
        """Relay until `stop` is set, then drain. What is started first is stopped last.

        Raises ConfigurationError if the credentials for NATS cannot be used. Waits while NATS or the Facilitator is
        away, refuses it, or cannot be used, such as without JetStream. Cancelling it loses no update.
        """
        async with contextlib.AsyncExitStack() as started:
            await started.enter_async_context(background(self._health.serve()))
            if self._tracing is not None:
                started.push_async_callback(self._tracing.close)
            client = await unless(stop, self._connect())
            if client is None:
                return
            started.push_async_callback(close, client)
            if await unless(stop, self._until_provisioned(client)):
                await self._relay(client, stop)
        _log.info("stopped")

    async def _relay(self, client: FrameClient, stop: asyncio.Event) -> None:
        """Likewise for all that needs NATS: pushes, the Facilitator, answers to requests, and at last the lanes."""
        pushes = PushPublisher(client, _NATS_RETRIES, self.metrics)
        receipts = Receipts(client, self.metrics, self.worker_status.server_clock)
        lanes = self._settings.delivery.lanes
        self._lines = self._make_lines(client, pushes, receipts)
        self._ownership, lane_count = self._make_ownership(client), LaneCount(client, lanes)
        topology = TopologyWatch(
            client, topology_of(self._settings.delivery), self._intervals.topology_look_s, self._memory.expect_ack_wait
        )
        intake = Intake(client, self._intervals.canary_after_s, self._know_stream, self.worker_status.server_clock)
        async with contextlib.AsyncExitStack() as started:
            await started.enter_async_context(_publishing_pushes(pushes, self._intervals.last_pushes_s))
            await started.enter_async_context(background(receipts.run()))
            await started.enter_async_context(background(*(line.run() for line in self._lines)))
            await started.enter_async_context(
                background(
                    measure_loop_lag(self.metrics.loop_lagged),
                    Backlog(
                        client,
                        self.worker_status.lanes,
                        self.metrics,
                        self._intervals.backlog_look_s,
                        self._floors.settled,
                    ).run(),
                    DeadLetterCount(client, self.metrics).run(),
                    lane_count.run(),
                    topology.run(),
                    intake.run(),
                    *([self._resume_lanes(client)] if self._provision_first else []),
                    serve_reports(client, self.worker_status.report),
                    self._make_service(client).run(),
                )
            )
            await started.enter_async_context(self._owning(self._ownership))
            permissions = PermissionWatch(client)
            self.worker_status.relaying(
                Parts(self._lines, self._ownership, lane_count, topology, intake, pushes, permissions)
            )
            self.ready.set()
            await stop.wait()
            self.worker_status.waiting_for = "stopping"

    @contextlib.asynccontextmanager
    async def _owning(self, ownership: Ownership) -> AsyncGenerator[None]:
        """Take lanes; at the end give each up as soon as it is drained."""
        leave = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(ownership.run(leave))
            yield
            _log.info("draining", lanes=ownership.lanes, at_most_s=self._intervals.drain_s)
            leave.set()

    async def _connect(self) -> FrameClient:
        attempt = 0
        while True:
            try:
                return await self._connect_once()
            except (*_PASSING, ConfigurationError) as error:
                if isinstance(error, ConfigurationError) and not attempt:
                    raise  # later a file may be just about to be renewed
                self._wait_for(str(error))
                attempt += 1
                await asyncio.sleep(_NATS_RETRIES.delay_s(attempt))

    async def _connect_once(self) -> FrameClient:
        client = await connect(
            self._settings.nats,
            name="job-status-relay",
            on_reconnected=self._on_reconnected,
        )
        try:
            await require_server(client)
            # Looked at here, because only a new connection learns of another `max_payload`.
            wanted(topology_of(self._settings.delivery), client.max_payload)
        except BaseException:
            await close(client)
            raise
        self.worker_status.client = client
        return client

    async def _until_provisioned(self, client: FrameClient) -> bool:
        topology = topology_of(self._settings.delivery)
        while True:
            try:
                if self._provision_first:
                    for line in (await provision(client, topology)).lines:
                        _log.info(line)
                    return True
                plan = await check(client, topology)
            except _PASSING as error:
                self._wait_for(str(error))
            else:
                if plan.suffices:
                    return True  # what differs, and lets it relay, is in the log and on /readyz: TopologyWatch
                self._wait_for(str(NotProvisioned(plan.to_do)))
            await asyncio.sleep(self._intervals.provision_check_s)

    async def _resume_lanes(self, client: FrameClient) -> None:
        """Resume the lanes that were added while updates waited."""
        while True:
            try:
                await resume_all_lanes(client, _log.info)
            except RelayError as error:
                _log.warning("lanes that wait cannot be resumed; trying again", error=str(error))
                await asyncio.sleep(self._intervals.provision_check_s)
            else:
                return

    def _make_ownership(self, client: FrameClient) -> Ownership:
        delivery = self._settings.delivery
        lanes = [for_lane(self._lines, lane) for lane in range(delivery.lanes)]
        drivers = [ReportingDriver(client, each, each.progress) for each in lanes]
        leases = Leases(client, self._worker, delivery.lease_ttl_s, self._floors)
        return Ownership(
            leases, delivery.lanes, drivers.__getitem__, drain_s=self._intervals.drain_s, metrics=self.metrics
        )

    def _make_service(self, client: FrameClient) -> StatusService:
        lanes = self._settings.delivery.lanes

        def here(lane: int, job: str) -> LaneProgress | None:
            return for_lane(self._lines, lane).progress(lane, job)

        def answers(requester: Requester) -> Answers:
            archive = Archive(requester)
            sources = ProgressSources(requester, archive, here, lanes)
            return Answers(archive, sources, lanes, lambda: client.max_payload)

        service = StatusService(
            client, answers, worker=self._worker, version=self._version, on_serving=self.serving.set
        )
        self.metrics.hold("requests", lambda: service.held_bytes)
        return service

    def _make_lines(self, client: FrameClient, pushes: PushPublisher, receipts: Receipts) -> list[Line]:
        """A line for each connection to the Facilitator; no more of them than there are lanes."""
        facilitator, delivery = self._settings.facilitator, self._settings.delivery
        connections = min(facilitator.connections, delivery.lanes)
        paces = [ConnectPace(self._place, number, connections, self._backoff) for number in range(connections)]
        settings = LineSettings(
            endpoint=Endpoint(facilitator.url, facilitator.upgrade_headers, facilitator.proxy_url),
            authentication=self._authentication,
            window=facilitator.window,
            reply_timeout_s=facilitator.reply_timeout_s,
            pace=paces[0],
            policy=RetryPolicy(delivery.max_attempts, self._backoff, delivery.other_senders),
            lanes=LaneLimits(LANE_CAPACITY, delivery.ack_wait_s, self._memory, self.worker_status.server_clock),
            pull_batch=LANE_CAPACITY // 2,
            pull_expires_s=expiry_s(delivery.lease_ttl_s, delivery.ack_wait_s),
            intervals=self._intervals,
        )
        wanted: list[tuple[bool, SettlementObserver | None]] = [(delivery.receipts, receipts), (True, self._tracing)]
        observers = [observer for on, observer in wanted if on and observer is not None]
        return [Line(client, replace(settings, pace=pace), pushes, self.metrics, observers) for pace in paces]

    def _know_stream(self, info: Mapping[str, Any] | None) -> None:
        if info is None:
            self._floors.stream_gone()
        else:
            self._floors.stream_seen(info["created"], info["state"]["last_seq"])

    def _place(self) -> Place:
        known = self._ownership.place if self._ownership is not None else None
        return known or self._place_until_known

    def _on_reconnected(self) -> None:
        client = self.worker_status.client
        self.metrics.nats_reconnected(slow_consumer=client is not None and client.dropped_at_bytes is not None)
        for line in self._lines:
            line.lanes.broker_reconnected()

    def _wait_for(self, what: str) -> None:
        if what != self.worker_status.waiting_for:
            _log.error(what)
        self.worker_status.waiting_for = what


@contextlib.asynccontextmanager
async def _publishing_pushes(pushes: PushPublisher, at_most_s: float) -> AsyncGenerator[None]:
    """Publish what the Facilitator pushes; at the end wait at most `at_most_s` for the rest, and log what is lost."""
    async with background(pushes.run()):
        yield
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await pushes.drain()
        for push in pushes.unpublished():
            _log.error("a push of the Facilitator could not be published before the end, and is lost", push=push)
