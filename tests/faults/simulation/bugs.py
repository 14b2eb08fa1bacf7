"""Bugs to plant in the relay, each of which the simulation must find.

Each is a context manager in which the bug is there. They reach into private parts, because that is where bugs live.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from relay.core.continuity import Continuity
from relay.core.lane import Lane, Update, _Job
from relay.core.session import Opened, Phase, Session
from relay.core.verdict import Outcome
from relay.dead_letters.index import DeadLetterIndex
from relay.dead_letters.writer import DeadLetterWriter
from relay.path.consumer import PullConsumer
from relay.path.dead_letter_worker import DeadLetterWorker
from relay.path.lanes import Dispatcher
from simulation.leases import Bucket
from simulation.schedule import MISFORTUNES, Kind, Schedule, make_schedule


@dataclass(frozen=True, slots=True)
class Bug:
    """A bug, and what brings it to light: these misfortunes, and in how many schedules a crowd of bad updates."""

    plant: Callable[[], contextlib.AbstractContextManager[None]]
    shown_by: tuple[Kind, ...]
    crowds: float

    def __str__(self) -> str:
        return self.plant.__name__.replace("_", " ")

    def schedule(self, seed: int) -> Schedule:
        return make_schedule(seed, self.shown_by, self.crowds)


BUGS: list[Bug] = []


def bug(*shown_by: Kind, crowds: float = 0.0) -> Callable[[Callable[[], Iterator[None]]], None]:
    """Note a bug that shows when these befall the relay; any at all, if none is named."""

    def note(plant: Callable[[], Iterator[None]]) -> None:
        BUGS.append(Bug(contextlib.contextmanager(plant), shown_by or MISFORTUNES, crowds))

    return note


@bug(Kind.KILL)
def takeover_without_barrier() -> Iterator[None]:
    """The lane never waits for what was delivered earlier."""
    never = property(lambda _: False, lambda _, __: None)
    with mock.patch.object(Continuity, "held", never, create=True):
        yield


@bug(Kind.DELIVERIES_LOST)
def gaps_ignored() -> Iterator[None]:
    """The lane is held when it is taken over, but not when a delivery is missing later."""
    with mock.patch.object(Continuity, "delivered"):
        yield


@bug()
def acknowledged_before_the_reply() -> Iterator[None]:
    """What is given out to be sent is acknowledged at once."""
    real = Dispatcher.next

    def next_(self: Dispatcher) -> Any:
        update = real(self)
        if update is not None:
            update.delivery.ack()
        return update

    with mock.patch.object(Dispatcher, "next", next_):
        yield


@bug()
def retried_by_a_delayed_nak() -> Iterator[None]:
    """An update to be tried again goes back to the server, and its job's later ones do not wait for it."""

    def retry(self: Dispatcher, update: Any, delay_s: float) -> None:
        update.delivery._answer(b'-NAK {"delay":%d}' % (delay_s * 1e9))
        update.lane.settle(update, Outcome.ACKNOWLEDGED)
        del update.lane._settled[update.sequence]
        self._progressed(update)

    with mock.patch.object(Dispatcher, "retry", retry):
        yield


@bug()
def answers_paired_last_in_first_out() -> Iterator[None]:
    """A reply is taken for the answer to what was sent last."""
    real = Session._answered

    def answered(self: Session[Any], *args: Any) -> Any:
        self._unanswered.rotate(1)
        return real(self, *args)

    with mock.patch.object(Session, "_answered", answered):
        yield


@bug(Kind.STOP)
def lease_not_checked() -> Iterator[None]:
    """A worker sends whatever it has, whether the lane is still its own or not."""
    with mock.patch.object(Lane, "_flows", lambda self, _now: not self.continuity.held):
        yield


@bug()
def lease_taken_whoever_has_it() -> Iterator[None]:
    """The bucket does not compare revisions: two workers take the same free lane."""
    real = Bucket.put

    def put(self: Bucket, key: str, value: str, _: int | None, **options: Any) -> int | None:
        return real(self, key, value, None, **options)

    with mock.patch.object(Bucket, "put", put):
        yield


@bug()
def ended_before_the_dead_letter_is_stored() -> Iterator[None]:
    """The server is told to forget an update before anybody has its dead letter."""
    real = DeadLetterWorker._bury

    async def bury(self: DeadLetterWorker, update: Any) -> None:
        update.delivery.term("early")
        await real(self, update)

    with mock.patch.object(DeadLetterWorker, "_bury", bury):
        yield


@bug(Kind.HANG_UP, Kind.FACILITATOR_AWAY)
def suspect_in_company() -> Iterator[None]:
    """After a drop everything is sent again at once, with the suspect at its head."""
    real = Session.probe

    def probe(self: Session[Any], now: float) -> None:
        real(self, now)
        self._suspect = None
        self.phase = Phase.OPEN

    with mock.patch.object(Session, "probe", probe):
        yield


