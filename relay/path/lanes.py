"""The lanes of one connection: what goes out next, and what becomes of what was answered."""

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Iterator
from typing import Final

from relay.contract.report import LaneReport
from relay.contract.subjects import REPLAYED_FROM_HEADER, token_of_stored
from relay.contract.wire import Fault, decode
from relay.core.backoff import Backoff
from relay.core.lane import Lane, Update
from relay.core.ports import (
    DeadLetterStream,
    DeliveryLike,
    InFlight,
    OpenSource,
    PushQueue,
    SettlementObserver,
    Sink,
    WatchAdvisories,
)
from relay.core.progress import LaneProgress
from relay.core.session import Answered, Lost, Opened, Pushed
from relay.core.trace import parse_traceparent, traced, traceparent_of
from relay.core.verdict import Ack, DeadLetter, Outcome, Retry, judge, judge_drop
from relay.observability.logs import get_logger
from relay.observability.metrics import Metrics
from relay.path.dead_letter_worker import ENDED_BEFORE, DeadLetterWorker
from relay.path.lane_run import LaneRun
from relay.path.limits import Limits
from relay.timing.clock import now_s

_log = get_logger(__name__)

_BEATS_PER_ACK_WAIT: Final = 3


class Dispatcher:
    """Takes the updates of its lanes through one Facilitator connection, and settles each.

    A lane belongs to one dispatcher only, so that a job stays on one connection.

    Args:
        open_source: makes a lane's source.
        sink: the connection; it must be run with this object as its owner.
    """

    def __init__(
        self,
        open_source: OpenSource,
        sink: Sink,
        dead_letters: DeadLetterStream,
        pushes: PushQueue,
        *,
        watch_advisories: WatchAdvisories,
        limits: Limits,
        backoff: Backoff,
        metrics: Metrics,
        receipts: SettlementObserver | None = None,
        tracing: SettlementObserver | None = None,
    ) -> None:
        self._open_source = open_source
        self._sink = sink
        self._dead_letters = dead_letters
        self._pushes = pushes
        self._watch_advisories = watch_advisories
        self._limits = limits
        self._backoff = backoff
        self._metrics = metrics
        self._receipts = receipts
        self._tracing = tracing
        self._count = {Outcome.ACKNOWLEDGED: metrics.acknowledged, Outcome.DUPLICATE: metrics.duplicate}
        self._feeds: dict[Lane[DeliveryLike], LaneRun] = {}
        self._turns: deque[Lane[DeliveryLike]] = deque()
        self._dead_lettering = DeadLetterWorker(dead_letters, self, metrics)
        self._open = asyncio.Event()
        self._retry_earlier = asyncio.Event()

    # --- what the composition root and the owner of the leases call

    async def run(self) -> None:
        """Do what goes on in the background for all lanes, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_in_progress())
            group.create_task(self._release_retries())
            group.create_task(self._dead_lettering.run())

    async def drive(self, number: int, ours_until_s: float, leaving: asyncio.Event) -> None:
        """Take a lane's updates through the connection until `leaving` is set or its source ends, then drain the lane.

        To drain is to take nothing new, to finish what is with the Facilitator, and to give the rest back to the
        server; it takes as long as the Facilitator takes to answer. Cancelled, the lane is dropped: what is at hand
        comes to its next owner after `ack_wait`. Nothing is acknowledged that was not answered, either way.
        """
        feed = LaneRun(number, self._open_source, self._on_delivery, self._open, self._limits)
        feed.lane.ours_until_s = ours_until_s
        self._feeds[feed.lane] = feed
        self._turns.append(feed.lane)
        try:
            await self._dead_letters.look()
            async with asyncio.TaskGroup() as group:
                pulling = group.create_task(feed.source.run())
                recovering = group.create_task(feed.recover(self.pump))
                advised = group.create_task(self._watch_advisories(feed.lane))
                left = group.create_task(leaving.wait())
                await asyncio.wait({left, pulling}, return_when=asyncio.FIRST_COMPLETED)
                left.cancel()
                self._turns.remove(feed.lane)
                feed.source.drain()
                await pulling
                await feed.give_back()
                recovering.cancel()
                advised.cancel()
        finally:
            feed.lane.ours_until_s = -math.inf  # the session may still have a suspect of it
            del self._feeds[feed.lane]
            if feed.lane in self._turns:
                self._turns.remove(feed.lane)
            self._metrics.at_hand(number, 0)

    def extend(self, number: int, ours_until_s: float) -> None:
        """The lease on a lane was renewed."""
        for lane in self._feeds:
            if lane.number == number:
                lane.ours_until_s = ours_until_s
        self.pump()  # if the renewal came late, nothing went out meanwhile, and nothing else may come to pass

    def on_broker_reconnected(self) -> None:
        """The NATS connection was made anew: the server has forgotten every pull."""
        for feed in self._feeds.values():
            feed.source.restart()

    @property
    def drives(self) -> bool:
        """Whether any lane is driven here; if not, it stands by."""
        return bool(self._feeds)

    def report(self) -> None:
        """Bring the gauges of the metrics up to date."""
        for lane in self.lanes():
            self._metrics.at_hand(lane.lane, lane.at_hand)

    def lanes(self) -> list[LaneReport]:
        """How each lane stands that is driven here."""
        return [feed.report() for feed in self._feeds.values()]

    def standing(self, number: int, job: str) -> LaneProgress | None:
        """What is known here of how far a job's updates got in a lane; None if that is not driven here."""
        return next((lane.standing(job) for lane in self._feeds if lane.number == number), None)

    def troubles(self) -> list[str]:
        """Which lanes cannot be pulled, and why."""
        feeds = self._feeds.values()
        return [f"lane {feed.lane.number}: {feed.source.trouble}" for feed in feeds if feed.source.trouble]

    # --- what comes from NATS

    def _on_delivery(self, feed: LaneRun, delivery: DeliveryLike) -> None:
        lane, now = feed.lane, now_s()
        lane.continuity.delivered(delivery.consumer_sequence, now)
        lane.coverage.delivered(delivery.sequence, delivery.stored_at_s, held=lane.continuity.held)
        outcome = lane.outcome_of(delivery.sequence)
        if outcome is None and not lane.redelivered(delivery.sequence, delivery, now):
            lane.deliver(self._decode(feed, delivery, now))
        if lane.continuity.held:
            feed.look_again()
        self._let_out(lane)
        if outcome is not None:
            _settle_again(delivery, outcome)

    def _decode(self, feed: LaneRun, delivery: DeliveryLike, now: float) -> InFlight:
        token = token_of_stored(delivery.subject)
        content = decode(delivery.body, token)
        if isinstance(content, Fault):
            frame, doom = None, DeadLetter(content.reason, content.error)
        else:
            frame, doom = content, None
            for rule in content.repairs:
                self._metrics.repaired(rule)
        if (traceparent := traceparent_of(delivery.headers)) is not None and parse_traceparent(traceparent) is None:
            self._metrics.traceparent_malformed()
        unsure = self._dead_letters.may_hold(delivery, feed.made_at_s)
        update = Update(feed.lane, delivery.sequence, token, delivery, frame, doom, unsure=unsure)
        update.received_s = update.touched_s = update.delivered_s = now
        return update

    # --- what the connection to the Facilitator calls

    def next(self) -> InFlight | None:
        """The head to send now, lane by lane in turns, so that a busy lane does not starve the others."""
        now = now_s()
        for _ in range(len(self._turns)):
            self._turns.rotate(-1)
            if (update := self._turns[0].take(now)) is not None:
                return update
        return None

    def on_opened(self, event: Opened[InFlight]) -> bool:
        """The session may be used again; a suspect goes first, alone, if it may go once more."""
        self._open.set()
        for feed in self._feeds.values():
            feed.connection_opened()
        if event.suspect is None:
            return False
        return self._may_go_again(event.suspect, blamed=event.blamed, alone=event.alone)

    def on_answered(self, event: Answered[InFlight]) -> None:
        """One update was answered: settle it, or let it wait at its lane's gate."""
        update = event.ticket
        self._metrics.answered(event.round_trip_s)
        match judge(event.reply, update.attempts + 1, self._limits.max_attempts):
            case Ack(outcome):
                update.delivery.ack()
                self.settled(update, outcome)
                self._count[outcome](time.time() - update.delivery.stored_at_s)
            case Retry(error):
                update.attempts += 1
                self._metrics.retried()
                self._retry_later(update, error)
            case DeadLetter() as doom:
                update.attempts += 1
                update.doom = doom
                self.put_back(update)
        self._dead_lettering.take(update.lane)  # the connection asks for what to send when it is through its answers

    async def on_pushed(self, event: Pushed) -> None:
        """Hand on what the Facilitator sent of its own accord; waits while the queue is full."""
        await self._pushes.put(event)

    def on_lost(self, event: Lost[InFlight]) -> None:
        """Everything unanswered goes back to the head of its job; the session keeps the suspect."""
        self._open.clear()
        for update in event.unanswered:
            self.put_back(update)
        for feed in self._feeds.values():
            feed.connection_lost()

    def _may_go_again(self, suspect: InFlight, *, blamed: bool, alone: bool) -> bool:
        if blamed:
            suspect.attempts += 1
            self._metrics.retried()
            verdict = judge_drop(suspect.attempts, self._limits.max_attempts)
            # In company it may have been a neighbour; only what is dropped alone is dead-lettered for it.
            suspect.doom = verdict if isinstance(verdict, DeadLetter) and alone else None
        if suspect.doom is None and now_s() < suspect.lane.ours_until_s:
            return True
        self.put_back(suspect)
        self.pump()
        return False

    # --- moving on; those who bury call this as well

    def pump(self) -> None:
        """Let out what may go of every lane."""
        self._sink.wake()
        for lane in self._turns:
            self._dead_lettering.take(lane)

    def settled(self, update: InFlight, outcome: Outcome) -> None:
        """The server knows what became of it: forget it, and tell those who want to hear."""
        update.lane.settle(update, outcome)
        if self._receipts is not None:
            self._receipts.settled(update, outcome)
        if self._tracing is not None:
            self._tracing.settled(update, outcome)
        if REPLAYED_FROM_HEADER in update.delivery.headers:
            self._metrics.replayed(outcome)
        self._progressed(update)

    def retry(self, update: InFlight, delay_s: float) -> None:
        """It goes again after `delay_s` seconds, and its job's later updates wait with it."""
        update.lane.retry(update, now_s() + delay_s)
        self._progressed(update)
        self._retry_earlier.set()

    def put_back(self, update: InFlight) -> None:
        """It is free to go again."""
        update.lane.put_back(update)
        self._progressed(update)

    def _let_out(self, lane: Lane[DeliveryLike]) -> None:
        """Let out what may go of a lane: heads to the Facilitator, doomed ones to be buried."""
        self._sink.wake()
        self._dead_lettering.take(lane)

    def _retry_later(self, update: InFlight, error: str) -> None:
        wait_s = self._backoff.delay_s(update.attempts)
        self.retry(update, wait_s)
        _log.info(
            "refused, will be tried again",
            subject=update.delivery.subject,
            sequence=update.sequence,
            attempts=update.attempts,
            wait_s=round(wait_s, 3),
            error=error,
            **traced(update.delivery.headers),
        )

    def _progressed(self, update: InFlight) -> None:
        """The update is not OUT any more; its lane may have been dropped in the meantime."""
        if (feed := self._feeds.get(update.lane)) is not None:
            feed.progressed()

    # --- long-lived tasks

    async def _keep_in_progress(self) -> None:
        """Tell the server what is still worked on, well before `ack_wait` is over."""
        beat_s = self._limits.ack_wait_s / _BEATS_PER_ACK_WAIT
        while True:
            await asyncio.sleep(beat_s)
            # Judged by its age, a lane that flows costs no beats at all.
            for update in list(self._stale(now_s() - beat_s)):
                update.touched_s = now_s()
                update.delivery.in_progress()

    def _stale(self, touched_before_s: float) -> Iterator[InFlight]:
        for lane in self._feeds:
            yield from (update for update in lane.at_hand() if update.touched_s <= touched_before_s)

    async def _release_retries(self) -> None:
        """Let updates go again when their backoff is over."""
        while True:
            self._retry_earlier.clear()
            due = [due_s for lane in self._turns if (due_s := lane.wake(now_s())) is not None]
            self.pump()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(due, default=None)):
                    await self._retry_earlier.wait()


def _settle_again(delivery: DeliveryLike, outcome: Outcome) -> None:
    """Tell the server once more what became of an update that it delivers again, because it did not hear it."""
    if outcome is Outcome.DEAD_LETTERED:
        delivery.term(ENDED_BEFORE)
    else:
        delivery.ack()
