"""The path of an update: from its lane through one Facilitator connection to its settlement.

    source ─on_delivery→ lane ─_pump→ facilitator ─on_answered→ verdict ─→ ack
                          ▲                                        ├─→ wait at the lane's gate, go again
                          └──────── put back, when a connection is lost └─→ dead letters, then term

Nothing in here opens a socket: what it works with comes in through the Protocols of core/ports.py.
"""

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from typing import Final

from relay.core.backoff import Backoff
from relay.core.continuity import ConsumerState, Continuity
from relay.core.lane import Lane, Update
from relay.core.ports import (
    DeadLetterStream,
    DeliveryLike,
    OpenSource,
    PushQueue,
    ReceiptTray,
    Sink,
    Source,
    Ticket,
    WatchAdvisories,
)
from relay.core.session import Answered, Lost, Opened, Pushed
from relay.core.standing import Standing
from relay.core.trace import parse_traceparent, traced, traceparent_of
from relay.core.verdict import Ack, DeadLetter, Outcome, Retry, judge, judge_drop
from relay.errors import JetStreamError, RelayError
from relay.logs import get_logger
from relay.metrics import Metrics
from relay.report import LaneReport
from relay.subjects import REPLAYED_FROM_HEADER, token_of_stored
from relay.wire import Fault, decode

_log = get_logger(__name__)

_DEAD_LETTER_WRITERS: Final = 4
_DEAD_LETTER_RETRY_S: Final = 5.0
_RECHECK_S: Final = 0.2
"""How often a held lane's consumer is looked at again; what comes back in between is noticed at once."""
_BEATS_PER_ACK_WAIT: Final = 3
_DOOMED_QUEUE_SIZE: Final = 100
_HANDFUL: Final = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """The settings that this module goes by."""

    lane_capacity: int
    """How many updates a lane may have at hand: its consumer's `max_ack_pending`."""
    max_attempts: int
    ack_wait_s: float


