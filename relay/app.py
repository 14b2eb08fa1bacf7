"""The composition root: makes every part, connects them, starts them in order and stops them in the reverse order."""

import asyncio
import contextlib
import os
import random
import secrets
import socket
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from nats.aio.client import Client

from relay.broker.advisories import Advisories
from relay.broker.connection import close, connect, require_server
from relay.broker.consumer import PullConsumer
from relay.broker.dead_letters import DeadLetters
from relay.broker.leases import Leases
from relay.broker.requests import Requests
from relay.broker.topology import LANE_CAPACITY, Topology, check, provision
from relay.core.backoff import Backoff
from relay.core.ports import Ticket
from relay.core.session import Session
from relay.errors import BrokerUnavailable, NotProvisioned
from relay.facilitator import Facilitator
from relay.health import HealthServer
from relay.logs import get_logger
from relay.metrics import Metrics
from relay.ownership import Ownership
from relay.settings import DeliverySettings, Settings, shown_address
from relay.subjects import STATUS_STREAM, lane_consumer, safe_token
from relay.worker import Dispatcher, Limits

R = TypeVar("R")
_log = get_logger(__name__)

DRAIN_S: Final = 10.0
"""How long a lane that is given up may take to finish what is with the Facilitator."""
_LAST_PUSHES_S: Final = 5.0
_BATCH: Final = LANE_CAPACITY // 2
_PULL_EXPIRES_S: Final = 30.0
_PROVISION_CHECK_S: Final = 2.0


def topology_of(settings: DeliverySettings) -> Topology:
    """The streams and consumers that these settings ask for."""
    return Topology(
        lanes=settings.lanes,
        replicas=settings.replicas,
        ack_wait_s=settings.ack_wait_s,
        max_deliver=settings.max_deliver,
        lease_ttl_s=settings.lease_ttl_s,
    )


