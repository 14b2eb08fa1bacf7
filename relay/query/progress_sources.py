"""Whether an update is settled: asked of whoever drives its lane, else of the server.

    driven by this worker ────────────────────────────► its memory
    driven by another ──── relay.lane.<n> ────────────► that one's memory
    driven by nobody, or not known there ─────────────► the consumer's ack floor

What the owner settled itself, it knows all about. What it did not, and what lies below the ack floor, has left its
consumer; it may have done so because JetStream gave up on it. An advisory then tells of it until its dead letter is
written. So without a look at the advisories none of that counts as settled.

Where the owner does not know it all, evidence must be had before dead letters are looked up, and those before the
update itself is read: a dead letter is there before its update is settled, and an update is removed before its dead
letter. Only in this order does "settled, and no dead letter" mean that the Facilitator has it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec
import nats.errors

from relay.contract.subjects import standing_subject
from relay.core.progress import LaneProgress, Settled
from relay.nats.connection import Requester
from relay.query.archive import Archive, Floor, StoredUpdate

_OWNER_TIMEOUT_S: Final = 0.5
"""How long to wait for a lane's owner, who may have died a moment ago."""


_ABOLISHED: Final = Floor(2**63, math.inf)
"""Of a lane that is gone since the number of lanes was lowered: provisioning does that to a settled lane only."""


class Question(msgspec.Struct, frozen=True):
    """What is asked on `relay.lane.<n>`; the answer is a LaneProgress, or null from who has just let go of the lane."""

    job: str


class Evidence(Protocol):
    """What is known of a lane at one moment."""

    def settled(self, update: StoredUpdate) -> bool | None:
        """Whether the update is settled for certain; None if the server might know more."""
        ...

    def is_all(self, update: StoredUpdate) -> bool:
        """Whether nothing else is needed to tell how far the update got."""
        ...


@dataclass(frozen=True, slots=True)
class OwnerProgress:
    """What the lane's owner knows."""

    standing: LaneProgress
    given_up: bool
    """JetStream may have given up on what the owner inherited."""

    def settled(self, update: StoredUpdate) -> bool | None:
        match self.standing.settled(update.sequence, update.stored_at_s):
            case Settled.ACKNOWLEDGED | Settled.DEAD_LETTERED:
                return True
            case Settled.UNLESS_GIVEN_UP:
                return not self.given_up
            case Settled.NO:
                return False
            case Settled.UNKNOWN:
                return None

    def is_all(self, update: StoredUpdate) -> bool:
        settled = self.standing.settled(update.sequence, update.stored_at_s)
        return settled in (Settled.ACKNOWLEDGED, Settled.NO)


@dataclass(frozen=True, slots=True)
class ServerProgress:
    """Where the lane's consumer stands; without one nothing is known."""

    floor: Floor | None
    given_up: bool

    def settled(self, update: StoredUpdate) -> bool:
        floor = self.floor
        if floor is None or self.given_up:
            return False
        # An update that is younger is of a stream that was made anew, and counts from 1 again.
        return update.sequence <= floor.sequence and update.stored_at_s <= floor.told_at_s

    def is_all(self, update: StoredUpdate) -> bool:  # noqa: ARG002 - it never knows why something is settled
        return False


class ProgressSources:
    """Finds out what is known of a lane.

    Args:
        here: what is known if the lane is driven by this worker, else None.
        lanes: how many lanes there are.
    """

    def __init__(
        self, client: Requester, archive: Archive, here: Callable[[int, str], LaneProgress | None], lanes: int
    ) -> None:
        self._client = client
        self._archive = archive
        self._here = here
        self._lanes = lanes
        # Once nothing of what an owner inherited is given up, nothing of it ever will be: it is not pending any more.
        self._cleared: dict[int, float] = {}

    async def owner(self, lane: int, job: str) -> Evidence:
        """What the lane's owner knows of a job, or the server if there is no owner. Raises RelayError."""
        standing = self._here(lane, job) or await self._elsewhere(lane, job)
        if standing is None:
            return await self.server(lane)
        given_up = False
        if standing.inherited_up_to and self._cleared.get(lane) != standing.since_s:
            given_up = await self._archive.has_given_up(lane)
            if not given_up:
                self._cleared[lane] = standing.since_s
        return OwnerProgress(standing, given_up)

    async def server(self, lane: int) -> ServerProgress:
        """What the server knows. Raises RelayError."""
        floor = await self._archive.floor(lane)
        if floor is None and lane >= self._lanes:
            return ServerProgress(_ABOLISHED, given_up=False)
        return ServerProgress(floor, floor is not None and await self._archive.has_given_up(lane))

    async def _elsewhere(self, lane: int, job: str) -> LaneProgress | None:
        try:
            answer = await self._client.request(
                standing_subject(lane), msgspec.json.encode(Question(job)), timeout=_OWNER_TIMEOUT_S
            )
            return msgspec.json.decode(answer.data, type=LaneProgress | None)
        except (nats.errors.Error, TimeoutError, msgspec.DecodeError):
            return None  # nobody drives it, or nobody who can be understood: the server is asked instead