@dataclass(slots=True)
class _Feed:
    """A lane that is being driven, with its source."""

    lane: Lane[DeliveryLike]
    source: Source
    made_at_s: float = math.inf
    """When the consumer was made that the source pulls from, in seconds of Unix time."""
    recheck: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it may have changed whether the lane must be held."""
    progress: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when an update of the lane is not OUT any more."""


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
        receipts: ReceiptTray | None = None,
        tracing: ReceiptTray | None = None,
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
        self._feeds: dict[Lane[DeliveryLike], _Feed] = {}
        self._turns: deque[Lane[DeliveryLike]] = deque()
        self._doomed: asyncio.Queue[Ticket] = asyncio.Queue(_DOOMED_QUEUE_SIZE)
        self._unanswered_until_s = -math.inf
        self._open = asyncio.Event()
        self._retry_earlier = asyncio.Event()

    # --- what the composition root and the owner of the leases call

    async def run(self) -> None:
        """Do what goes on in the background for all lanes, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_in_progress())
            group.create_task(self._release_retries())
            for _ in range(_DEAD_LETTER_WRITERS):
                group.create_task(self._bury())

    async def drive(self, number: int, ours_until_s: float, leaving: asyncio.Event) -> None:
        """Take a lane's updates through the connection until `leaving` is set or its source ends, then drain the lane.

        To drain is to take nothing new, to finish what is with the Facilitator, and to give the rest back to the
        server; it takes as long as the Facilitator takes to answer. Cancelled, the lane is dropped: what is at hand
        comes to its next owner after `ack_wait`. Nothing is acknowledged that was not answered, either way.
        """
        feed = self._make_feed(number)
        feed.lane.ours_until_s = ours_until_s
        self._feeds[feed.lane] = feed
        self._turns.append(feed.lane)
        try:
            await self._dead_letters.look()
            async with asyncio.TaskGroup() as group:
                pulling = group.create_task(feed.source.run())
                recovering = group.create_task(self._recover(feed))
                advised = group.create_task(self._watch_advisories(feed.lane))
                left = group.create_task(leaving.wait())
                await asyncio.wait({left, pulling}, return_when=asyncio.FIRST_COMPLETED)
                left.cancel()
                self._turns.remove(feed.lane)
                feed.source.drain()
                await pulling
                await self._give_back(feed)
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
        self._pump()  # if the renewal came late, nothing went out meanwhile, and nothing else may come to pass

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
        return [_describe(feed) for feed in self._feeds.values()]

    def standing(self, number: int, job: str) -> Standing | None:
        """What is known here of how far a job's updates got in a lane; None if that is not driven here."""
        return next((lane.standing(job) for lane in self._feeds if lane.number == number), None)

    def troubles(self) -> list[str]:
        """Which lanes cannot be pulled, and why."""
        feeds = self._feeds.values()
        return [f"lane {feed.lane.number}: {feed.source.trouble}" for feed in feeds if feed.source.trouble]

    # --- what comes from NATS

    async def _on_delivery(self, feed: _Feed, delivery: DeliveryLike) -> None:
        lane, now = feed.lane, _now()
        lane.continuity.delivered(delivery.consumer_sequence, now)
        lane.coverage.delivered(delivery.sequence, delivery.stored_at_s, held=lane.continuity.held)
        outcome = lane.outcome_of(delivery.sequence)
        if outcome is None and not lane.redelivered(delivery.sequence, delivery, now):
            lane.deliver(self._decode(feed, delivery, now))
        if lane.continuity.held:
            feed.recheck.set()
        self._let_out(lane)
        if outcome is not None:
            await _settle(delivery, outcome)  # once more: the server does not know it

    def _decode(self, feed: _Feed, delivery: DeliveryLike, now: float) -> Ticket:
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

    def next(self) -> Ticket | None:
        """The head to send now, lane by lane in turns, so that a busy lane does not starve the others."""
        now = _now()
        for _ in range(len(self._turns)):
            self._turns.rotate(-1)
            if (update := self._turns[0].take(now)) is not None:
                return update
        return None

    async def on_opened(self, event: Opened[Ticket]) -> bool:
        """The session may be used again; a suspect goes first, alone, if it may go once more."""
        self._open.set()
        for feed in self._feeds.values():
            feed.lane.continuity.be_patient(_now())
            feed.recheck.set()
            feed.source.top_up()
        if event.suspect is None:
            return False
        return self._may_go_again(event.suspect, blamed=event.blamed, alone=event.alone)

    async def on_answered(self, event: Answered[Ticket]) -> None:
        """One update was answered: settle it, or let it wait at its lane's gate."""
        update = event.ticket
        self._metrics.answered(event.round_trip_s)
        match judge(event.reply, update.attempts + 1, self._limits.max_attempts):
            case Ack(outcome):
                await update.delivery.ack()
                self._settled(update, outcome)
                self._count[outcome](time.time() - update.delivery.stored_at_s)
            case Retry(error):
                update.attempts += 1
                self._metrics.retried()
                self._retry_later(update, error)
            case DeadLetter() as doom:
                update.attempts += 1
                update.doom = doom
                self._put_back(update)
        self._let_out_doomed(update.lane)  # the connection asks for what to send when it is through its answers

    async def on_pushed(self, event: Pushed) -> None:
        """Hand on what the Facilitator sent of its own accord; waits while the queue is full."""
        await self._pushes.put(event)

    def on_lost(self, event: Lost[Ticket]) -> None:
        """Everything unanswered goes back to the head of its job; the session keeps the suspect."""
        self._open.clear()
        for update in event.unanswered:
            self._put_back(update)
        for feed in self._feeds.values():
            feed.progress.set()

    def _may_go_again(self, suspect: Ticket, *, blamed: bool, alone: bool) -> bool:
        if blamed:
            suspect.attempts += 1
            self._metrics.retried()
            verdict = judge_drop(suspect.attempts, self._limits.max_attempts)
            # In company it may have been a neighbour; only what is dropped alone is dead-lettered for it.
            suspect.doom = verdict if isinstance(verdict, DeadLetter) and alone else None
        if suspect.doom is None and _now() < suspect.lane.ours_until_s:
            return True
        self._put_back(suspect)
        self._pump()
        return False

    # --- moving on

    def _pump(self) -> None:
        """Let out what may go of every lane."""
        self._sink.wake()
        for lane in self._turns:
            self._let_out_doomed(lane)

    def _let_out(self, lane: Lane[DeliveryLike]) -> None:
        """Let out what may go of a lane: heads to the Facilitator, doomed ones to be buried."""
        self._sink.wake()
        self._let_out_doomed(lane)

    def _let_out_doomed(self, lane: Lane[DeliveryLike]) -> None:
        while lane.doomed and not self._doomed.full() and (update := lane.take_doomed(_now())) is not None:
            self._doomed.put_nowait(update)

    def _settled(self, update: Ticket, outcome: Outcome) -> None:
        update.lane.settle(update, outcome)
        if self._receipts is not None:
            self._receipts.settled(update, outcome)
        if self._tracing is not None:
            self._tracing.settled(update, outcome)
        if REPLAYED_FROM_HEADER in update.delivery.headers:
            self._metrics.replayed(outcome)
        self._progressed(update)

    def _retry(self, update: Ticket, delay_s: float) -> None:
        update.lane.retry(update, _now() + delay_s)
        self._progressed(update)
        self._retry_earlier.set()

    def _retry_later(self, update: Ticket, error: str) -> None:
        wait_s = self._backoff.delay_s(update.attempts)
        self._retry(update, wait_s)
        _log.info(
            "refused, will be tried again",
            subject=update.delivery.subject,
            sequence=update.sequence,
            attempts=update.attempts,
            wait_s=round(wait_s, 3),
            error=error,
            **traced(update.delivery.headers),
        )

    def _put_back(self, update: Ticket) -> None:
        update.lane.put_back(update)
        self._progressed(update)

    def _progressed(self, update: Ticket) -> None:
        """The update is not OUT any more; its lane may have been dropped in the meantime."""
        if (feed := self._feeds.get(update.lane)) is not None:
            feed.progress.set()
            feed.source.top_up()

    # --- long-lived tasks

    async def _bury(self) -> None:
        """Write doomed updates to the dead-letter stream, and only then end them."""
        while True:
            update = await self._doomed.get()
            if _now() >= update.lane.ours_until_s:
                # The lane is another's by now, and so is the update; but it goes on if only the renewal is late.
                self._put_back(update)
                continue
            if (pause_s := self._unanswered_until_s - _now()) > 0:
                self._retry(update, pause_s)
                continue
            try:
                await self._bury_one(update)
            except RelayError as error:
                _log.error(
                    "the dead letters cannot be reached; the update is kept",
                    subject=update.delivery.subject,
                    sequence=update.sequence,
                    error=str(error),
                    **traced(update.delivery.headers),
                )
                self._retry(update, _DEAD_LETTER_RETRY_S)
                if not isinstance(error, JetStreamError):
                    # Nobody answers. To learn that of each update would take a timeout each, which those who hand
                    # a lane over or stop would have to wait for.
                    self._unanswered_until_s = _now() + _DEAD_LETTER_RETRY_S
            self._pump()

    async def _bury_one(self, update: Ticket) -> None:
        if update.unsure and await self._dead_letters.holds(update.delivery):
            await _settle(update.delivery, Outcome.DEAD_LETTERED)
            self._settled(update, Outcome.DEAD_LETTERED)
            return
        update.unsure = False
        if update.doom is None:
            self._put_back(update)
            return
        await self._dead_letters.write(update.delivery, update.doom, update.attempts)
        await _settle(update.delivery, Outcome.DEAD_LETTERED, update.doom.reason)
        self._settled(update, Outcome.DEAD_LETTERED)
        self._metrics.dead_lettered(update.doom.reason)
        _log.warning(
            "dead-lettered",
            subject=update.delivery.subject,
            sequence=update.sequence,
            reason=update.doom.reason,
            attempts=update.attempts,
            error=update.doom.error,
            **traced(update.delivery.headers),
        )

    async def _keep_in_progress(self) -> None:
        """Tell the server what is still worked on, well before `ack_wait` is over."""
        beat_s = self._limits.ack_wait_s / _BEATS_PER_ACK_WAIT
        while True:
            await asyncio.sleep(beat_s)
            # Judged by its age, a lane that flows costs no beats at all.
            for update in list(self._stale(_now() - beat_s)):
                update.touched_s = _now()
                await update.delivery.in_progress()

    def _stale(self, touched_before_s: float) -> Iterator[Ticket]:
        for lane in self._feeds:
            yield from (update for update in lane.at_hand() if update.touched_s <= touched_before_s)

    async def _release_retries(self) -> None:
        """Let updates go again when their backoff is over."""
        while True:
            self._retry_earlier.clear()
            due = [due_s for lane in self._turns if (due_s := lane.wake(_now())) is not None]
            self._pump()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(due, default=None)):
                    await self._retry_earlier.wait()

    async def _recover(self, feed: _Feed) -> None:
        """While the lane is held, see whether what the server delivered before has all come back."""
        lane = feed.lane
        while True:
            await feed.recheck.wait()
            feed.recheck.clear()
            await self._open.wait()  # nothing is pulled before, so nothing can come back
            if not lane.continuity.held:
                continue
            missing = await self._resolve(feed)
            if lane.continuity.held:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_RECHECK_S):
                        await feed.recheck.wait()
                feed.recheck.set()
                continue
            if missing:
                _log.warning(
                    "updates delivered earlier did not come back in time; going on without them",
                    lane=lane.number,
                    missing=missing,
                )
            _log.debug("lane is flowing", lane=lane.number, at_hand=len(lane))
            self._pump()

    async def _resolve(self, feed: _Feed) -> int:
        try:
            state = await feed.source.state()
        except RelayError as error:
            _log.debug("cannot look at a held lane's consumer", lane=feed.lane.number, error=str(error))
            feed.lane.continuity.be_patient(_now())  # as long as nobody answers, nothing comes back either
            return 0
        missing = feed.lane.continuity.resolve(state, feed.lane.count_up_to, _now())
        if not feed.lane.continuity.held:
            feed.lane.let_go(state, missing)
        return missing

    # --- the beginning and the end of a lane

    def _make_feed(self, number: int) -> _Feed:
        lane: Lane[DeliveryLike] = Lane(number, Continuity(patience_s=2 * self._limits.ack_wait_s + 1))

        def room() -> int:
            # With the Facilitator away nothing is asked for: JetStream is the buffer. A lane that has something to
            # send is refilled by the handful, because a request for each update would cost more than the update.
            free = self._limits.lane_capacity - len(lane)
            return free if self._open.is_set() and (free >= _HANDFUL or lane.idle or lane.continuity.held) else 0

        def on_delivery(delivery: DeliveryLike) -> Awaitable[None]:
            return self._on_delivery(feed, delivery)

        def on_start(state: ConsumerState) -> None:
            lane.continuity.began(state, _now())
            lane.coverage.began(state)
            feed.made_at_s = state.made_at_s
            feed.recheck.set()

        feed = _Feed(lane, self._open_source(number, room=room, on_delivery=on_delivery, on_start=on_start))
        return feed

    async def _give_back(self, feed: _Feed) -> None:
        while feed.lane.out and self._open.is_set():
            feed.progress.clear()
            await feed.progress.wait()
        for update in feed.lane.unsent():
            await update.delivery.nak()
        await feed.source.confirm()


def _describe(feed: _Feed) -> LaneReport:
    lane, wall = feed.lane, time.time()
    oldest = min((update.delivery.stored_at_s for update in lane.at_hand()), default=wall)
    return LaneReport(
        lane=lane.number,
        at_hand=len(lane),
        out=lane.out,
        held=lane.continuity.held,
        oldest_at_hand_s=max(0.0, wall - oldest),
        trouble=feed.source.trouble,
    )


async def _settle(delivery: DeliveryLike, outcome: Outcome, reason: str = "dead-lettered before") -> None:
    if outcome is Outcome.DEAD_LETTERED:
        await delivery.term(reason)
    else:
        await delivery.ack()


def _now() -> float:
    # Not the event loop's clock: uvloop reads that once a turn, and a process that was stopped for a while would
    # take its leases for good still.
    return time.monotonic()
