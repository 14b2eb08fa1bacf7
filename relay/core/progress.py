"""How far the updates of a lane got, as far as its owner knows. Questions about a job are answered from this.

An update that was delivered to this owner and is no longer at hand is settled; the owner remembers how. Before the
owner released the lane, everything that was still pending from earlier owners had to come back. So an earlier update
that did not come back is settled, or JetStream gave up on it, and then its dead letter may not be written yet.

    sequence   1 ...... inherited_up_to ...... own_after ...... up_to ...... not delivered yet
               inherited               unknown           own
                             (what is at hand of the job is not settled, wherever it lies)

The unknown part was delivered while the lane was held: what arrived is known, but other deliveries may have got lost.
If the lane was released because patience was over, the inherited part is unknown as well.

If the stream is deleted and made again, its sequences begin at 1 again, and its updates are younger than all that the
owner knows of. So a sequence counts only together with the time at which its update was stored.
"""

import enum
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct, field

from relay.core.continuity import ConsumerState
from relay.core.update import DeliveryLike

_MOST_DEAD_LETTERS: Final = 10_000
"""How many of its own dead letters a lane's owner remembers. With one more it forgets them and begins again."""


class Settled(enum.Enum):
    """Whether an update is settled."""

    NO = enum.auto()
    ACKNOWLEDGED = enum.auto()
    """The owner settled it, because the Facilitator has it."""
    DEAD_LETTERED = enum.auto()
    """The owner settled it, because its dead letter is written."""
    UNLESS_GIVEN_UP = enum.auto()
    """An earlier owner settled it, unless JetStream gave up on it and its dead letter is not written yet."""
    UNKNOWN = enum.auto()
    """The owner does not know; the server may."""


class LaneProgress(Struct, frozen=True, kw_only=True):
    """What the owner of a lane knows at one moment, about one job. Times are Unix time on the server's clock."""

    since_s: float
    """When this owner began with the lane. It tells apart what two owners inherited."""
    inherited_up_to: int
    """Up to this sequence all was delivered to earlier owners: what is not at hand is settled or given up.

    0 if unknown.
    """
    own_after: int
    """Above this sequence all was delivered to this owner."""
    own: tuple[int, ...]
    """The job's updates that were at hand when the lane was released."""
    dead_lettered: tuple[int, ...] = field(name="buried")
    """The job's updates that this owner has dead-lettered. The name on the wire is older."""
    up_to: int
    """Above this sequence nothing was delivered yet if the lane is `flowing`; if it is held, that is unknown."""
    stored_until_s: float
    """No update that the owner knows of was stored later."""
    flowing: bool
    at_hand: tuple[int, ...]
    """The job's updates that are not settled."""

    def settled(self, sequence: int, stored_at_s: float) -> Settled:
        """Whether the job's update with this sequence, stored at this time, is settled."""
        if sequence in self.at_hand:
            return Settled.NO
        if sequence > self.up_to:
            return Settled.NO if self.flowing else Settled.UNKNOWN
        if stored_at_s > self.stored_until_s:
            return Settled.UNKNOWN
        if sequence > self.own_after or sequence in self.own:
            return Settled.DEAD_LETTERED if sequence in self.dead_lettered else Settled.ACKNOWLEDGED
        return Settled.UNLESS_GIVEN_UP if sequence <= self.inherited_up_to else Settled.UNKNOWN


class SettlementLog:
    """What the owner of a lane remembers, so that it can say at any time how far a job's updates got."""

    def __init__(self) -> None:
        self._began: ConsumerState | None = None
        self._inherited_up_to = 0
        self._own_after = 0
        self._own: Mapping[str, tuple[int, ...]] = {}
        self._dead_lettered: dict[str, tuple[int, ...]] = {}
        self._dead_letters = 0
        self._up_to = 0
        self._stored_until_s = 0.0
        self._newest = 0
        self._newest_s = 0.0

    def began(self, state: ConsumerState) -> None:
        """The owner starts to pull, or starts over; only the first call counts."""
        self._began = self._began or state

    def delivered(self, deliveries: Sequence[DeliveryLike], *, held: bool) -> None:
        """Updates were delivered; `held` says whether the lane is held after them."""
        for delivery in deliveries:
            self._newest = max(self._newest, delivery.sequence)
            self._newest_s = max(self._newest_s, delivery.stored_at_s)
        if not held:
            self._up_to = self._newest
            self._stored_until_s = self._newest_s

    def dead_lettered(self, job: str, sequence: int) -> None:
        """The owner has dead-lettered an update."""
        if self._dead_letters == _MOST_DEAD_LETTERS:
            self._forget({})
        self._dead_lettered[job] = (*self._dead_lettered.get(job, ()), sequence)
        self._dead_letters += 1

    def released(self, state: ConsumerState, missing: int, at_hand: Mapping[str, tuple[int, ...]]) -> None:
        """The lane was released when the consumer was in `state`; `missing` updates had not come back.

        `at_hand` are the sequences at hand, by job; no more than the lane can hold.
        """
        if self._began is not None and self._own_after == 0 and missing == 0:
            self._inherited_up_to = self._began.delivered
        self._up_to = max(self._newest, state.delivered)
        self._stored_until_s = max(self._newest_s, state.told_at_s)
        # If a later gap held the lane, updates may have got lost among those that were the owner's own until then.
        self._forget(at_hand)

    def progress(self, job: str, at_hand: tuple[int, ...], *, flowing: bool) -> LaneProgress:
        """What is known now of a job; `at_hand` are its sequences that are not settled."""
        return LaneProgress(
            since_s=self._began.told_at_s if self._began else 0.0,
            inherited_up_to=self._inherited_up_to,
            own_after=self._own_after,
            own=self._own.get(job, ()),
            dead_lettered=self._dead_lettered.get(job, ()),
            up_to=self._up_to,
            stored_until_s=self._stored_until_s,
            flowing=flowing,
            at_hand=at_hand,
        )

    def _forget(self, own: Mapping[str, tuple[int, ...]]) -> None:
        """Forget all updates up to now, except that these (by job) are the owner's own."""
        self._own, self._own_after = own, self._up_to
        self._dead_lettered, self._dead_letters = {}, 0
