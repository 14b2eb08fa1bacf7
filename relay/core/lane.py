"""The order of one lane: which update of which job may go next.

The server promises no order among redeliveries, so the lane makes its own. It sorts the updates at hand of each
job by stream sequence and lets out only the first, the *head*; the job's later updates wait until that one is
settled. Heads of different jobs do not wait for each other.

    deliver ──► QUEUED ──(first of its job)──► READY ──take──► OUT ──settle──► forgotten
                   ▲                             ▲              │
                   │ an older one came back      ├── put_back ──┤
                   └─────────────────────────────┤              │
                                              WAITING ◄─ retry ─┘

A lane holds at most as many updates as its consumer's `max_ack_pending`: the server delivers no more.
"""

import enum
import heapq
import math
from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from relay.contract.wire import Frame
from relay.core.continuity import ConsumerState, Continuity
from relay.core.progress import LaneProgress, SettlementLog
from relay.core.verdict import DeadLetter, Outcome

D = TypeVar("D")

_SETTLED_REMEMBERED: Final = 4096
"""How many settled sequences a lane remembers, to settle them the same way if a lost ack brings them back."""


class State(enum.Enum):
    QUEUED = enum.auto()  # behind an older update of its job
    READY = enum.auto()  # the head of its job, free to go
    OUT = enum.auto()  # taken: at the Facilitator, or on its way to the dead letters
    WAITING = enum.auto()  # the head of its job, waiting out a backoff


@dataclass(slots=True, eq=False)
class Update(Generic[D]):
    """One update at hand, from its delivery until it is settled."""

    lane: "Lane[D]"
    sequence: int
    """Stream sequence: the order in which updates of one job must arrive."""
    job: str
    delivery: D
    """What to settle it with; the newest one, because a redelivery replaces it."""
    frame: Frame | None
    """What to send to the Facilitator; None if it cannot be sent and `doom` says why."""
    doom: DeadLetter | None = None
    """Set once it is decided that the dead-letter stream is where this update ends."""
    unsure: bool = False
    """It may be a dead letter already, written by a worker that died before it could end the update."""
    attempts: int = 0
    """Answers, or suspected drops, that were this update's own fault."""
    received_s: float | None = None
    """When it came to hand, on the monotonic clock; None once it was sent."""
    touched_s: float = 0.0
    """When the server last heard that it is worked on: its delivery or the latest +WPI."""
    delivered_s: float = 0.0
    """When it came to hand for the first time, on the monotonic clock."""
    state: State = State.QUEUED


@dataclass(slots=True)
class _Job(Generic[D]):
    queue: list[Update[D]] = field(default_factory=list["Update[D]"])
    out: Update[D] | None = None


