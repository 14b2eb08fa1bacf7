"""Selecting the dead letters that a command works on."""

import datetime as dt
from dataclasses import dataclass
from typing import Final

from relay.contract.subjects import DLQ_SUBJECTS, Reason, dlq_subject
from relay.dead_letters.moments import parse_since
from relay.dead_letters.stored import StoredDeadLetter

_LONGEST_JOB: Final = 128


@dataclass(frozen=True, slots=True)
class Selection:
    """The dead letters that meet every condition that is set, in stream order; all of them if none is set."""

    sequences: tuple[int, ...] = ()
    job: str | None = None
    reason: Reason | None = None
    since: dt.datetime | None = None
    limit: int | None = None

    @property
    def subject(self) -> str:
        """The subject filter to read with."""
        return dlq_subject(self.job) if self.job is not None else DLQ_SUBJECTS

    def takes(self, letter: StoredDeadLetter) -> bool:
        """Whether a dead letter on `subject` meets the other conditions. The limit is applied by the reader."""
        return (
            (not self.sequences or letter.sequence in self.sequences)
            and (self.reason is None or letter.reason == self.reason)
            and (self.since is None or letter.stored_at >= self.since)
        )

    @property
    def is_whole_subject(self) -> bool:
        """Whether every dead letter on `subject` is selected."""
        return not (self.sequences or self.reason or self.since or self.limit)


def parse_selection(job: str, reason: str, since: str, now: dt.datetime) -> Selection:
    """The selection that a form or an address asks for; what is empty is no condition.

    Raises ValueError, which says what is not allowed.
    """
    if len(job) > _LONGEST_JOB or not job.isprintable():
        raise ValueError(f"job {job[:40]!a} is not allowed: at most {_LONGEST_JOB} printable characters")
    if reason and reason not in list(Reason):
        raise ValueError(f"reason {reason[:40]!a} is not allowed: one of {', '.join(Reason)}")
    try:
        moment = parse_since(since, now) if since else None
    except ValueError:
        allowed = "an age such as 90s, 15m, 2h or 3d, or an ISO 8601 time such as 2026-11-22T03:00"
        raise ValueError(f"since {since[:40]!a} is not allowed: {allowed}") from None
    return Selection((), job or None, Reason(reason) if reason else None, moment)
