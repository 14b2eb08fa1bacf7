"""What is done with updates that were sent: acknowledge them, send them again, or dead-letter them."""

import time
from collections.abc import Sequence
from typing import Any

from relay.contract.subjects import REPLAYED_FROM_HEADER
from relay.core.control import Control
from relay.core.lane import Lane
from relay.core.ports import SettlementObserver
from relay.core.repeats import explains
from relay.core.session import Answered, Lost, Suspicion
from relay.core.trace import traced
from relay.core.update import DeliveryLike, Settled, Update
from relay.core.verdict import (
    Ack,
    DeadLetter,
    Outcome,
    Repeated,
    Retry,
    RetryPolicy,
    is_unexplained,
    judge,
    judge_repeated,
)
from relay.observability.logs import get_logger
from relay.observability.metrics import Metrics
from relay.path.lanes import Lanes
from relay.timing.clock import monotonic

_log = get_logger(__name__)


class Settlement:
    """Acts on what a connection to the Facilitator learns.

    Args:
        lanes: the lanes of that connection.
        control: of that connection.
        observers: are told of each update that is settled.
    """

    def __init__(
        self,
        lanes: Lanes,
        policy: RetryPolicy,
        control: Control,
        metrics: Metrics,
        observers: Sequence[SettlementObserver] = (),
    ) -> None:
        self._lanes = lanes
        self._policy = policy
        self._control = control
        self._metrics = metrics
        self._observers = observers

    # --- what the connection to the Facilitator calls

    def opened(self) -> None:
        """The session may be used."""
        self._lanes.connection_opened()

    def suspected(self, suspicion: Suspicion[Update]) -> bool:
        """Judge the suspect of a dropped connection. Returns whether to send it, alone and before anything else."""
        suspect, lane = suspicion.suspect, suspicion.suspect.lane
        goes = lane.may_go_again(suspicion, self._policy, monotonic())
        self._metrics.controlled("passed" if suspicion.sound else "missing")
        if suspect.undecided == 1:  # it may happen twice a second for hours
            _log.warning("dropped the connection; no repeat of an earlier update tells why", **_names(suspect))
        if suspicion.sound and suspicion.blamed:
            self._metrics.retried()
            _log.info("dropped the connection, unlike a repeat of an earlier update", **_names(suspect))
        if not goes:
            self._lanes.progressed([lane])
        return goes

    def answered(self, answers: Sequence[Answered[Update]]) -> None:
        """Settle what was answered together, or let it wait for its next attempt."""
        now_s, wall_s, clock = monotonic(), time.time(), self._lanes.clock
        lanes: set[Lane] = set()
        acknowledged: list[DeliveryLike] = []
        hot_path_s: list[float] = []
        round_trip_s: list[float] = []
        end_to_end_s: dict[Outcome, list[float]] = {}
        latest: Update | None = None
        for answer in answers:
            update = answer.update
            lanes.add(update.lane)
            round_trip_s.append(answer.round_trip_s)
            verdict = judge(answer.reply, update.attempts + 1, self._policy)
            if isinstance(verdict, Repeated):
                verdict = self._judge_repeated(update)
            if verdict is None:
                update.lane.question(update)
            elif isinstance(verdict, Ack):
                update.lane.settle(update, verdict.outcome)
                acknowledged.append(update.delivery)
                if verdict.outcome is Outcome.ACKNOWLEDGED:  # of a duplicate it is only likely that it is stored
                    latest = update
                age_s = clock.age_s(update.delivery.stored_at_s, update.delivered_s, wall_s, now_s)
                end_to_end_s.setdefault(verdict.outcome, []).append(age_s)
                if update.sent_s is not None:
                    hot_path_s.append(update.sent_s - update.delivered_s)
                if self._observers or update.delivery.headers:
                    self._tell(update, verdict.outcome)
            else:
                self._fail(update, verdict, now_s)
        if acknowledged:
            acknowledged[0].ack(*acknowledged[1:])
        if latest is not None and self._control.keep(latest.text, latest.status):
            self._lanes.control_found()
        self._metrics.answered(hot_path_s, round_trip_s, end_to_end_s)
        self._lanes.progressed(lanes)

    def lost(self, event: Lost[Update]) -> None:
        """The session is over: what was not answered is the head of its job again; the session keeps the suspect."""
        for update in event.unanswered:
            update.lane.lose(update)
        if event.suspect is not None:
            event.suspect.maybe_stored = True
        if event.control_unanswered:
            self._metrics.controlled("lost")
            _log.warning("the connection was lost at a repeat of an earlier update, so no update is at fault")
        self._lanes.connection_lost()
        self._lanes.progressed({update.lane for update in event.unanswered})

    # --- what the workers call

    def answer_explained(self, update: Update, *, explained: bool) -> None:
        """The stream was asked whether the answer `job.integrity_error` to the update, which is OUT, is explained."""
        update.questioned, update.has_equal_before = False, explained
        verdict = judge_repeated(update.attempts + 1, self._policy, explained=explained)
        if isinstance(verdict, Ack):
            update.lane.settle(update, verdict.outcome)
            update.delivery.ack()
            hot_path_s = [] if update.sent_s is None else [update.sent_s - update.delivered_s]
            delivery, clock = update.delivery, self._lanes.clock
            age_s = clock.age_s(delivery.stored_at_s, update.delivered_s, time.time(), monotonic())
            self._metrics.answered(hot_path_s, [], {verdict.outcome: [age_s]})
            self._tell(update, verdict.outcome)
        else:
            self._fail(update, verdict, monotonic())
        self._lanes.progressed([update.lane])

    def dead_lettered(self, update: Update, reason: str) -> None:
        """The update's dead letter is stored: terminate the update on the server, with this reason."""
        update.delivery.term(reason)
        update.lane.settle(update, Outcome.DEAD_LETTERED)
        if update.sent_s is not None:
            self._metrics.answered([update.sent_s - update.delivered_s], [], {})
        self._tell(update, Outcome.DEAD_LETTERED)
        self._lanes.progressed([update.lane])

    # --- internal steps

    def _judge_repeated(self, update: Update) -> Ack | Retry | DeadLetter | None:
        """The verdict on an update that the Facilitator says it has; None if the stream must be asked first."""
        explained = explains(update, self._policy)
        return None if explained is None else judge_repeated(update.attempts + 1, self._policy, explained=explained)

    def _fail(self, update: Update, verdict: Retry | DeadLetter, now_s: float) -> None:
        update.lane.fail(update, verdict, now_s)
        self._tell_of_retry(update, verdict)
        if is_unexplained(verdict):
            self._tell_of_unexplained(update, now_s)

    def _tell_of_unexplained(self, update: Update, now_s: float) -> None:
        self._metrics.unexplained()
        if update.lane.is_new_trouble(now_s):
            _log.warning(
                "the Facilitator answers job.integrity_error to an update that cannot have reached it before: perhaps"
                " it stores nothing; such updates are tried again, and at last dead-lettered (unexplained_duplicate)",
                lane=update.lane.number,
                subject=update.delivery.subject,
                sequence=update.sequence,
                **traced(update.delivery.headers),
            )

    def _tell(self, update: Update, outcome: Outcome) -> None:
        if self._observers:
            settled = Settled.of(update, outcome)
            for observer in self._observers:
                observer.settled(settled)
        if REPLAYED_FROM_HEADER in update.delivery.headers:
            self._metrics.replayed(outcome)

    def _tell_of_retry(self, update: Update, verdict: Retry | DeadLetter) -> None:
        if isinstance(verdict, DeadLetter):
            return  # counted and logged when its dead letter is written
        self._metrics.retried()
        self._lanes.backoff_began()
        _log.info(
            "refused, will be tried again", wait_s=round(verdict.wait_s, 3), error=verdict.error, **_names(update)
        )


def _names(update: Update) -> dict[str, Any]:
    """What a log line says about an update."""
    delivery = update.delivery
    told = {"subject": delivery.subject, "sequence": update.sequence, "attempts": update.attempts}
    return told | traced(delivery.headers)
