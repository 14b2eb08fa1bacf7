"""What an answer of the Facilitator, or its silence, means for an update.

`judge` gets a reply and the number of attempts, and returns what to do with the update; the caller does it.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from relay.contract.facilitator_messages import PYDANTIC_ERROR_TYPES, Reply
from relay.contract.subjects import Reason
from relay.contract.text import how_many
from relay.core.backoff import Backoff

INTEGRITY_ERROR: Final = "job.integrity_error"
NOT_FOUND: Final = "job.not_found"


class Outcome(StrEnum):
    """How an update ended. There is no fourth way."""

    ACKNOWLEDGED = "acknowledged"
    DUPLICATE = "duplicate"
    """Acknowledged as well: the Facilitator already had it."""
    DEAD_LETTERED = "dead_lettered"


@dataclass(frozen=True, slots=True)
class Ack:
    """The Facilitator has it."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Retry:
    """The update may be accepted next time; the answer counts as an attempt."""

    error: str
    wait_s: float
    """How long it has to wait before it is sent again."""
    unexplained: bool = False
    """The Facilitator says that it has the update already, and nothing explains that."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """The Facilitator will never accept the update, or it was tried often enough."""

    reason: Reason
    error: str


@dataclass(frozen=True, slots=True)
class Repeated:
    """The Facilitator says that it has this status of the job already; `judge_repeated` decides what follows."""


Verdict = Ack | Retry | DeadLetter | Repeated

ACKNOWLEDGED: Final = Ack(Outcome.ACKNOWLEDGED)
DUPLICATE: Final = Ack(Outcome.DUPLICATE)
REPEATED: Final = Repeated()


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often an update may fail by its own fault, and how long it waits in between.

    `other_senders`: somebody else sends updates of the same jobs, so the Facilitator may have any of them already.
    """

    max_attempts: int
    backoff: Backoff
    other_senders: bool = False


def judge(reply: Reply, attempts: int, policy: RetryPolicy) -> Verdict:
    """What to do with the update that `reply` answers; `attempts` counts this answer already."""
    if reply.status == "success":
        return ACKNOWLEDGED
    types = [error.type for error in reply.errors]
    if INTEGRITY_ERROR in types:
        return REPEATED
    told = reply.complaint or "an error without a word of explanation"
    if not PYDANTIC_ERROR_TYPES.isdisjoint(types):
        # The Facilitator could not read it, and a retry would not change that.
        return DeadLetter(Reason.REFUSED, f"the Facilitator refused the update: {told}")
    if attempts < policy.max_attempts:
        return Retry(told, policy.backoff.delay_s(attempts))
    reason = Reason.JOB_NOT_FOUND if NOT_FOUND in types else Reason.REFUSED
    return DeadLetter(reason, f"the Facilitator answered {how_many(attempts, 'time')}, the last time: {told}")


def judge_repeated(attempts: int, policy: RetryPolicy, *, explained: bool) -> Ack | Retry | DeadLetter:
    """What to do with an update that is answered with `job.integrity_error`; `attempts` counts this answer already.

    `explained`: it can have reached the Facilitator before; see repeats.py.
    """
    if explained:
        return DUPLICATE
    if attempts < policy.max_attempts:
        error = f"{INTEGRITY_ERROR}, although the update cannot have reached the Facilitator before"
        return Retry(error, policy.backoff.delay_s(attempts), unexplained=True)
    told = f"the Facilitator answered {INTEGRITY_ERROR} at attempt {attempts}, as if it had this status of the job"
    return DeadLetter(
        Reason.UNEXPLAINED_DUPLICATE, f"{told} already, although the update cannot have reached it before"
    )


def is_unexplained(verdict: Retry | DeadLetter) -> bool:
    """Whether the Facilitator says that it has the update already, and nothing explains that."""
    if isinstance(verdict, Retry):
        return verdict.unexplained
    return verdict.reason is Reason.UNEXPLAINED_DUPLICATE


def judge_drop(attempts: int, policy: RetryPolicy) -> DeadLetter | None:
    """What to do with the suspect of a dropped connection; `attempts` counts this drop. None: it may go once more."""
    if attempts < policy.max_attempts:
        return None
    drops = how_many(attempts, "time")
    error = f"the Facilitator dropped the connection {drops} when this update was the first unanswered one"
    return DeadLetter(Reason.CONNECTION_DROPPED, f"{error}, and answered a repeat of an earlier update in between")
