"""How far an update got, asked of the owner of its lane, or else of the server.

    the lane's owner is this worker ─────────────────────► its own memory
    the owner is another worker ──── relay.lane.<n> ─────► that worker's memory
    there is no owner, or it does not know ──────────────► the ack floor of the lane's consumer

An owner knows how the updates ended that it settled itself. Other updates have left the consumer if the owner does not
have them at hand, or if they are below the ack floor. They may have left it because JetStream gave up on them; then an
advisory is stored until their dead letters are written. So none of these updates counts as settled while there are
advisories.

For these updates the order of reading matters: first the owner or the server, then dead letters, then the update. A
dead letter is written before its update is settled, and an update is removed before its dead letter is. Only with this
order does "settled, and no dead letter" mean that the Facilitator has acknowledged the update.
"""

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec
import nats.errors

from relay.contract.subjects import lane_progress_subject
from relay.core.progress import LaneProgress, Settled
from relay.nats.jetstream import Requester
from relay.nats.messages import StoredMessage
from relay.query.archive import AckFloor, Archive

_OWNER_TIMEOUT_S: Final = 0.5
"""How long to wait for a lane's owner. Short, because the owner may have just died."""
_ALL_SETTLED: Final = AckFloor(2**63, math.inf)
"""For a lane above the number of lanes: provisioning removes lanes only when they are settled."""


class ProgressRequest(msgspec.Struct, frozen=True):
    """A request on `relay.lane.<n>`. The reply is a LaneProgress, or null if the worker has just released the lane."""

    job: str


class Known(enum.Enum):
    """What a source knows of one update."""

    PENDING = enum.auto()
    """It is not settled."""
    ACKNOWLEDGED = enum.auto()
    """The Facilitator has acknowledged it."""
    DEAD_LETTERED = enum.auto()
    """It was dead-lettered. If it is still stored when its dead letter is gone, somebody removed only that one."""
    SETTLED = enum.auto()
    """It is dead-lettered if it has a dead letter; otherwise the Facilitator has acknowledged it."""
    UNCERTAIN = enum.auto()
    """It is dead-lettered if it has a dead letter; otherwise it counts as pending."""
    UNKNOWN = enum.auto()
    """The lane's owner does not know. The server may know."""


@dataclass(frozen=True, slots=True)
class OwnerProgress:
    """What the owner of a lane knew when it was asked."""

    progress: LaneProgress
    given_up: bool
    """Whether JetStream may have given up on updates that were delivered to the owner before."""

    def known(self, update: StoredMessage) -> Known:
        match self.progress.settled(update.sequence, update.stored_at_s):
            case Settled.NO:
                return Known.PENDING
            case Settled.ACKNOWLEDGED:
                return Known.ACKNOWLEDGED
            case Settled.DEAD_LETTERED:
                return Known.DEAD_LETTERED
            case Settled.UNLESS_GIVEN_UP:
                return Known.UNCERTAIN if self.given_up else Known.SETTLED
            case Settled.UNKNOWN:
                return Known.UNKNOWN


@dataclass(frozen=True, slots=True)
class ServerProgress:
    """How far a lane's consumer was when the server was asked. Without a consumer nothing is known."""

    ack_floor: AckFloor | None
    given_up: bool

    def known(self, update: StoredMessage) -> Known:
        floor = self.ack_floor
        if floor is None or self.given_up:
            return Known.UNCERTAIN
        # A younger update belongs to a stream that was deleted and made again: its sequences start at 1 again.
        is_below = update.sequence <= floor.sequence and update.stored_at_s <= floor.told_at_s
        return Known.SETTLED if is_below else Known.UNCERTAIN


class ProgressSources:
    """Asks how far updates got. Cancelling is safe.

    Args:
        own: returns what this worker knows about a job in a lane; None if it is not the lane's owner.
        lanes: the number of lanes.
    """

    def __init__(
        self, client: Requester, archive: Archive, own: Callable[[int, str], LaneProgress | None], lanes: int
    ) -> None:
        self._client = client
        self._archive = archive
        self._own = own
        self._lanes = lanes
        self._nothing_given_up: dict[int, float] = {}
        """By lane: the `since_s` of an owner that inherited no update that JetStream had given up on. JetStream cannot
        give up on the inherited updates later either, because they are no longer pending."""

    async def owner(self, lane: int, job: str) -> OwnerProgress | ServerProgress:
        """What the lane's owner knows about a job, or the server if there is no owner. Raises RelayError."""
        progress = self._own(lane, job) or await self._ask_owner(lane, job)
        if progress is None:
            return await self.server(lane)
        given_up = False
        if progress.inherited_up_to and self._nothing_given_up.get(lane) != progress.since_s:
            given_up = await self._archive.has_given_up(lane)
            if not given_up:
                self._nothing_given_up[lane] = progress.since_s
        return OwnerProgress(progress, given_up)

    async def server(self, lane: int) -> ServerProgress:
        """What the server knows about a lane. Raises RelayError."""
        floor = await self._archive.ack_floor(lane)
        if floor is None and lane >= self._lanes:
            return ServerProgress(_ALL_SETTLED, given_up=False)
        return ServerProgress(floor, given_up=floor is not None and await self._archive.has_given_up(lane))

    async def _ask_owner(self, lane: int, job: str) -> LaneProgress | None:
        try:
            reply = await self._client.request(
                lane_progress_subject(lane), msgspec.json.encode(ProgressRequest(job)), timeout=_OWNER_TIMEOUT_S
            )
            return msgspec.json.decode(reply.data, type=LaneProgress | None)
        except (nats.errors.Error, TimeoutError, ValueError, RecursionError):
            return None  # no owner, or a reply that cannot be read: the server is asked instead