class Relay:
    """One worker process: its share of the lanes, its connections, probes and metrics.

    Args:
        settings: must have passed `require_facilitator`.
        authentication: the first message to the Facilitator, or None if it wants none.
        provision_first: bring streams and consumers to the wanted state instead of waiting until somebody does.

    Raises ConfigurationError if the port for probes and metrics is taken.
    """

    def __init__(self, settings: Settings, authentication: str | None, *, provision_first: bool = False) -> None:
        self.metrics = Metrics(settings.delivery.lanes)
        self.ready = asyncio.Event()
        """Set when updates flow for the first time."""
        self._settings = settings
        self._authentication = authentication
        self._provision_first = provision_first
        self._backoff = Backoff(settings.delivery.backoff_initial_s, settings.delivery.backoff_max_s, random.random)
        self._lines: list[tuple[Dispatcher, Facilitator]] = []
        self._ownership: Ownership | None = None
        self._waiting_for: str | None = "starting"
        self._closed = asyncio.Event()
        self._health = HealthServer(settings.http.host, settings.http.port, self.missing, self._render)

    @property
    def http_port(self) -> int:
        return self._health.port

    def missing(self) -> list[str]:
        """What keeps updates from flowing, in words for an operator; empty if nothing does."""
        if self._waiting_for is not None:
            return [self._waiting_for]
        missing: list[str] = []
        if self._ownership is not None and self._ownership.trouble is not None:
            missing.append(self._ownership.trouble)
        for dispatcher, facilitator in self._lines:
            missing += dispatcher.troubles()
            if facilitator.trouble is not None:
                missing.append(facilitator.trouble)
        return missing

    async def run(self, stop: asyncio.Event) -> None:
        """Relay until `stop` is set, then drain.

        Raises UnsuitableServer, UnsafeChange or JetStreamError if NATS cannot carry the relay, BrokerUnavailable
        if the server closed the connection for good. Waits for whatever is merely away.
        """
        async with asyncio.TaskGroup() as group:
            probes = group.create_task(self._health.serve())
            await self._connect_and_relay(stop)
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

    async def _relay(self, nc: Client, stop: asyncio.Event) -> None:
        requests = Requests(nc, self._backoff, self.metrics)
        self._lines = self._make_lines(nc, requests)
        self._ownership = self._make_ownership(nc)
        leave = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            carrying = [group.create_task(requests.run())]
            for dispatcher, facilitator in self._lines:
                carrying.append(group.create_task(dispatcher.run()))
                carrying.append(group.create_task(facilitator.run(dispatcher)))
            owning = group.create_task(self._ownership.run(leave))
            self._waiting_for = None
            self.ready.set()
            await self._until_stopped(stop)
            # Lanes first: their answers come over the connections that also bring pushes, which are published last.
            self._waiting_for = "stopping"
            _log.info("draining", lanes=self._ownership.lanes, at_most_s=DRAIN_S)
            leave.set()
            await owning
            await _publish_the_rest(requests)
            for task in carrying:
                task.cancel()

    async def _until_stopped(self, stop: asyncio.Event) -> None:
        if await _unless(stop, self._closed.wait()):
            servers = list(map(shown_address, self._settings.nats.urls))
            raise BrokerUnavailable(servers, "the server closed the connection for good")

    async def _connect(self) -> Client:
        attempt = 0
        while True:
            try:
                return await self._connect_once()
            except BrokerUnavailable as error:
                self._wait_for(str(error))
                attempt += 1
                await asyncio.sleep(self._backoff.delay_s(attempt))

    async def _connect_once(self) -> Client:
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
        return nc

    async def _until_provisioned(self, nc: Client) -> bool:
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

    def _make_ownership(self, nc: Client) -> Ownership:
        delivery = self._settings.delivery
        # Random, because a process in a container often has the same id as the one before it.
        worker = safe_token(f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(3)}")

        def driver_of(lane: int) -> Dispatcher:
            return self._lines[lane % len(self._lines)][0]

        return Ownership(Leases(nc, worker, delivery.lease_ttl_s), delivery.lanes, driver_of, drain_s=DRAIN_S)

    def _make_lines(self, nc: Client, requests: Requests) -> list[tuple[Dispatcher, Facilitator]]:
        """A dispatcher for each connection to the Facilitator; no more of them than there are lanes."""
        connections = min(self._settings.facilitator.connections, self._settings.delivery.lanes)
        return [self._make_line(nc, requests) for _ in range(connections)]

    def _make_line(self, nc: Client, requests: Requests) -> tuple[Dispatcher, Facilitator]:
        settings, delivery = self._settings.facilitator, self._settings.delivery
        session: Session[Ticket] = Session(
            window=settings.window, reply_timeout_s=settings.reply_timeout_s, authentication=self._authentication
        )
        facilitator = Facilitator(
            settings.url, session, self._backoff, self.metrics, ping_timeout_s=settings.reply_timeout_s
        )

        expires_s = min(_PULL_EXPIRES_S, delivery.lease_ttl_s)

        def open_source(lane: int, **callbacks: Any) -> PullConsumer:
            return PullConsumer(nc, STATUS_STREAM, lane_consumer(lane), batch=_BATCH, expires_s=expires_s, **callbacks)

        dead_letters = DeadLetters(nc)
        dispatcher = Dispatcher(
            open_source,
            facilitator,
            dead_letters,
            requests,
            watch_advisories=lambda lane: Advisories(nc, lane, dead_letters, self.metrics).run(),
            limits=Limits(LANE_CAPACITY, delivery.max_attempts, delivery.ack_wait_s),
            backoff=self._backoff,
            metrics=self.metrics,
        )
        return dispatcher, facilitator

    def _on_reconnected(self) -> None:
        for dispatcher, _ in self._lines:
            dispatcher.on_broker_reconnected()

    def _wait_for(self, what: str) -> None:
        if what != self._waiting_for:
            _log.error(what)
        self._waiting_for = what

    def _render(self) -> tuple[bytes, str]:
        for dispatcher, _ in self._lines:
            dispatcher.report()
        self.metrics.in_flight(sum(facilitator.unanswered for _, facilitator in self._lines))
        return self.metrics.render()


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
