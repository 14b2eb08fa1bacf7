"""What a worker says about itself: what is missing, to probes; its metrics, to scrapes; its report, to `relay top`."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from relay.contract.report import ConnectionReport, LaneReport, Report
from relay.contract.settings import Settings
from relay.contract.text import redact_url
from relay.core.server_clock import ServerClock
from relay.leases.lane_count import LaneCount
from relay.leases.ownership import Ownership
from relay.nats.frames import FrameClient
from relay.observability.metrics import Metrics
from relay.path.pushes import PushPublisher
from relay.service.line import Line
from relay.service.permission_watch import PermissionWatch
from relay.timing.clock import monotonic
from relay.topology.intake import Intake
from relay.topology.watch import TopologyWatch


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a worker that relays, as far as they can be asked."""

    lines: Sequence[Line]
    ownership: Ownership
    lane_count: LaneCount
    topology: TopologyWatch
    intake: Intake
    pushes: PushPublisher
    permissions: PermissionWatch


_BETWEEN_PIECES_S: Final = 0.002
"""The pause between two pieces of a scrape. Updates use it, so that they wait for one piece at most."""


class WorkerStatus:
    """The state of a worker, read when somebody asks. Until `relaying` is called it has no lanes.

    Args:
        worker: its id.
    """

    def __init__(self, settings: Settings, metrics: Metrics, *, worker: str, version: str) -> None:
        self.waiting_for: str | None = "starting"
        """What keeps it from relaying at all, in words for an operator; None while it relays."""
        self.client: FrameClient | None = None
        """The connection to NATS; None before there is one."""
        self.server_clock = ServerClock()
        self._settings = settings
        self._metrics = metrics
        self._worker = worker
        self._version = version
        self._began_s = monotonic()
        self._parts: Parts | None = None

    def relaying(self, parts: Parts) -> None:
        """The worker relays from now on: these are the parts to ask."""
        self._parts = parts
        self.waiting_for = None

    def missing(self) -> list[str]:
        """What keeps updates from flowing, in words for an operator; empty if nothing does.

        A connection to the Facilitator counts only if it has lanes.
        """
        if self.waiting_for is not None:
            return [self.waiting_for]
        missing = self._lane_troubles() if self._nats_connected else [self._nats_trouble()]
        driving = [line.connection for line in self._lines if line.lanes.driving]
        return missing + [each.trouble for each in driving if each.trouble is not None]

    def hung(self) -> Sequence[str]:
        return ()  # if the event loop stood still, it would not be asked

    async def readiness(self) -> Mapping[str, Any]:
        missing = self.missing()
        warnings = [*self._parts.topology.warnings, *self._own_warnings] if self._parts is not None else []
        return {"ready": not missing, "missing": missing} | ({"warnings": warnings} if warnings else {})

    async def exposition(self) -> bytes:
        """The metrics, made in pieces to let updates through in between. Cancelling it is safe."""
        self.refresh_metrics()
        pieces: list[bytes] = []
        for piece in self._metrics.pieces():
            pieces.append(piece)
            await asyncio.sleep(_BETWEEN_PIECES_S)
        return b"".join(pieces)

    def refresh_metrics(self) -> None:
        """Update those metrics that are not counted as things happen."""
        for lane in self.lanes():
            self._metrics.at_hand(lane.lane, lane.at_hand)
            self._metrics.in_trouble(lane.lane, troubled=lane.trouble is not None)
        for line in self._lines[:1]:  # all lines share the memory
            self._metrics.memory(line.lanes.memory.at_hand_bytes, line.lanes.memory.on_request_bytes)
        self._metrics.clock(self.server_clock.ahead_s if self.server_clock.is_known else None)
        if (parts := self._parts) is not None:
            self._metrics.copies(parts.topology.missing_copies)
            self._metrics.pushes_state(up=parts.pushes.trouble is None)
            self._metrics.not_permitted(len(parts.permissions.troubles) + len(parts.permissions.warnings))
        connections = [line.connection for line in self._lines]
        places = len(connections) * self._settings.facilitator.window
        unanswered_bytes = sum(each.unanswered_bytes for each in connections)
        self._metrics.in_flight(sum(each.unanswered for each in connections), unanswered_bytes, places)
        self._metrics.state(
            ready=not self.missing(),
            nats=self._nats_connected,
            facilitator=sum(each.trouble is None for each in connections),
            intake=self._parts.intake.stores if self._parts is not None else None,
        )

    def lanes(self) -> list[LaneReport]:
        """The state of each lane that is driven here."""
        return [lane for line in self._lines for lane in line.lanes.reports()]

    def report(self) -> Report:
        """All of it, for requests over NATS."""
        window, now_s = self._settings.facilitator.window, monotonic()
        return Report(
            worker=self._worker,
            version=self._version,
            uptime_s=monotonic() - self._began_s,
            missing=self.missing(),
            lanes=self.lanes(),
            connections=[
                ConnectionReport(
                    window, line.connection.unanswered, line.connection.trouble, line.connection.waiting_s(now_s)
                )
                for line in self._lines
            ],
            updates=self._metrics.updates(),
            dead_letters=self._metrics.dead_letters(),
            retries=self._metrics.retries(),
            timings=self._metrics.timings(),
            settings=self._settings.delivery.followed,
            slow_consumer=self._metrics.slow_consumer(),
            intake=self._intake_trouble,
            server_ahead_s=self.server_clock.ahead_s,
            lost_owner=self._parts.ownership.lost_owner if self._parts is not None else None,
            warnings=self._own_warnings,
        )

    @property
    def _lines(self) -> Sequence[Line]:
        return self._parts.lines if self._parts is not None else ()

    @property
    def _intake_trouble(self) -> str | None:
        return self._parts.intake.trouble if self._parts is not None else None

    @property
    def _own_warnings(self) -> list[str]:
        """What only this worker can see, and what does not keep updates from flowing; empty while NATS is away."""
        if (parts := self._parts) is None or not self._nats_connected:
            return []
        unseen = [each for each in (parts.topology.unseen, parts.intake.warning) if each is not None]
        return unseen + parts.permissions.warnings

    @property
    def _nats_connected(self) -> bool:
        return self.client is not None and self.client.is_connected

    def _nats_trouble(self) -> str:
        servers = ", ".join(map(redact_url, self._settings.nats.servers))
        failures = self.client.failures if self.client is not None else {}
        why = "".join(f"; {server}: {problem}" for server, problem in failures.items())
        return f"the connection to NATS at {servers} is lost; trying to reconnect{why}"

    def _lane_troubles(self) -> list[str]:
        if (parts := self._parts) is None:
            return []
        of_all = [each.trouble for each in (parts.ownership, parts.lane_count, parts.intake, parts.pushes)]
        of_some = [trouble for line in parts.lines for trouble in line.troubles()]
        told = [trouble for trouble in of_all if trouble is not None]
        return [*told, *parts.permissions.troubles, *parts.topology.troubles, *of_some]