class Lane(Generic[D]):
    """The updates at hand of one lane. `D` is the type of the delivery handle, which the lane only carries."""

    def __init__(self, number: int, continuity: Continuity) -> None:
        self.number = number
        self.continuity = continuity
        """While it holds the lane nothing is given out: an older update may still be on its way."""
        self.ours_until_s = math.inf
        """When the lease on the lane ends, on the monotonic clock: from then on nothing is given out."""
        self._at_hand: dict[int, Update[D]] = {}
        self._jobs: dict[str, _Job[D]] = {}
        # An entry here may not be its job's head any more, because an older one came back; `_goes_out` sees to it.
        self._ready: list[tuple[int, Update[D]]] = []
        self._waiting: list[tuple[float, int, Update[D]]] = []
        self.doomed: deque[Update[D]] = deque()
        """Heads that are for the dead letters, for `take_doomed`."""
        self._settled: OrderedDict[int, Outcome] = OrderedDict()
        self.coverage = SettlementLog()
        """What is known of deliveries, for `standing`."""

    def __repr__(self) -> str:
        held = ", held" if self.continuity.held else ""
        return f"<Lane {self.number}: {len(self._at_hand)} at hand, {self.out} out{held}>"

    def __len__(self) -> int:
        return len(self._at_hand)

    @property
    def out(self) -> int:
        """How many updates are taken and neither settled nor back."""
        return sum(job.out is not None for job in self._jobs.values())

    @property
    def idle(self) -> bool:
        """Whether nothing can be sent, because every update at hand is out, waiting, or behind one that is."""
        return not self._ready

    def at_hand(self) -> Iterator[Update[D]]:
        """Every update not settled yet, in no particular order."""
        return iter(self._at_hand.values())

    def count_up_to(self, sequence: int) -> int:
        """How many updates at hand have a stream sequence of at most `sequence`."""
        return sum(held <= sequence for held in self._at_hand)

    def standing(self, job: str) -> LaneProgress:
        """What is known here of how far the updates of `job` got."""
        found = self._jobs.get(job)
        at_hand = tuple(update.sequence for update in found.queue) if found else ()
        return self.coverage.standing(job, at_hand, flowing=not self.continuity.held)

    def let_go(self, state: ConsumerState, missing: int) -> None:
        """The lane is not held any more, upon `state` and although `missing` updates had not come back."""
        at_hand = {job: tuple(update.sequence for update in found.queue) for job, found in self._jobs.items()}
        self.coverage.let_go(state, missing, at_hand)

    def redelivered(self, sequence: int, delivery: D, now: float) -> bool:
        """Take `delivery` as the new handle of an update already at hand; False if it is not at hand."""
        update = self._at_hand.get(sequence)
        if update is None:
            return False
        update.delivery = delivery
        update.touched_s = now
        return True

    def outcome_of(self, sequence: int) -> Outcome | None:
        """How a recently settled update was settled: its ack was lost if it is delivered again."""
        return self._settled.get(sequence)

    def deliver(self, update: Update[D]) -> None:
        """Take in an update that is neither at hand nor settled."""
        assert update.sequence not in self._at_hand, "a redelivery is not a new update"
        self._at_hand[update.sequence] = update
        job = self._jobs.get(update.job)
        if job is None:
            job = self._jobs[update.job] = _Job()
        insort(job.queue, update, key=_sequence_of)
        self._promote(job)

    def take(self, now: float) -> Update[D] | None:
        """The oldest head that is free to be sent; it is OUT from now on. None if there is none."""
        while self._ready and self._flows(now):
            update = heapq.heappop(self._ready)[1]
            if self._goes_out(update):
                return update
        return None

    def take_doomed(self, now: float) -> Update[D] | None:
        """The next head that is for the dead letters, to be written or looked up; it is OUT from now on, if any."""
        while self.doomed and self._flows(now):
            update = self.doomed.popleft()
            if self._goes_out(update):
                return update
        return None

    def put_back(self, update: Update[D]) -> None:
        """It was not answered, for no fault of its own: it is free to go again."""
        self._come_in(update, State.QUEUED)

    def retry(self, update: Update[D], due_s: float) -> None:
        """It must wait until `due_s`, and its job's later updates with it."""
        heapq.heappush(self._waiting, (due_s, update.sequence, update))
        self._come_in(update, State.WAITING)

    def wake(self, now: float) -> float | None:
        """Let go the updates whose wait is over; returns when the next one is due."""
        while self._waiting:
            due_s, _, update = self._waiting[0]
            if due_s > now:
                return due_s
            heapq.heappop(self._waiting)
            update.state = State.QUEUED
            self._promote(self._jobs[update.job])
        return None

    def settle(self, update: Update[D], outcome: Outcome) -> None:
        """It is done with, one way or the other: forget it and let its job's next one go."""
        assert update.state is State.OUT, "only what was taken can be settled"
        del self._at_hand[update.sequence]
        self._remember(update.sequence, outcome)
        if outcome is Outcome.DEAD_LETTERED:
            self.coverage.buried(update.job, update.sequence)
        job = self._jobs[update.job]
        job.out = None
        job.queue.remove(update)
        if job.queue:
            self._promote(job)
        else:
            del self._jobs[update.job]

    def unsent(self) -> list[Update[D]]:
        """What is at hand and not OUT: what a worker that stops gives back to the server."""
        return [update for update in self._at_hand.values() if update.state is not State.OUT]

    def _flows(self, now: float) -> bool:
        return not self.continuity.held and now < self.ours_until_s

    def _promote(self, job: _Job[D]) -> None:
        head = job.queue[0]
        if job.out is not None or head.state is not State.QUEUED:
            return
        head.state = State.READY
        if head.doom is not None or head.unsure:
            self.doomed.append(head)
        else:
            heapq.heappush(self._ready, (head.sequence, head))

    def _goes_out(self, update: Update[D]) -> bool:
        """Whether what came up is still its job's head; if so it is OUT."""
        job = self._jobs[update.job]
        if job.queue[0] is not update:  # an older one of its job came back in the meantime
            update.state = State.QUEUED
            return False
        update.state = State.OUT
        job.out = update
        return True

    def _come_in(self, update: Update[D], state: State) -> None:
        assert update.state is State.OUT, "only what was taken can come back"
        update.state = state
        job = self._jobs[update.job]
        job.out = None
        self._promote(job)

    def _remember(self, sequence: int, outcome: Outcome) -> None:
        self._settled[sequence] = outcome
        if len(self._settled) > _SETTLED_REMEMBERED:
            self._settled.popitem(last=False)


def _sequence_of(update: Update[D]) -> int:
    return update.sequence
