"""Bugs to plant in the relay. The simulation must find each of them.

Each is a context manager that plants the bug. They patch private parts, because real bugs are there.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import relay.core.lane
import relay.path.earlier_updates
import relay.path.lanes
import relay.path.settlement
from relay.core.continuity import ConsumerState, Continuity
from relay.core.control import Control
from relay.core.lane import Lane
from relay.core.memory import Share
from relay.core.session import Opened, Phase, Session
from relay.core.turns import Turns
from relay.core.update import Update
from relay.core.verdict import Outcome
from relay.dead_letters.index import DeadLetterIndex
from relay.path.consumer import PullConsumer
from relay.path.dead_letter_worker import DeadLetterWorker
from relay.path.settlement import Settlement
from simulation.clock import Clock, Process
from simulation.leases import Bucket
from simulation.schedule import MISFORTUNES, Kind, Schedule, make_schedule


@dataclass(frozen=True, slots=True)
class Bug:
    """A bug, the faults that show it, and the share of schedules with many bad updates at a time."""

    plant: Callable[[], contextlib.AbstractContextManager[None]]
    shown_by: tuple[Kind, ...]
    crowds: float

    def __str__(self) -> str:
        return self.plant.__name__.replace("_", " ")

    def schedule(self, seed: int) -> Schedule:
        return make_schedule(seed, self.shown_by, self.crowds)


BUGS: list[Bug] = []


def bug(*shown_by: Kind, crowds: float = 0.0) -> Callable[[Callable[[], Iterator[None]]], None]:
    """Register a bug that shows under these faults; under any, if none is given."""

    def note(plant: Callable[[], Iterator[None]]) -> None:
        BUGS.append(Bug(contextlib.contextmanager(plant), shown_by or MISFORTUNES, crowds))

    return note


@bug(Kind.KILL)
def takeover_without_barrier() -> Iterator[None]:
    """A lane that was taken over is never held."""
    never = property(lambda _: False, lambda _, __: None)
    with mock.patch.object(Continuity, "held", never, create=True):
        yield


@bug(Kind.DELIVERIES_LOST)
def gaps_ignored() -> Iterator[None]:
    """A lane is held after a takeover, but not when a delivery is missing later."""
    with mock.patch.object(Continuity, "delivered"):
        yield


@bug(Kind.KILL, Kind.CLOCK_BACK)
def late_redeliveries_not_asked_for() -> Iterator[None]:
    """What the server redelivers later, because its clock went back, is waited for as long as other redeliveries."""
    with mock.patch.object(Continuity, "overdue", return_value=range(0)):
        yield


@bug()
def acknowledged_before_the_reply() -> Iterator[None]:
    """Updates are acknowledged when they are sent."""
    real = Turns.take

    def take(self: Turns, *room: Any) -> list[Update]:
        updates = real(self, *room)
        for update in updates:
            update.delivery.ack()
        return updates

    with mock.patch.object(Turns, "take", take):
        yield


@bug()
def retried_by_a_delayed_nak() -> Iterator[None]:
    """An update that is retried goes back to the server, and its job's later ones do not wait for it."""

    def retry(self: Lane, update: Any, due_s: float) -> None:
        update.delivery._answer(b'-NAK {"delay":%d}' % ((due_s - relay.path.lanes.monotonic()) * 1e9))
        self.settle(update, Outcome.ACKNOWLEDGED)
        del self._settled[update.sequence]

    with mock.patch.object(Lane, "retry", retry):
        yield


@bug()
def answers_paired_last_in_first_out() -> Iterator[None]:
    """A reply is matched to the update that was sent last."""
    real = Session.received

    def received(self: Session[Any], *args: Any) -> Any:
        self._unanswered.rotate(1)
        return real(self, *args)

    with mock.patch.object(Session, "received", received):
        yield


@bug(Kind.STOP)
def lease_not_checked() -> Iterator[None]:
    """A worker sends what it has, even if its lease on the lane has expired."""
    with mock.patch.object(Lane, "_flows", lambda self, _now: not self.continuity.held):
        yield


