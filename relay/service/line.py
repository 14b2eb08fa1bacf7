"""One connection to the Facilitator with the lanes that go through it: how the parts of the path are put together.

    PullConsumer ─deliveries─► LaneRun ─► Lane ◄─take── FacilitatorConnection ─answers─► Settlement ─► ack
                                           ▲                                                │
                                           └── dead letters ── DeadLetterWorker ────────────┘

There is one circle in this graph, and it is closed here. What arrives must be sent at once, so lanes call the
connection's `send`. The connection takes what it sends from the lanes, and passes answers to the settlement, which
settles the updates in their lanes. So the connection is made first, and gets the others when it runs.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Final

from relay.contract.subjects import STATUS_STREAM, lane_consumer
from relay.core.connect_pace import ConnectPace
from relay.core.lane import Lane
from relay.core.ports import PushQueue, SettlementObserver, WatchAdvisories
from relay.core.session import Session
from relay.core.update import Update
from relay.core.verdict import RetryPolicy
from relay.dead_letters.writer import DeadLetterWriter
from relay.facilitator.connection import Endpoint, FacilitatorConnection
from relay.nats.frames import FrameClient
from relay.observability.metrics import Metrics
from relay.path.advisories import Advisories
from relay.path.consumer import PullConsumer
from relay.path.dead_letter_worker import ROOM_BYTES, DeadLetterWorker
from relay.path.earlier_updates import EarlierUpdates
from relay.path.lanes import Lanes
from relay.path.limits import LaneLimits
from relay.path.outlets import Outlets
from relay.path.question_worker import QuestionWorker
from relay.path.settlement import Settlement
from relay.path.strays import LANE as LANE_OF_STRAYS
from relay.path.strays import Strays
from relay.path.undelivered import Undelivered
from relay.service.intervals import DEFAULTS, Intervals
from relay.timing.room import Room

_held_bytes: Final = attrgetter("held_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class LineSettings:
    """The settings of a line. Durations are in seconds."""

    endpoint: Endpoint
    """The Facilitator."""
    authentication: str | None
    """The first message to the Facilitator, or None if it wants none."""
    window: int
    """How many updates may be unanswered at a time."""
    reply_timeout_s: float
    pace: ConnectPace
    """The waits between attempts to connect; each line has its own."""
    policy: RetryPolicy
    lanes: LaneLimits
    pull_batch: int
    pull_expires_s: float
    intervals: Intervals = DEFAULTS
    dead_letter_room: Room = field(default_factory=lambda: Room(ROOM_BYTES))
    """Shared by all lines that are made with these settings."""


class Line:
    """One connection to the Facilitator with the lanes that go through it.

    Args:
        pushes: takes the messages that the Facilitator sends by itself.
        observers: are told of each update that is settled.
        watch_advisories: dead-letters what JetStream gave up on in a lane; what Advisories does, if not given.
    """

    def __init__(
        self,
        client: FrameClient,
        settings: LineSettings,
        pushes: PushQueue,
        metrics: Metrics,
        observers: Sequence[SettlementObserver] = (),
        *,
        watch_advisories: WatchAdvisories | None = None,
    ) -> None:
        session: Session[Update] = Session(
            window=settings.window,
            reply_timeout_s=settings.reply_timeout_s,
            authentication=settings.authentication,
            size_of=_held_bytes,
        )
        self.connection = FacilitatorConnection(
            settings.endpoint,
            session,
            settings.pace,
            metrics,
            ping_interval_s=settings.intervals.facilitator_ping_s,
            ping_timeout_s=settings.reply_timeout_s,
        )
        self._client = client
        self._settings = settings
        self._pushes = pushes
        self._metrics = metrics
        self._observers = observers
        self._dead_letters = DeadLetterWriter(client, write_timeout_s=settings.intervals.dead_letter_write_s)
        self.lanes = Lanes(
            Outlets(self.connection.send),
            self._open_source,
            self._dead_letters,
            watch_advisories or self._watch_advisories,
            limits=settings.lanes,
            metrics=metrics,
        )
        self._settlement = Settlement(self.lanes, settings.policy, session.control, metrics, observers)
        self._question_worker = QuestionWorker(
            self.lanes, self._settlement, EarlierUpdates(client), retry_s=settings.intervals.question_retry_s
        )
        self._dead_letter_worker = DeadLetterWorker(
            self.lanes,
            self._settlement,
            self._dead_letters,
            metrics,
            room=settings.dead_letter_room,
            retry_s=settings.intervals.dead_letter_retry_s,
        )
        self._strays = Strays(client, Undelivered(self._dead_letters, metrics, observers), settings.dead_letter_room)

    def troubles(self) -> list[str]:
        """What stands still, and why, in words for an operator: of its lanes, and of updates under none."""
        return [*self.lanes.troubles(), *([self._strays.trouble] if self._strays.trouble is not None else [])]

    async def run(self) -> None:
        """Carry the updates of the lanes that are driven, until cancelled. The leases decide which lanes these are."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.lanes.run())
            group.create_task(self._dead_letter_worker.run())
            group.create_task(self._question_worker.run())
            group.create_task(self.connection.run(self.lanes.turns, self._settlement, self._pushes))

    def _open_source(self, lane: int, **callbacks: Any) -> PullConsumer:
        settings = self._settings
        return PullConsumer(
            self._client,
            STATUS_STREAM,
            lane_consumer(lane),
            batch=settings.pull_batch,
            expires_s=settings.pull_expires_s,
            stalled_after_s=settings.intervals.stalled_after_s,
            **callbacks,
        )

    async def _watch_advisories(self, lane: Lane) -> None:
        room = self._settings.dead_letter_room
        advisories = Advisories(self._client, lane, self._dead_letters, self._metrics, room, observers=self._observers)
        async with asyncio.TaskGroup() as group:
            group.create_task(advisories.run())
            if lane.number == LANE_OF_STRAYS:
                group.create_task(self._strays.run())


def for_lane(lines: Sequence[Line], lane: int) -> Lanes:
    """The `Lanes` that drive this lane: always those of the same connection, so that a job stays on it."""
    return lines[lane % len(lines)].lanes
