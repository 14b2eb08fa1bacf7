"""What is settled in a lane, as far as whoever drives it knows: for those who ask how far an update got.

The owner of a lane knows from memory what left its hands, and it left them only settled. Of what the workers before
it were delivered, all that was pending when it came has to come to hand before it lets the lane go; so what has not
come is settled, or JetStream gave up on it, and its dead letter may still have to be written.

    sequence   1 ...... inherited_up_to ...... own_after ...... up_to ...... not delivered yet
               inherited               unknown           own
                             (what is at hand of the job is not settled, wherever it lies)

In between is what was delivered while the lane was held: what came to hand is known, but something may have got lost
on the way. If the lane was let go because patience was over, nothing is known of what was inherited either.

Sequences begin anew with a stream that was made anew, and its updates are younger than all that the owner knows of:
so a sequence counts only together with the time at which its update was stored.
"""

import enum
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from relay.core.continuity import ConsumerState

_MOST_BURIALS: Final = 10_000
"""Dead letters of its own that the owner of a lane remembers; with more it forgets what it knows."""


class Settled(enum.Enum):
    """Whether an update is settled."""

    NO = enum.auto()
    ACKNOWLEDGED = enum.auto()
    """The owner settled it itself, because the Facilitator has it."""
    DEAD_LETTERED = enum.auto()
    """The owner settled it itself, because its dead letter is written."""
    UNLESS_GIVEN_UP = enum.auto()
    """An owner before did, unless JetStream gave up on it and its dead letter is not written yet."""
    UNKNOWN = enum.auto()
    """The server may know."""


class LaneProgress(Struct, frozen=True, kw_only=True):
    """What the owner of a lane knows at one moment, and of one job what is at hand. Times are the server's, Unix."""

    since_s: float
    """When the owner began with the lane: it tells what one owner inherited from what another did."""
    inherited_up_to: int
    """Up to this sequence all was delivered before, and what is not at hand is settled or given up; 0 if unknown."""
    own_after: int
    """From here on all was delivered to this owner."""
    own: tuple[int, ...]
    """The job's updates that were at hand when the lane was let go."""
    buried: tuple[int, ...]
    """Those of the job that this owner has dead-lettered."""
    up_to: int
    """What is above this sequence was not delivered yet, if the lane is `flowing`; if it is held, who knows."""
    stored_until_s: float
    """Nothing that is known of was stored later."""
    flowing: bool
    at_hand: tuple[int, ...]
    """The job's updates that are not settled."""

    def settled(self, sequence: int, stored_at_s: float) -> Settled:
        """Whether this update of the job is settled; `stored_at_s` in Unix time, on the server's clock."""
        if sequence in self.at_hand:
            return Settled.NO
        if sequence > self.up_to:
            return Settled.NO if self.flowing else Settled.UNKNOWN
        if stored_at_s > self.stored_until_s:
            return Settled.UNKNOWN
        if sequence > self.own_after or sequence in self.own:
            return Settled.DEAD_LETTERED if sequence in self.buried else Settled.ACKNOWLEDGED
        return Settled.UNLESS_GIVEN_UP if sequence <= self.inherited_up_to else Settled.UNKNOWN


class SettlementLog:
    """Keeps up with what a lane's owner was delivered, to make a LaneProgress of it at any time."""

    def __init__(self) -> None:
        self._began: ConsumerState | None = None
        self._inherited_up_to = 0
        self._own_after = 0
        self._own: Mapping[str, tuple[int, ...]] = {}
        self._buried: dict[str, tuple[int, ...]] = {}
        self._burials = 0
        self._up_to = 0
        self._stored_until_s = 0.0
        self._newest = 0
        self._newest_s = 0.0

    def began(self, state: ConsumerState) -> None:
        """The owner begins to pull, or begins over; only the first time counts."""
        self._began = self._began or state

    def delivered(self, sequence: int, stored_at_s: float, *, held: bool) -> None:
        """An update was delivered; `held` says whether the lane is held after it."""
        self._newest = max(self._newest, sequence)
        self._newest_s = max(self._newest_s, stored_at_s)
        if not held:
            self._up_to = self._newest
            self._stored_until_s = self._newest_s

    def buried(self, job: str, sequence: int) -> None:
        """The owner has dead-lettered an update."""
        if self._burials == _MOST_BURIALS:
            self._forget({})
        self._buried[job] = (*self._buried.get(job, ()), sequence)
        self._burials += 1

    def let_go(self, state: ConsumerState, missing: int, at_hand: Mapping[str, tuple[int, ...]]) -> None:
        """The lane was let go upon `state`, although `missing` updates had not come back.

        `at_hand` are the sequences of what is at hand, by job: bounded as the lane is.
        """
        if self._began is not None and self._own_after == 0 and missing == 0:
            self._inherited_up_to = self._began.delivered
        self._up_to = max(self._newest, state.delivered)
        self._stored_until_s = max(self._newest_s, state.told_at_s)
        # A gap later may have hidden something among what was our own until then.
        self._forget(at_hand)

    def standing(self, job: str, at_hand: tuple[int, ...], *, flowing: bool) -> LaneProgress:
        """What is known now of a job; `at_hand` are its sequences that are not settled."""
        return LaneProgress(
            since_s=self._began.told_at_s if self._began else 0.0,
            inherited_up_to=self._inherited_up_to,
            own_after=self._own_after,
            own=self._own.get(job, ()),
            buried=self._buried.get(job, ()),
            up_to=self._up_to,
            stored_until_s=self._stored_until_s,
            flowing=flowing,
            at_hand=at_hand,
        )

    def _forget(self, own: Mapping[str, tuple[int, ...]]) -> None:
        """Of all up to here know nothing any more but that the owner has these, by job."""
        self._own, self._own_after = own, self._up_to
        self._buried, self._burials = {}, 0
