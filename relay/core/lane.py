"""The order of one lane: which update of which job may go next.

The server promises no order among redeliveries, so the lane makes its own. It sorts the updates at hand of each job by
stream sequence and gives out only the first, the *head*. The job's later updates wait until the head is settled. Heads
of different jobs do not wait for each other.

    admit ──► QUEUED ──(first of its job)──► READY ──take──► OUT ──settle──► forgotten
                 ▲                             ▲              │
                 │ an older one came back      ├── put_back ──┤
                 └─────────────────────────────┤              │
                                            WAITING ◄─ retry ─┘

A lane holds at most as many updates as its consumer's `max_ack_pending`: the server delivers no more.
"""

import heapq
import math
from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final

from relay.contract.subjects import is_marker, token_of_stored
from relay.contract.wire import Unsendable, decode
from relay.core.continuity import ConsumerState, Continuity
from relay.core.memory import Memory, Share
from relay.core.progress import LaneProgress, SettlementLog
from relay.core.session import Suspicion
from relay.core.trace import parse_traceparent, traceparent_of
from relay.core.update import Admission, DeadLetterHorizon, DeliveryLike, State, Update
from relay.core.verdict import DeadLetter, Outcome, Retry, RetryPolicy, judge_drop

_SETTLED_REMEMBERED: Final = 4096
"""How many settled sequences a lane remembers: a lost ack brings them back, and they are settled the same way again."""
_CLOCK_SKEW_S: Final = 60.0
"""By how much the clocks of the servers that lead the two streams may differ."""
_SAME_TROUBLE_S: Final = 300.0
"""Unexplained answers that follow each other within this time have the same cause."""
_sequence_of = attrgetter("sequence")
_consumer_sequence_of = attrgetter("consumer_sequence")


@dataclass(slots=True)
class _Job:
    queue: list[Update] = field(default_factory=list[Update])
    """Its updates at hand, by stream sequence; the first is the head."""
    out: Update | None = None
    """The one that is OUT. It need not be the head: an older one may have come back since it was taken."""


