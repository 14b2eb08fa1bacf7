"""The path of an update: from its lane through one Facilitator connection to its settlement.

    source ─on_delivery→ lane ─_pump→ facilitator ─on_answered→ verdict ─→ ack
                          ▲                                        ├─→ wait at the lane's gate, go again
                          └──────── put back, when a connection is lost └─→ dead letters, then term

Nothing in here opens a socket: what it works with comes in through the Protocols below.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

from relay.core.backoff import Backoff
from relay.core.continuity import ConsumerState, Continuity
from relay.core.delivery import DeliveryLike
from relay.core.lane import Lane, Update
from relay.core.session import Answered, Lost, Opened, Pushed, Session
from relay.core.verdict import Ack, DeadLetter, Outcome, Retry, judge, judge_drop
from relay.errors import RelayError
from relay.logs import get_logger
from relay.metrics import Metrics
from relay.subjects import token_of_stored
from relay.wire import Fault, decode

_log = get_logger(__name__)

_DEAD_LETTER_WRITERS: Final = 4
_DEAD_LETTER_RETRY_S: Final = 5.0
_RECHECK_S: Final = 0.2
"""How often a held lane's consumer is looked at again; what comes back in between is noticed at once."""
_BEATS_PER_ACK_WAIT: Final = 3


class Source(Protocol):
    """Where a lane's deliveries come from; see broker/consumer.py."""

    trouble: str | None

    async def run(self) -> None: ...
    async def state(self) -> ConsumerState: ...
    def top_up(self) -> None: ...
    def restart(self) -> None: ...
    def drain(self) -> None: ...


class OpenSource(Protocol):
    """Makes the source of a lane."""

    def __call__(
        self,
        lane: int,
        *,
        room: Callable[[], int],
        on_delivery: Callable[[DeliveryLike], Awaitable[None]],
        on_start: Callable[[ConsumerState], None],
    ) -> Source: ...


class Sink(Protocol):
    """The connection to the Facilitator; see facilitator.py."""

    session: Session[Update[DeliveryLike]]

    def send(self, ticket: Update[DeliveryLike], frame: bytes, received_s: float) -> None: ...
    def probe(self, frame: bytes) -> None: ...


class DeadLetterStream(Protocol):
    """See broker/dead_letters.py."""

    async def holds(self, delivery: DeliveryLike) -> bool: ...
    async def write(self, delivery: DeliveryLike, letter: DeadLetter, attempts: int) -> None: ...


class PushQueue(Protocol):
    """What the Facilitator pushes goes here; see broker/requests.py."""

    async def put(self, pushed: Pushed) -> None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """The settings that this module goes by."""

    lane_capacity: int
    """How many updates a lane may have at hand: its consumer's `max_ack_pending`."""
    max_attempts: int
    ack_wait_s: float


@dataclass(slots=True)
class _Feed:
    """A lane with its source."""

    lane: Lane[DeliveryLike]
    source: Source
    recheck: asyncio.Event = field(default_factory=asyncio.Event)


