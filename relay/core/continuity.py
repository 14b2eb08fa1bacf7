"""Whether every update that the server delivered has arrived here, and what to wait for if not.

An update can be delivered and never arrive: to a worker that died, or into a connection that broke. The server
delivers it again after `ack_wait`, but by then newer ones may have come, even of the same job. Sent at once, they
would overtake it. So a lane is held in two cases: when a worker takes it over, and when the consumer's own
delivery count shows a gap. It is released when the server has no more updates pending than are at hand:

    pending      updates delivered and not acknowledged, as the server counts them
    delivered    the highest stream sequence delivered so far
    released if  updates at hand, up to `delivered`  >=  pending

The server goes by its wall clock: if that was set back, or another server with an earlier time leads the consumer now,
it delivers an update again as much later. So what has not come back in half of `patience_s` is asked for again, which
the server obeys at any time. The relay does not know which updates are pending. It asks for each stream sequence that
may be one, and the server ignores the others.

A lane is also released when `patience_s` has passed in which no missing update came, so that a miscount, or an update
that the server cannot read any more, does not stop it for ever.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

_MOST_TOGETHER: Final = 5_000
"""How many stream sequences are asked for together: 0.4 MB of requests."""


@dataclass(frozen=True, slots=True)
class ConsumerState:
    """What the server says of a consumer at one moment."""

    pending: int
    """Updates delivered and not acknowledged (`num_ack_pending`)."""
    delivered: int
    """Highest stream sequence delivered (`delivered.stream_seq`)."""
    delivered_count: int
    """Deliveries so far, redeliveries included (`delivered.consumer_seq`)."""
    waiting: int = 0
    """Updates in the lane that were never delivered (`num_pending`)."""
    ack_floor: int = 0
    """The stream sequence up to which every update of the lane is settled (`ack_floor.stream_seq`)."""
    told_at_s: float = 0.0
    """When the server said so: Unix time, on its clock."""
    made_at_s: float = -math.inf
    """When the consumer was made (`created`): Unix time, on the server's clock."""
    ack_wait_s: float = 0.0
    """After how long the server delivers an update again; 0 if that is not known."""

    @property
    def unsettled(self) -> int:
        """Updates that are stored and not settled."""
        return self.waiting + self.pending


def patience_s(ack_wait_s: float) -> float:
    """How many seconds to wait for what is missing: time for two redeliveries, one of them after it was asked for."""
    return 2 * ack_wait_s + 1


class Continuity:
    """Watches one consumer's deliveries for gaps, and says whether the lane must be held because of one.

    `patience_s` is the least patience: a consumer whose `ack_wait` is longer, by another setting, gets what it needs.
    """

    def __init__(self, patience_s: float) -> None:
        self.held = True
        """True at first: it is not known yet what the worker before this one had at hand."""
        self._patience_s = patience_s
        self._next: int | None = None
        self._give_up_s = 0.0
        self._least_missing = math.inf
        self._unasked: range | None = None
        """Stream sequences that are still to be asked for; None while the server may deliver them again by itself."""
        self._owed = 0
        self._owed_up_to = 0

    def began(self, state: ConsumerState, now_s: float) -> None:
        """Pulling starts, or starts over: what is missing has the full patience again."""
        self._patience_s = max(self._patience_s, patience_s(state.ack_wait_s))
        if self._next is None:
            # The worker before this one may acknowledge, late, an update that has already come back here. The server
            # would then have no more pending than are at hand, although another update is still missing.
            self._owed, self._owed_up_to = state.pending, state.delivered
        if self._next != state.delivered_count + 1:
            self.held = True
        self._next = state.delivered_count + 1
        self.be_patient(now_s)

    def be_patient(self, now_s: float) -> None:
        """Wait for the full patience again, because nothing could arrive until now."""
        self._give_up_s = now_s + self._patience_s
        self._least_missing = math.inf
        self._unasked = None

    def delivered(self, consumer_sequences: Iterable[int], now_s: float) -> None:
        """Updates came, with these numbers in the consumer's count of all its deliveries."""
        for number in consumer_sequences:
            if number != self._next:
                self.held = True
                self.be_patient(now_s)
            self._next = number + 1

    def resolve(self, state: ConsumerState, count_up_to: Callable[[int], int], now_s: float) -> int:
        """Return how many updates are missing. Releases the lane if none is, or if patience is over.

        Patience begins anew with each missing update that has come, so that a slow connection is not given up.

        `count_up_to` counts the updates at hand up to a stream sequence.
        """
        owed = self._owed - count_up_to(self._owed_up_to)
        missing = max(0, state.pending - count_up_to(state.delivered), owed)
        # A state that is older than the latest delivery does not show a gap before that.
        current = self._next is None or state.delivered_count + 1 >= self._next
        if missing < self._least_missing < math.inf:
            self.be_patient(now_s)
        self._least_missing = min(missing, self._least_missing)
        if (missing == 0 and current) or now_s >= self._give_up_s:
            self.held = False
            self._owed = 0
        return missing

    def overdue(self, state: ConsumerState, now_s: float) -> range:
        """The stream sequences to ask the server for again now, before `resolve`; empty if there are none.

        Among them are the missing updates. If there are too many for one time, the next ones follow at the next call.
        """
        half_s = self._patience_s / 2
        if not self.held or now_s < self._give_up_s - half_s:
            return range(0)
        if self._unasked is None:
            self._unasked = range(state.ack_floor + 1, state.delivered + 1)
        overdue, self._unasked = self._unasked[:_MOST_TOGETHER], self._unasked[_MOST_TOGETHER:]
        if overdue:
            self._give_up_s = max(self._give_up_s, now_s + half_s)
        return overdue
