"""Selecting the dead letters that a command works on."""

import datetime as dt
from dataclasses import dataclass

from relay.contract.subjects import DLQ_SUBJECTS, Reason, dlq_subject
from relay.dead_letters.stored import StoredDeadLetter


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