@bug(Kind.STOP)
def a_clock_that_stands_still_too() -> Iterator[None]:
    """While a machine is suspended, so is its clock: afterwards its worker believes that its leases are valid."""
    stood_still: dict[Process, float] = {}
    stop, resume = Process.stop, Process.resume

    def stop_clock(self: Process) -> None:
        stood_still[self] = stood_still.get(self, 0.0) - self._clock.now
        stop(self)

    def resume_clock(self: Process) -> None:
        stood_still[self] += self._clock.now
        resume(self)

    def monotonic(self: Clock) -> float:
        return self.now - stood_still.get(self.running, 0.0) if self.running is not None else self.now

    with (
        mock.patch.object(Process, "stop", stop_clock),
        mock.patch.object(Process, "resume", resume_clock),
        mock.patch.object(Clock, "monotonic", monotonic),
    ):
        yield


@bug()
def lease_taken_whoever_has_it() -> Iterator[None]:
    """The bucket does not compare revisions, so that two workers take the same free lane."""
    real = Bucket.put

    def put(self: Bucket, key: str, value: str, _: int | None, **options: Any) -> int | None:
        return real(self, key, value, None, **options)

    with mock.patch.object(Bucket, "put", put):
        yield


@bug()
def ended_before_the_dead_letter_is_stored() -> Iterator[None]:
    """An update is terminated before its dead letter is stored."""
    real = DeadLetterWorker._dead_letter

    async def dead_letter(self: DeadLetterWorker, update: Any) -> None:
        update.delivery.term("early")
        await real(self, update)

    with mock.patch.object(DeadLetterWorker, "_dead_letter", dead_letter):
        yield


@bug(Kind.HANG_UP, Kind.FACILITATOR_AWAY)
def suspect_in_company() -> Iterator[None]:
    """After a drop everything is sent again at once, beginning with the suspect."""
    real = Session.probe

    def probe(self: Session[Any], now: float) -> None:
        real(self, now)
        self._suspect = None
        self.phase = Phase.OPEN

    with mock.patch.object(Session, "probe", probe):
        yield


@bug(Kind.INSERTS_FAIL)
def no_control() -> Iterator[None]:
    """Every drop of the connection counts, without a look at whether the Facilitator is sound."""
    real = Session._authenticated

    def authenticated(self: Session[Any], now_s: float) -> Opened[Any]:
        with mock.patch.object(Control, "use", return_value=None):
            opened = real(self, now_s)
        return Opened(suspicion=opened.suspicion and replace(opened.suspicion, sound=True))

    with mock.patch.object(Session, "_authenticated", authenticated):
        yield


@bug(Kind.FACILITATOR_AWAY, Kind.FACILITATOR_DOWN)
def drops_always_blamed() -> Iterator[None]:
    """An update is blamed for a drop although the Facilitator could not be reached afterwards."""
    with mock.patch.object(Session, "failed_to_open"):
        yield


@bug(Kind.FACILITATOR_CONFUSED)
def each_integrity_error_is_a_duplicate() -> Iterator[None]:
    """Whatever is answered with job.integrity_error is taken for stored."""
    with mock.patch.object(relay.path.settlement, "explains", return_value=True):
        yield


@bug(Kind.FACILITATOR_CONFUSED)
def sent_before_is_explained() -> Iterator[None]:
    """An update that was sent before counts as explained, also if it was answered then, and nothing was stored."""
    real = relay.path.settlement.explains

    def explains(update: Update, policy: Any) -> bool | None:
        return update.attempts > 0 or real(update, policy)

    with mock.patch.object(relay.path.settlement, "explains", explains):
        yield


@bug(Kind.FACILITATOR_CONFUSED)
def any_earlier_update_explains() -> Iterator[None]:
    """An earlier update of the job with the same status explains the answer, whatever became of it."""
    with mock.patch.object(relay.path.earlier_updates, "may_be_stored", return_value=True):
        yield


@bug()
def unanswered_forgotten() -> Iterator[None]:
    """Updates that were unanswered when the connection broke are not sent again."""
    with mock.patch.object(Settlement, "lost", lambda self, _: self._lanes.connection_lost()):
        yield


@bug()
def suspect_forgotten() -> Iterator[None]:
    """A suspect that may not be sent again is not put back."""
    real = Lane.may_go_again

    def may_go_again(self: Lane, *args: Any, **options: Any) -> bool:
        with mock.patch.object(Lane, "put_back"):
            return real(self, *args, **options)

    with mock.patch.object(Lane, "may_go_again", may_go_again):
        yield