class Lane:
    """The updates at hand of one lane. Every decision about them is made here, and none waits.

    Args:
        horizon: tells which updates may have a dead letter already.
        share: its part of the memory for updates; without one it has as much as it wants.
    """

    def __init__(
        self, number: int, continuity: Continuity, horizon: DeadLetterHorizon, share: Share | None = None
    ) -> None:
        self.number = number
        self.share = share or Memory().join()
        self.continuity = continuity
        """While it holds the lane nothing is given out: an older update may still be on its way."""
        self.ours_until_s = math.inf
        """When the lease on the lane ends, on the monotonic clock: from then on nothing is given out."""
        self.ready: list[tuple[int, int, Update]] = []
        """A heap of the heads that may be sent: those of which it is not known whether they drop connections last, else
        by sequence. An entry is outdated if its job has an older head now."""
        self.dead_letters: deque[Update] = deque()
        """The heads for the dead-letter stream, in the order in which they became heads. Entries can be outdated."""
        self.questions: deque[Update] = deque()
        """The heads about which the stream must be asked, in the order of their answers. Entries can be outdated."""
        self._waiting: list[tuple[float, int, Update]] = []
        """A heap of the heads that wait out a backoff, by when they are due. Entries can be outdated."""
        self._horizon = horizon
        self._consumer_made_at_s = math.inf
        self._unexplained_s = -math.inf
        self._at_hand: dict[int, Update] = {}
        self._jobs: dict[str, _Job] = {}
        self._settled: OrderedDict[int, Outcome] = OrderedDict()
        self._log = SettlementLog()

    def __repr__(self) -> str:
        held = ", held" if self.held else ""
        return f"<Lane {self.number}: {len(self._at_hand)} at hand, {self.out} out{held}>"

    def __len__(self) -> int:
        return len(self._at_hand)

    # --- what is known

    @property
    def held(self) -> bool:
        """Whether nothing is given out, because an older update may still be on its way."""
        return self.continuity.held

    @property
    def out(self) -> int:
        """How many updates are OUT."""
        return sum(job.out is not None for job in self._jobs.values())

    def at_hand(self) -> Iterator[Update]:
        """Every update that is not settled yet, in no particular order."""
        return iter(self._at_hand.values())

    def unsent(self) -> list[Update]:
        """What is at hand and not OUT: a worker that stops gives it back to the server."""
        return [update for update in self._at_hand.values() if update.state is not State.OUT]

    def undecided(self) -> list[Update]:
        """What dropped the connection while nothing told whose fault that was, and is still at hand."""
        return [update for update in self._at_hand.values() if update.undecided]

    def outcome_of(self, sequence: int) -> Outcome | None:
        """How a recently settled update was settled; None if it was not, or too long ago."""
        return self._settled.get(sequence)

    def progress(self, job: str) -> LaneProgress:
        """What is known here of how far the updates of `job` got."""
        found = self._jobs.get(job)
        at_hand = tuple(update.sequence for update in found.queue) if found else ()
        return self._log.progress(job, at_hand, flowing=not self.held)

    # --- what the server delivers

    def began(self, state: ConsumerState, now_s: float) -> None:
        """Pulling starts, or starts over, from a consumer in this state."""
        self.continuity.began(state, now_s)
        self._log.began(state)
        self._consumer_made_at_s = state.made_at_s

    def admit(self, deliveries: Sequence[DeliveryLike], now_s: float) -> Admission:
        """Take in one or more deliveries, in the order in which they came.

        Each is one of four things: a redelivery of an update at hand, where it replaces the earlier delivery; a
        redelivery of a settled update, which the caller has to settle again; a marker, which the caller has to
        acknowledge; or a new update, which is decoded and queued behind the older ones of its job.
        """
        admission = Admission()
        for delivery in deliveries:
            sequence = delivery.sequence
            if (update := self._at_hand.get(sequence)) is not None:
                if update.text is update.delivery.body:
                    update.text = delivery.body  # the same bytes, so that they are held once
                update.delivery = delivery
                update.touched_s = now_s
            elif (outcome := self._settled.get(sequence)) is not None:
                admission.settled_before.append((delivery, outcome))
            elif not delivery.body and is_marker(delivery.headers, delivery.body):
                admission.markers.append(delivery)
            else:
                self._enqueue(delivery, now_s, admission)
        self.continuity.delivered(map(_consumer_sequence_of, deliveries), now_s)
        admission.held = self.continuity.held
        self._log.delivered(deliveries, held=admission.held)
        return admission

    def resolve(self, state: ConsumerState, now_s: float) -> int:
        """Check a held lane against the consumer's `state`; returns how many updates are missing.

        The lane is released if none is missing, or if it has waited long enough. It is not if the consumer was made
        anew since pulling started: that one knows nothing of earlier deliveries, and delivers everything again, which
        only a lane that begins anew can tell from new updates.
        """
        if self._is_of_another_consumer(state):
            return 0
        missing = self.continuity.resolve(state, self._count_up_to, now_s)
        if not self.held:
            at_hand = {job: tuple(update.sequence for update in found.queue) for job, found in self._jobs.items()}
            self._log.released(state, missing, at_hand)
        return missing

    def overdue(self, state: ConsumerState, now_s: float) -> list[int]:
        """Sequences to ask the server for again, before `resolve`, because they may be those of missing updates."""
        if self._is_of_another_consumer(state):
            return []
        return [sequence for sequence in self.continuity.overdue(state, now_s) if sequence not in self._at_hand]

    # --- what goes out

    def take(self, now_s: float) -> Update | None:
        """The oldest head that may be sent; it is OUT from now on. None if there is none."""
        while self.ready and self._flows(now_s):
            update = heapq.heappop(self.ready)[2]
            if self._goes_out(update):
                return update
        return None

    def take_dead_letter(self, now_s: float) -> Update | None:
        """The next head for the dead-letter stream, to be written or looked up; it is OUT from now on. Else None."""
        return self._take_first(self.dead_letters, now_s)

    def take_question(self, now_s: float) -> Update | None:
        """The next head about which the stream must be asked; it is OUT from now on. None if there is none."""
        return self._take_first(self.questions, now_s)

    # --- what happens to an update that is OUT

    def fail(self, update: Update, verdict: Retry | DeadLetter, now_s: float) -> None:
        """An attempt failed by the update's own fault: it waits for its next attempt, or ends as a dead letter."""
        update.attempts += 1
        if isinstance(verdict, Retry):
            update.unexplained = verdict.unexplained
            self.retry(update, now_s + verdict.wait_s)
        else:
            update.dead_letter = verdict
            self.put_back(update)

    def may_go_again(self, suspicion: Suspicion[Update], policy: RetryPolicy, now_s: float) -> bool:
        """Whether the suspect of a dropped connection is to be sent again, by itself; if not, it is put back.

        The drop counts as an attempt only if a control has shown that the Facilitator is sound. If the suspect was not
        alone on the connection, another update may have caused the drop, so only an update that was alone is
        dead-lettered for it. If no control tells, other heads go before the suspect from now on.
        """
        suspect = suspicion.suspect
        if not suspicion.sound:
            suspect.undecided += 1
            self.put_back(suspect)
            return False
        if suspicion.blamed:
            suspect.attempts += 1
            suspect.dead_letter = judge_drop(suspect.attempts, policy) if suspicion.alone else None
        if suspect.dead_letter is None and now_s < self.ours_until_s:
            return True
        self.put_back(suspect)
        return False

    def control_found(self) -> None:
        """There is a control again, so drops can be told apart: what was undecided is in its usual turn again."""
        for update in self.undecided():
            update.undecided = 0
        self.ready = [(update.undecided, update.sequence, update) for _, _, update in self.ready]
        heapq.heapify(self.ready)

    def has_no_dead_letter(self, update: Update) -> DeadLetter | None:
        """The dead-letter stream was asked and does not have `update`: returns the dead letter to write.

        None if it needs none: then it is put back, to be sent.
        """
        update.maybe_dead_lettered = False
        if update.dead_letter is None:
            self.put_back(update)
        return update.dead_letter

    def lose(self, update: Update) -> None:
        """The connection broke before the update was answered: it may be stored, and may be taken again."""
        update.maybe_stored = True
        self.put_back(update)

    def question(self, update: Update) -> None:
        """The stream must be asked whether the answer to the update is explained; its job's later updates wait."""
        update.questioned = True
        self.put_back(update)

    def is_new_trouble(self, now_s: float) -> bool:
        """An answer was unexplained: returns whether it is the first such answer in the lane for some time."""
        before_s, self._unexplained_s = self._unexplained_s, now_s
        return now_s - before_s > _SAME_TROUBLE_S

    def settle(self, update: Update, outcome: Outcome) -> None:
        """The update has ended with this outcome: forget it, and free its job's next one."""
        assert update.state is State.OUT, "only what was taken can be settled"
        del self._at_hand[update.sequence]
        self.share.at_hand_bytes -= update.held_bytes
        self._settled[update.sequence] = outcome
        if len(self._settled) > _SETTLED_REMEMBERED:
            self._settled.popitem(last=False)
        if outcome is Outcome.DEAD_LETTERED:
            self._log.dead_lettered(update.job, update.sequence)
        job = self._jobs[update.job]
        job.out = None
        job.queue.remove(update)
        if job.queue:
            self._promote(job)
        else:
            del self._jobs[update.job]

    def put_back(self, update: Update) -> None:
        """The update was not answered, through no fault of its own: it may be taken again."""
        self._come_in(update, State.QUEUED)

    def retry(self, update: Update, due_s: float) -> None:
        """The update waits until `due_s`, on the monotonic clock; its job's later updates wait behind it."""
        heapq.heappush(self._waiting, (due_s, update.sequence, update))
        self._come_in(update, State.WAITING)

    def wake(self, now_s: float) -> float | None:
        """Free the updates whose wait is over; returns when the next one is due, None if no other waits."""
        while self._waiting:
            due_s, _, update = self._waiting[0]
            if due_s > now_s:
                return due_s
            heapq.heappop(self._waiting)
            update.state = State.QUEUED
            self._promote(self._jobs[update.job])
        return None

    # --- internal steps

    def _enqueue(self, delivery: DeliveryLike, now_s: float, admission: Admission) -> None:
        token = token_of_stored(delivery.subject)
        update = Update(self, delivery.sequence, token, delivery, now_s, now_s, delivery.size_bytes)
        content = decode(delivery.body, token)
        if isinstance(content, Unsendable):
            update.dead_letter = DeadLetter(content.reason, content.error)
        else:
            update.text, update.status = content.text, content.status
            admission.repairs.extend(content.repairs)
            if content.text is not delivery.body:
                update.held_bytes += len(content.text)
        if delivery.headers:
            traceparent = traceparent_of(delivery.headers)
            admission.malformed_traceparents += traceparent is not None and parse_traceparent(traceparent) is None
        # What is delivered for the first time can have a dead letter only if a consumer before this one delivered it.
        known_s = min(self._horizon.at_start_s, self._consumer_made_at_s)
        redelivered = delivery.deliveries > 1
        newest_s = self._horizon.newest_s if redelivered else known_s
        # No allowance for clocks here: in doubt an update had better become a dead letter than be lost.
        update.maybe_stored = redelivered or delivery.stored_at_s < self._consumer_made_at_s
        update.maybe_dead_lettered = delivery.stored_at_s <= newest_s + _CLOCK_SKEW_S
        self._at_hand[update.sequence] = update
        self.share.at_hand_bytes += update.held_bytes
        if (job := self._jobs.get(token)) is None:
            job = self._jobs[token] = _Job([update])
        else:
            insort(job.queue, update, key=_sequence_of)
        self._promote(job)

    def _is_of_another_consumer(self, state: ConsumerState) -> bool:
        return state.made_at_s > self._consumer_made_at_s

    def _count_up_to(self, sequence: int) -> int:
        """How many updates at hand have a stream sequence of at most `sequence`."""
        return sum(at_hand <= sequence for at_hand in self._at_hand)

    def _flows(self, now_s: float) -> bool:
        return not self.continuity.held and now_s < self.ours_until_s

    def _promote(self, job: _Job) -> None:
        head = job.queue[0]
        if job.out is not None or head.state is not State.QUEUED:
            return
        head.state = State.READY
        if head.dead_letter is not None or head.maybe_dead_lettered:
            self.dead_letters.append(head)
        elif head.questioned:
            self.questions.append(head)
        else:
            heapq.heappush(self.ready, (head.undecided, head.sequence, head))

    def _take_first(self, heads: deque[Update], now_s: float) -> Update | None:
        while heads and self._flows(now_s):
            update = heads.popleft()
            if self._goes_out(update):
                return update
        return None

    def _goes_out(self, update: Update) -> bool:
        """Whether the update is still its job's head; if so, it is OUT from now on."""
        job = self._jobs[update.job]
        if job.queue[0] is not update:  # an older one of its job came back in the meantime
            update.state = State.QUEUED
            return False
        update.state = State.OUT
        job.out = update
        return True

    def _come_in(self, update: Update, state: State) -> None:
        assert update.state is State.OUT, "only what was taken can come back"
        update.state = state
        job = self._jobs[update.job]
        job.out = None
        self._promote(job)