@bug(Kind.FACILITATOR_AWAY, Kind.FACILITATOR_DOWN)
def drops_always_blamed() -> Iterator[None]:
    """An update is blamed for a drop although the Facilitator could not be reached afterwards."""
    with mock.patch.object(Session, "failed_to_open"):
        yield


@bug()
def unanswered_forgotten() -> Iterator[None]:
    """What was not answered when the connection broke is not sent again."""
    with mock.patch.object(Dispatcher, "on_lost", lambda self, _: self._open.clear()):
        yield


@bug()
def suspect_forgotten() -> Iterator[None]:
    """A suspect that may not go again is not put back."""
    real = Dispatcher.on_opened

    def on_opened(self: Dispatcher, event: Opened[Any]) -> bool:
        with mock.patch.object(Dispatcher, "put_back"):
            return real(self, event)

    with mock.patch.object(Dispatcher, "on_opened", on_opened):
        yield


@bug()
def timeouts_answered_by_the_next_reply() -> Iterator[None]:
    """A connection on which an answer is overdue is used further."""

    def overdue(self: Session[Any], now: float) -> None:
        if self._unanswered and now >= self._reply_deadline(now):
            self._unanswered.popleft()

    with mock.patch.object(Session, "overdue", overdue):
        yield


@bug(Kind.ACKS_LOST, Kind.FACILITATOR_STALL)
def redelivery_taken_for_new() -> Iterator[None]:
    """An update that comes again while it is at hand is put in a second time."""
    real = Lane.deliver

    def deliver(self: Lane[Any], update: Update[Any]) -> None:
        self._at_hand.pop(update.sequence, None)
        real(self, update)

    with (
        mock.patch.object(Lane, "redelivered", return_value=False),
        mock.patch.object(Lane, "deliver", deliver),
    ):
        yield


@bug(Kind.NATS_CUT, crowds=1.0)
def nothing_pulled_after_a_reconnect() -> Iterator[None]:
    """Pulls are not asked for again on a new connection."""
    with (
        mock.patch.object(PullConsumer, "restart"),
        mock.patch.object(PullConsumer, "_woken", _wake_only),
    ):
        yield


async def _wake_only(self: PullConsumer) -> bool:
    return await self._wake.wait()


@bug()
def sorted_by_arrival() -> Iterator[None]:
    """A job's updates queue in the order in which they came."""

    def deliver(self: Lane[Any], update: Update[Any]) -> None:
        self._at_hand[update.sequence] = update
        job = self._jobs.setdefault(update.job, _Job())
        job.queue.append(update)
        self._promote(job)

    with mock.patch.object(Lane, "deliver", deliver):
        yield


@bug(Kind.CONSUMERS_ANEW)
def dead_letters_forgotten_with_the_consumer() -> Iterator[None]:
    """What a consumer delivers for the first time is new to everybody."""
    real = DeadLetterWriter.may_hold

    def may_hold(self: DeadLetterWriter, delivery: Any, made_at_s: float) -> bool:
        return delivery.deliveries > 1 and real(self, delivery, made_at_s)

    with mock.patch.object(DeadLetterWriter, "may_hold", may_hold):
        yield


@bug(Kind.CONSUMERS_ANEW)
def one_dead_letter_for_each_job() -> Iterator[None]:
    """Of a job's dead letters the last one alone is looked at."""

    async def never(*_: Any) -> bool:
        return False

    with mock.patch.object(DeadLetterIndex, "_is_among_all", never):
        yield


@bug(Kind.JETSTREAM_LATE, crowds=1.0)
def late_renewal_forgets() -> Iterator[None]:
    """What waits for its dead letter to be written while a lease is over is forgotten, though the renewal comes."""
    real = Dispatcher.put_back

    def put_back(self: Dispatcher, update: Any) -> None:
        if sys._getframe(1).f_code.co_name != "_keep_burying":
            real(self, update)

    with mock.patch.object(Dispatcher, "put_back", put_back):
        yield


@bug(Kind.FACILITATOR_AWAY)
def never_topped_up() -> Iterator[None]:
    """Nothing is pulled when there is room again, unless something else wakes the pull loop."""
    with mock.patch.object(PullConsumer, "top_up"):
        yield


@bug(Kind.LEADER_CHANGE)
def missing_heartbeats_ignored() -> Iterator[None]:
    """A pull that nobody serves any more is waited for."""
    with mock.patch.object(PullConsumer, "_woken", _wake_only):
        yield


@bug(Kind.INFO_AWAY, Kind.CONSUMERS_ANEW)
def trouble_ends_the_pull_loop() -> Iterator[None]:
    """A consumer that cannot be had now is taken for one that never can."""

    def complain(_: PullConsumer, error: Exception) -> None:
        raise error

    with mock.patch.object(PullConsumer, "_complain", complain):
        yield