@bug()
def timeouts_answered_by_the_next_reply() -> Iterator[None]:
    """A connection stays in use although an answer is overdue."""

    def overdue(self: Session[Any], now: float) -> None:
        if self._unanswered and now >= self._reply_deadline(now):
            self._unanswered.popleft()

    with mock.patch.object(Session, "overdue", overdue):
        yield


@bug(Kind.ACKS_LOST, Kind.FACILITATOR_STALL)
def redelivery_taken_for_new() -> Iterator[None]:
    """A redelivery of an update at hand is admitted as a new update."""
    real = Lane.admit

    def admit(self: Lane, deliveries: Sequence[Any], now_s: float) -> Any:
        for delivery in deliveries:
            self._at_hand.pop(delivery.sequence, None)
        return real(self, deliveries, now_s)

    with mock.patch.object(Lane, "admit", admit):
        yield


@bug(Kind.NATS_CUT, crowds=1.0)
def nothing_pulled_after_a_reconnect() -> Iterator[None]:
    """Nothing is pulled on a new connection."""
    with (
        mock.patch.object(PullConsumer, "restart"),
        mock.patch.object(PullConsumer, "_woken", _wake_only),
    ):
        yield


async def _wake_only(self: PullConsumer) -> bool:
    return await self._wake.wait()


@bug()
def sorted_by_arrival() -> Iterator[None]:
    """A job's updates are queued in the order in which they came."""

    with mock.patch.object(relay.core.lane, "insort", lambda queue, update, **_: queue.append(update)):
        yield


@bug(Kind.CONSUMERS_ANEW)
def dead_letters_forgotten_with_the_consumer() -> Iterator[None]:
    """An update's first delivery by a consumer is taken for its very first, so its dead letter is not looked up."""
    real = Lane.began

    def began(self: Lane, state: ConsumerState, now_s: float) -> None:
        real(self, state, now_s)
        self._consumer_made_at_s = -math.inf

    with mock.patch.object(Lane, "began", began):
        yield


@bug(Kind.CONSUMERS_ANEW)
def one_dead_letter_for_each_job() -> Iterator[None]:
    """Only the last dead letter of a job is looked at."""

    async def never(*_: Any) -> bool:
        return False

    with mock.patch.object(DeadLetterIndex, "_is_among_all", never):
        yield


@bug(Kind.JETSTREAM_LATE, crowds=1.0)
def late_renewal_forgets() -> Iterator[None]:
    """An update that waits to be dead-lettered while a lease is over is forgotten, although the lease is renewed."""

    def take_dead_letter(self: Lane, now_s: float) -> Update | None:
        while self.dead_letters and not self.held:
            update = self.dead_letters.popleft()
            if self._goes_out(update) and now_s < self.ours_until_s:
                return update
        return None

    with mock.patch.object(Lane, "take_dead_letter", take_dead_letter):
        yield


@bug(Kind.FACILITATOR_STALL, crowds=1.0)
def no_bound_in_bytes() -> Iterator[None]:
    """A lane asks for as many updates as it may have, however large they are."""
    with mock.patch.object(Share, "free_bytes", 1 << 40):
        yield


@bug()
def too_large_updates_never_go_alone() -> Iterator[None]:
    """A lane always asks with a limit of bytes, so an update that is larger never comes."""
    with mock.patch.object(Share, "may_go_alone", return_value=False):
        yield


@bug(Kind.FACILITATOR_AWAY)
def never_topped_up() -> Iterator[None]:
    """When there is room again, nothing is pulled until something else wakes the pull loop."""
    with mock.patch.object(PullConsumer, "top_up"):
        yield


@bug(Kind.LEADER_CHANGE)
def missing_heartbeats_ignored() -> Iterator[None]:
    """The pull loop waits for a pull that is not served any more."""
    with mock.patch.object(PullConsumer, "_woken", _wake_only):
        yield


@bug(Kind.INFO_AWAY, Kind.CONSUMERS_ANEW)
def trouble_ends_the_pull_loop() -> Iterator[None]:
    """The pull loop ends for good when the consumer is unavailable for a moment."""

    def complain(_: PullConsumer, error: Exception) -> None:
        raise error

    with mock.patch.object(PullConsumer, "_complain", complain):
        yield
