"""One message of the dead-letter stream, as a value."""

import datetime as dt
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import msgspec

from relay.contract.subjects import (
    ATTEMPTS_HEADER,
    ERROR_HEADER,
    FAILED_AT_HEADER,
    HISTORY_HEADER,
    REASON_HEADER,
    REPLAYED_FROM_HEADER,
    SOURCE_SEQUENCE_HEADER,
    SOURCE_STORED_AT_HEADER,
    SOURCE_SUBJECT_HEADER,
    published_subject,
)
from relay.core.update import UpdateLike
from relay.dead_letters.moments import unix_us
from relay.nats.messages import StoredMessage

_JOBS_REMEMBERED: Final = 4096
_STATUS_SUBJECT: Final = re.compile(r"job\.status\.([^\s.*>]+)")
_MOST_DIGITS: Final = 19
"""Of a sequence. Python refuses to parse numbers of thousands of digits."""


@dataclass(frozen=True, slots=True)
class PastFailure:
    """How an update failed before it was replayed. `failed_at` is ISO 8601, as the relay wrote it."""

    reason: str
    attempts: str
    failed_at: str

    def __str__(self) -> str:
        return f"{self.reason} {self.attempts} {self.failed_at}"


@dataclass(frozen=True, slots=True)
class StoredDeadLetter:
    """One message of the dead-letter stream. Values that its headers do not have are empty."""

    sequence: int
    """Its sequence in the dead-letter stream."""
    stored_at: dt.datetime
    """When the dead-letter stream stored it, to the microsecond, UTC."""
    headers: Mapping[str, str]
    body: bytes

    @classmethod
    def of(cls, message: StoredMessage) -> Self:
        """Made from a message of the dead-letter stream."""
        return cls(message.sequence, message.stored_at, message.headers, message.body)

    @classmethod
    def without_body(cls, message: StoredMessage) -> Self:
        """As `of`, with an empty body: for many that are kept for their headers."""
        return cls(message.sequence, message.stored_at, message.headers, b"")

    @property
    def size_bytes(self) -> int:
        """About how many bytes it has: the body, and the headers, of which the server takes up to 64 KiB."""
        return len(self.body) + sum(map(len, self.headers)) + sum(map(len, self.headers.values()))

    @property
    def reason(self) -> str:
        return self.headers.get(REASON_HEADER, "")

    @property
    def error(self) -> str:
        return self.headers.get(ERROR_HEADER, "")

    @property
    def attempts(self) -> str:
        return self.headers.get(ATTEMPTS_HEADER, "")

    @property
    def failed_at(self) -> str:
        return self.headers.get(FAILED_AT_HEADER, "")

    @property
    def source_subject(self) -> str:
        """The subject that the update was published on."""
        return self.headers.get(SOURCE_SUBJECT_HEADER, "")

    @property
    def source_sequence(self) -> int:
        """The sequence that the update had in JOB_STATUS; 0 if unknown."""
        return number_of(self.headers.get(SOURCE_SEQUENCE_HEADER, "")) or 0

    @property
    def source_stored_us(self) -> int | None:
        """When JOB_STATUS stored the update: Unix time in microseconds. None if an older relay did not tell."""
        try:
            moment = dt.datetime.fromisoformat(self.headers.get(SOURCE_STORED_AT_HEADER, ""))
        except ValueError:
            return None
        return unix_us(moment) if moment.tzinfo else None

    @property
    def newest_s(self) -> float:
        """When it or its source was stored, whichever is later: a clock can have been set back. Unix time."""
        return max(self.stored_at.timestamp(), (self.source_stored_us or 0) / 1e6)

    @property
    def replayed_from(self) -> str:
        """The sequence of the dead letter that its update was replayed from; empty if the update was never replayed."""
        return self.headers.get(REPLAYED_FROM_HEADER, "")

    @property
    def job(self) -> str:
        """The last token of the producer's subject, which should be the job's UUID; empty if unknown."""
        return _job_of(self.source_subject)

    @property
    def status(self) -> str:
        """The job's status in the body; empty if there is none."""
        return status_in(self.body)

    @property
    def history(self) -> tuple[PastFailure, ...]:
        """How the update failed before it was replayed, oldest first; empty if it was never replayed."""
        if not (text := self.headers.get(HISTORY_HEADER)):
            return ()
        parts = (part.split(" ") for part in text.split("; "))
        return tuple(PastFailure(*part) for part in parts if len(part) == 3)  # noqa: PLR2004 - the fields of PastFailure

    def is_of(self, update: UpdateLike, *, skew_s: float = 0.0) -> bool:
        """Whether it is the update's dead letter: it names the update's subject, sequence and time.

        A status stream that was deleted and made again counts from 1 again, so the sequence alone is not enough. A dead
        letter of an older relay does not name the time; it must not be older than the update, but for `skew_s`.
        """
        if self.source_sequence != update.sequence or self.source_subject != source_subject_of(update):
            return False
        source_us = self.source_stored_us
        if source_us is None:
            return not self.is_older_than(update.stored_at_s, skew_s=skew_s)
        return source_us == stored_us(update)

    def is_older_than(self, stored_at_s: float, *, skew_s: float) -> bool:
        """Whether it was stored before the update that was stored at `stored_at_s` (Unix time).

        The two streams can have their leaders on two servers, whose clocks differ; `skew_s` is the allowance for this.
        The caller decides which error would be worse.
        """
        return self.newest_s < stored_at_s - skew_s


def status_in(body: bytes) -> str:
    """The job's status in the body of an update; empty if there is none."""
    try:
        content = _PEEK(body)
    except (ValueError, RecursionError):
        return ""
    status = content.status if content.payload is None else content.payload.status
    return status if isinstance(status, str) else ""


def stored_us(update: UpdateLike) -> int:
    """When JOB_STATUS stored the update: Unix time in microseconds."""
    return round(update.stored_at_s * 1e6)


def source_subject_of(update: UpdateLike) -> str:
    """The `source_subject` of an update's dead letter: stripped, because the client strips the values of headers."""
    return published_subject(update.subject).strip()


def number_of(text: str) -> int | None:
    """The number in a header's text; None if it is not a number, or has more digits than the relay writes."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS else None


@functools.lru_cache(maxsize=_JOBS_REMEMBERED)
def _job_of(subject: str) -> str:
    match = _STATUS_SUBJECT.fullmatch(subject)
    return match[1] if match else ""


class _Peek(msgspec.Struct, gc=False):
    status: Any = None
    payload: "_Peek | None" = None


_PEEK: Final = msgspec.json.Decoder(_Peek).decode
