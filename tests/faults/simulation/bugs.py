"""Bugs to plant in the relay, each of which the simulation must find.

Each is a context manager in which the bug is there. They reach into private parts, because that is where bugs live.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import relay.core.lane
import relay.path.lanes
from relay.core.continuity import ConsumerState, Continuity
from relay.core.lane import Lane, Turns
from relay.core.session import Phase, Session
from relay.core.update import Update
from relay.core.verdict import Outcome
from relay.dead_letters.index import DeadLetterIndex
from relay.path.consumer import PullConsumer
from relay.path.dead_letter_worker import DeadLetterWorker
from relay.path.settlement import Settlement
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
    real = Turns.take

    def take(self: Turns, room: int, now_s: float) -> list[Update]:
        updates = real(self, room, now_s)
        for update in updates:
            update.delivery.ack()
        return updates

    with mock.patch.object(Turns, "take", take):
        yield


@bug()
def retried_by_a_delayed_nak() -> Iterator[None]:
    """An update to be tried again goes back to the server, and its job's later ones do not wait for it."""

    def retry(self: Lane, update: Any, due_s: float) -> None:
        update.delivery._answer(b'-NAK {"delay":%d}' % ((due_s - relay.path.lanes.time.monotonic()) * 1e9))
        self.settle(update, Outcome.ACKNOWLEDGED)
        del self._settled[update.sequence]

    with mock.patch.object(Lane, "retry", retry):
        yield


@bug()
def answers_paired_last_in_first_out() -> Iterator[None]:
    """A reply is taken for the answer to what was sent last."""
    real = Session.received

    def received(self: Session[Any], *args: Any) -> Any:
        self._unanswered.rotate(1)
        return real(self, *args)

    with mock.patch.object(Session, "received", received):
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
    real = DeadLetterWorker._dead_letter

    async def dead_letter(self: DeadLetterWorker, update: Any) -> None:
        update.delivery.term("early")
        await real(self, update)

    with mock.patch.object(DeadLetterWorker, "_dead_letter", dead_letter):
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
    with mock.patch.object(Settlement, "lost", lambda self, _: self._lanes.connection_lost()):
        yield


@bug()
def suspect_forgotten() -> Iterator[None]:
    """A suspect that may not go again is not put back."""
    real = Lane.may_go_again

    def may_go_again(self: Lane, *args: Any, **options: Any) -> bool:
        with mock.patch.object(Lane, "put_back"):
            return real(self, *args, **options)

    with mock.patch.object(Lane, "may_go_again", may_go_again):
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
    real = Lane.admit

    def admit(self: Lane, deliveries: Sequence[Any], now_s: float) -> Any:
        for delivery in deliveries:
            self._at_hand.pop(delivery.sequence, None)
        return real(self, deliveries, now_s)

    with mock.patch.object(Lane, "admit", admit):
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

    with mock.patch.object(relay.core.lane, "insort", lambda queue, update, **_: queue.append(update)):
        yield


@bug(Kind.CONSUMERS_ANEW)
def dead_letters_forgotten_with_the_consumer() -> Iterator[None]:
    """What a consumer delivers for the first time is new to everybody."""
    real = Lane.began

    def began(self: Lane, state: ConsumerState, now_s: float) -> None:
        real(self, state, now_s)
        self._consumer_made_at_s = -math.inf

    with mock.patch.object(Lane, "began", began):
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

    def take_dead_letter(self: Lane, now_s: float) -> Update | None:
        while self.dead_letters and not self.held:
            update = self.dead_letters.popleft()
            if self._goes_out(update) and now_s < self.ours_until_s:
                return update
        return None

    with mock.patch.object(Lane, "take_dead_letter", take_dead_letter):
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