class Dispatcher:
    """Takes the updates of some lanes through one Facilitator connection, and settles each.

    Args:
        lanes: the lanes to drive; each belongs to one dispatcher only, so that a job stays on one connection.
        open_source: makes a lane's source.
        sink: the connection. Its owner must be this object.
    """

    def __init__(
        self,
        lanes: Iterable[int],
        open_source: OpenSource,
        sink: Sink,
        dead_letters: DeadLetterStream,
        pushes: PushQueue,
        *,
        limits: Limits,
        backoff: Backoff,
        metrics: Metrics,
    ) -> None:
        self._sink = sink
        self._dead_letters = dead_letters
        self._pushes = pushes
        self._limits = limits
        self._backoff = backoff
        self._metrics = metrics
        self._count = {Outcome.ACKNOWLEDGED: metrics.acknowledged, Outcome.DUPLICATE: metrics.duplicate}
        self._feeds = {number: self._open_feed(number, open_source) for number in lanes}
        self._turns = deque(feed.lane for feed in self._feeds.values())
        self._doomed: asyncio.Queue[Update[DeliveryLike]] = asyncio.Queue(len(self._feeds) * limits.lane_capacity)
        self._open = asyncio.Event()
        self._retry_earlier = asyncio.Event()
        self._nothing_out = asyncio.Event()
        self._draining = False

    # --- what the composition root calls

    def start(self, group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        """Start the work in `group`; returns its tasks, for the caller to cancel after `drain`."""
        work = [self._keep_in_progress(), self._release_retries()]
        work += [self._bury() for _ in range(_DEAD_LETTER_WRITERS)]
        work += [self._recover(feed) for feed in self._feeds.values()]
        self._pulls = [group.create_task(feed.source.run()) for feed in self._feeds.values()]
        return [*(group.create_task(coroutine) for coroutine in work), *self._pulls]

    def on_broker_reconnected(self) -> None:
        """The NATS connection was made anew: the server has forgotten every pull."""
        for feed in self._feeds.values():
            feed.source.restart()

    def report(self) -> None:
        """Bring the gauges of the metrics up to date."""
        self._metrics.in_flight(self._sink.session.unanswered)
        wall = time.time()
        for lane in self._turns:
            self._metrics.at_hand(lane.number, len(lane))
            oldest = min((update.delivery.stored_at_s for update in lane.at_hand()), default=wall)
            self._metrics.oldest_unrelayed(lane.number, wall - oldest)

    def troubles(self) -> list[str]:
        """Which lanes cannot be pulled, and why."""
        return [f"lane {n}: {feed.source.trouble}" for n, feed in self._feeds.items() if feed.source.trouble]

    async def drain(self) -> None:
        """Take nothing new, finish what is with the Facilitator, give the rest back to the server.

        May take as long as the Facilitator takes to answer: bound it with a timeout. What is unsettled when it is
        cut short is delivered again after `ack_wait`. Acknowledges nothing that was not answered.
        """
        self._draining = True
        for feed in self._feeds.values():
            feed.source.drain()
        await asyncio.gather(*self._pulls)
        while self._open.is_set() and any(lane.out for lane in self._turns):
            self._nothing_out.clear()
            await self._nothing_out.wait()
        for lane in self._turns:
            for update in lane.unsent():
                await update.delivery.nak()

    # --- what comes from NATS

    async def _on_delivery(self, feed: _Feed, delivery: DeliveryLike) -> None:
        lane = feed.lane
        outcome = lane.outcome_of(delivery.sequence)
        if delivery.deliveries > 1 and outcome is None and await self._dead_letters.holds(delivery):
            # A worker died between the dead letter's PubAck and the term: the update must not go both ways.
            outcome = Outcome.DEAD_LETTERED
        # Without an await from here to the lane: noted as delivered, but not at hand, it could be overtaken.
        now = _now()
        lane.continuity.delivered(delivery.consumer_sequence, now)
        if outcome is None and not lane.redelivered(delivery.sequence, delivery, now):
            lane.deliver(self._decode(lane, delivery, now))
        if lane.continuity.held:
            feed.recheck.set()
        self._pump()
        if outcome is not None:
            await _settle(delivery, outcome)  # once more: the server does not know it

    def _decode(self, lane: Lane[DeliveryLike], delivery: DeliveryLike, now: float) -> Update[DeliveryLike]:
        token = token_of_stored(delivery.subject)
        content = decode(delivery.body, token)
        if isinstance(content, Fault):
            frame, doom = None, DeadLetter(content.reason, content.error)
        else:
            frame, doom = content, None
            for rule in content.repairs:
                self._metrics.repaired(rule)
        return Update(lane.number, delivery.sequence, token, delivery, frame, doom, received_s=now, touched_s=now)

    # --- what comes from the Facilitator

    async def on_opened(self, event: Opened[Update[DeliveryLike]]) -> None:
        """The session may be used again; a suspect goes first, alone."""
        self._open.set()
        if (suspect := event.suspect) is not None:
            self._try_again(suspect, blamed=event.blamed)
        for feed in self._feeds.values():
            feed.lane.continuity.be_patient(_now())
            feed.recheck.set()
            feed.source.top_up()
        self._pump()

    async def on_answered(self, event: Answered[Update[DeliveryLike]]) -> None:
        """One update was answered: settle it, or let it wait at its lane's gate."""
        update = event.ticket
        lane = self._feeds[update.lane].lane
        self._metrics.answered(event.round_trip_s)
        match judge(event.reply, update.attempts + 1, self._limits.max_attempts):
            case Ack(outcome):
                await update.delivery.ack()
                self._settled(update, outcome)
                self._count[outcome](time.time() - update.delivery.stored_at_s)
            case Retry():
                update.attempts += 1
                self._metrics.retried()
                lane.retry(update, _now() + self._backoff.delay_s(update.attempts))
                self._retry_earlier.set()
            case DeadLetter() as doom:
                update.attempts += 1
                update.doom = doom
                lane.put_back(update)
        self._pump()

    async def on_pushed(self, event: Pushed) -> None:
        """Hand on what the Facilitator sent of its own accord; waits while the queue is full."""
        await self._pushes.put(event)

    def on_lost(self, event: Lost[Update[DeliveryLike]]) -> None:
        """Everything unanswered goes back to the head of its job; the session keeps the suspect."""
        self._open.clear()
        for update in event.unanswered:
            self._feeds[update.lane].lane.put_back(update)
        self._nothing_out.set()

    def _try_again(self, suspect: Update[DeliveryLike], *, blamed: bool) -> None:
        assert suspect.frame is not None, "only what was sent can be suspected"
        if blamed:
            suspect.attempts += 1
            self._metrics.retried()
            verdict = judge_drop(suspect.attempts, self._limits.max_attempts)
            if isinstance(verdict, DeadLetter):
                suspect.doom = verdict
                self._sink.session.absolve()
                self._feeds[suspect.lane].lane.put_back(suspect)
                return
        self._sink.probe(suspect.frame.text)

    # --- moving on

    def _pump(self) -> None:
        """Let out what may go: heads to the Facilitator while its window has room, doomed ones to be buried."""
        if self._draining:
            self._nothing_out.set()
            return
        while self._sink.session.room and (update := self._next()) is not None:
            assert update.frame is not None, "an update that cannot be sent is doomed"
            self._sink.send(update, update.frame.text, update.received_s)
        for lane in self._turns:
            while (update := lane.take_doomed()) is not None:
                self._doomed.put_nowait(update)

    def _next(self) -> Update[DeliveryLike] | None:
        """The next head, lane by lane in turns, so that a busy lane does not starve the others."""
        for _ in self._feeds:
            self._turns.rotate(-1)
            if (update := self._turns[0].take()) is not None:
                return update
        return None

    def _settled(self, update: Update[DeliveryLike], outcome: Outcome) -> None:
        feed = self._feeds[update.lane]
        feed.lane.settle(update, outcome)
        feed.source.top_up()

    # --- long-lived tasks

    async def _bury(self) -> None:
        """Write doomed updates to the dead-letter stream, and only then end them."""
        while True:
            update = await self._doomed.get()
            assert update.doom is not None, "only the doomed come here"
            lane = self._feeds[update.lane].lane
            where = {"subject": update.delivery.subject, "sequence": update.sequence, "reason": update.doom.reason}
            try:
                await self._dead_letters.write(update.delivery, update.doom, update.attempts)
            except RelayError as error:
                _log.error("a dead letter cannot be written; the update is kept", **where, error=str(error))
                lane.retry(update, _now() + _DEAD_LETTER_RETRY_S)
                self._retry_earlier.set()
            else:
                await _settle(update.delivery, Outcome.DEAD_LETTERED, update.doom.reason)
                self._settled(update, Outcome.DEAD_LETTERED)
                self._metrics.dead_lettered(update.doom.reason)
                _log.warning("dead-lettered", **where, attempts=update.attempts, error=update.doom.error)
            self._pump()

    async def _keep_in_progress(self) -> None:
        """Tell the server what is still worked on, well before `ack_wait` is over."""
        beat_s = self._limits.ack_wait_s / _BEATS_PER_ACK_WAIT
        while True:
            await asyncio.sleep(beat_s)
            now = _now()
            # Judged by its age, a lane that flows costs no beats at all.
            stale = [u for lane in self._turns for u in lane.at_hand() if now - u.touched_s >= beat_s]
            for update in stale:
                update.touched_s = now
                await update.delivery.in_progress()

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
            _log.info("lane is flowing", lane=lane.number, at_hand=len(lane))
            self._pump()

    async def _resolve(self, feed: _Feed) -> int:
        try:
            state = await feed.source.state()
        except RelayError as error:
            _log.debug("cannot look at a held lane's consumer", lane=feed.lane.number, error=str(error))
            return 0
        return feed.lane.continuity.resolve(state, feed.lane.count_up_to(state.delivered), _now())

    # --- set-up

    def _open_feed(self, number: int, open_source: OpenSource) -> _Feed:
        lane: Lane[DeliveryLike] = Lane(number, Continuity(patience_s=2 * self._limits.ack_wait_s + 1))

        def room() -> int:
            # With the Facilitator away nothing is asked for: JetStream is the buffer.
            return self._limits.lane_capacity - len(lane) if self._open.is_set() else 0

        async def on_delivery(delivery: DeliveryLike) -> None:
            await self._on_delivery(feed, delivery)

        def on_start(state: ConsumerState) -> None:
            lane.continuity.began(state, _now())
            feed.recheck.set()

        feed = _Feed(lane, open_source(number, room=room, on_delivery=on_delivery, on_start=on_start))
        return feed


async def _settle(delivery: DeliveryLike, outcome: Outcome, reason: str = "dead-lettered before") -> None:
    if outcome is Outcome.DEAD_LETTERED:
        await delivery.term(reason)
    else:
        await delivery.ack()


def _now() -> float:
    return asyncio.get_running_loop().time()
