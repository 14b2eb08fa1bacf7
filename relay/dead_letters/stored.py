"""Dead letters as values: what one says, which ones are meant, and what a replay of one is.

A replay is published with the message id `relay-replay:<sequence>:<stored at>:<digest>`, which no two dead letters
share, also not those of two streams of one name, and which changes with the body. So the status stream itself says
whether a dead letter was replayed before, however long ago (see broker/replay.py).
"""

import base64
import datetime as dt
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec

from relay.contract.subjects import (
    ATTEMPTS_HEADER,
    DLQ_SUBJECTS,
    ERROR_HEADER,
    FAILED_AT_HEADER,
    HISTORY_HEADER,
    MSG_ID_HEADER,
    REASON_HEADER,
    REPLAYED_FROM_HEADER,
    SOURCE_SEQUENCE_HEADER,
    SOURCE_SUBJECT_HEADER,
    Reason,
    dlq_subject,
    status_subject,
)

_HISTORY_LENGTH: Final = 20
"""How many earlier endings are kept: together they must fit into the room that a dead letter has for headers."""
_REPLAY_ID_PREFIX: Final = "relay-replay:"
_REPLAY_ID: Final = re.compile(_REPLAY_ID_PREFIX + r"([0-9]{1,19}):([0-9]{1,17}):")
"""Sequence, and microseconds that are within all calendars."""
_OWN_HEADERS: Final = ("relay-", "nats-")
"""In any case of letters: what the relay wrote for people, and what would steer the server."""
_JOBS_REMEMBERED: Final = 4096
_HEADERS_REMEMBERED: Final = 256
_STATUS_SUBJECT: Final = re.compile(r"job\.status\.([^\s.*>]+)")
_AGE: Final = re.compile(r"(\d+)([smhd])")
_AGE_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_MICROSECOND: Final = dt.timedelta(microseconds=1)
_MOST_DIGITS: Final = 19
"""Of a sequence. Python refuses to read a number of thousands of digits."""
_EPOCH: Final = dt.datetime.fromtimestamp(0, dt.UTC)


@dataclass(frozen=True, slots=True)
class Ending:
    """One way in which an update ended as a dead letter. `failed_at` is ISO 8601, as the relay wrote it."""

    reason: str
    attempts: str
    failed_at: str

    def __str__(self) -> str:
        return f"{self.reason} {self.attempts} {self.failed_at}"


@dataclass(frozen=True, slots=True)
class StoredDeadLetter:
    """One message of the dead-letter stream. What its headers do not say is empty."""

    sequence: int
    """In the dead-letter stream."""
    stored_at: dt.datetime
    """When the dead-letter stream stored it, to the microsecond, UTC."""
    headers: Mapping[str, str]
    body: bytes

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
        return self.headers.get(SOURCE_SUBJECT_HEADER, "")

    @property
    def source_sequence(self) -> str:
        return self.headers.get(SOURCE_SEQUENCE_HEADER, "")

    @property
    def replayed_from(self) -> str:
        return self.headers.get(REPLAYED_FROM_HEADER, "")

    @property
    def job(self) -> str:
        """The token that the producer published on, a UUID if the producer was right; empty if it is unknown."""
        return _job_of(self.source_subject)

    @property
    def status(self) -> str:
        """What the body gives as the job's status; empty if it gives none."""
        try:
            content = _PEEK(self.body)
        except (ValueError, RecursionError):
            return ""
        status = content.status if content.payload is None else content.payload.status
        return status if isinstance(status, str) else ""

    @property
    def history(self) -> tuple[Ending, ...]:
        """How the update ended before it was replayed, oldest first; empty if it never was."""
        if not (text := self.headers.get(HISTORY_HEADER)):
            return ()
        parts = (part.split(" ") for part in text.split("; "))
        return tuple(Ending(*part) for part in parts if len(part) == 3)  # noqa: PLR2004 - the fields of Ending

    @property
    def own_headers(self) -> dict[str, str]:
        """The original's headers, without those that steer the server and without the relay's."""
        return {name: value for name, value in self.headers.items() if not _is_ours(name)}


@functools.lru_cache(maxsize=_JOBS_REMEMBERED)
def _job_of(subject: str) -> str:
    match = _STATUS_SUBJECT.fullmatch(subject)
    return match[1] if match else ""


@functools.lru_cache(maxsize=_HEADERS_REMEMBERED)
def _is_ours(header: str) -> bool:
    return header.lower().startswith(_OWN_HEADERS)


class _Peek(msgspec.Struct, gc=False):
    status: Any = None
    payload: "_Peek | None" = None


_PEEK: Final = msgspec.json.Decoder(_Peek).decode


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters are meant: those that meet every condition that is set, in stream order."""

    sequences: tuple[int, ...] = ()
    job: str | None = None
    reason: Reason | None = None
    since: dt.datetime | None = None
    limit: int | None = None

    @property
    def subject(self) -> str:
        """The subjects to look at."""
        return dlq_subject(self.job) if self.job is not None else DLQ_SUBJECTS

    def takes(self, letter: StoredDeadLetter) -> bool:
        """Whether a dead letter on `subject` is meant; the limit is the reader's to count."""
        return (
            (not self.sequences or letter.sequence in self.sequences)
            and (self.reason is None or letter.reason == self.reason)
            and (self.since is None or letter.stored_at >= self.since)
        )

    @property
    def is_plain(self) -> bool:
        """Whether the subject alone says which ones are meant."""
        return not (self.sequences or self.reason or self.since or self.limit)


class Replay(msgspec.Struct, frozen=True):
    """A dead letter made fit to be published as an update again. `headers` have `message_id` and the marks."""

    job: str
    subject: str
    headers: dict[str, str]
    body: bytes
    message_id: str
    guess: int
    """The sequence of the job's last stored update, if nothing was stored since this one failed."""

    def without_history(self) -> "Replay":
        """The same with as few bytes of headers as can be, where the server says that it is too large."""
        headers = {name: value for name, value in self.headers.items() if name != HISTORY_HEADER}
        return msgspec.structs.replace(self, headers=headers)


def replay_of(letter: StoredDeadLetter) -> Replay | None:
    """What to publish; None if the dead letter does not say on which subject."""
    if not (job := letter.job):
        return None
    endings = (*letter.history, Ending(letter.reason, letter.attempts, letter.failed_at))[-_HISTORY_LENGTH:]
    message_id = _replay_id(letter)
    marks = {
        MSG_ID_HEADER: message_id,
        REPLAYED_FROM_HEADER: str(letter.sequence),
        HISTORY_HEADER: "; ".join(map(str, endings)),
    }
    guess = number_of(letter.source_sequence) or 0
    return Replay(job, status_subject(job), letter.own_headers | marks, letter.body, message_id, guess)


def number_of(text: str) -> int | None:
    """The number that a header's text is; None if it is none, or larger than any that the relay writes."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS else None


def is_replay_id(message_id: str) -> bool:
    """Whether `message_id` is one that a replay was published with."""
    return message_id.startswith(_REPLAY_ID_PREFIX)


def origin_of_replay(message_id: str) -> tuple[int, dt.datetime] | None:
    """The sequence of the dead letter that a replay with this id was made of, and when it was stored."""
    match = _REPLAY_ID.match(message_id)
    return (int(match[1]), _EPOCH + int(match[2]) * _MICROSECOND) if match else None


def _replay_id(letter: StoredDeadLetter) -> str:
    stored_us = (letter.stored_at - _EPOCH) // _MICROSECOND
    digest = hashlib.blake2b(letter.body, digest_size=8).hexdigest()
    return f"{_REPLAY_ID_PREFIX}{letter.sequence}:{stored_us}:{digest}"


def parse_since(text: str, now: dt.datetime) -> dt.datetime:
    """The moment that `text` names: an age (`90s`, `15m`, `2h`, `3d`) or an ISO 8601 time, UTC if it does not say.

    Raises ValueError if it is neither.
    """
    if (age := _AGE.fullmatch(text)) is not None:
        try:
            return now - dt.timedelta(seconds=int(age[1]) * _AGE_UNITS_S[age[2]])
        except OverflowError:
            raise ValueError(f"{text} ago was before all calendars") from None
    moment = dt.datetime.fromisoformat(text)
    return _in_utc(moment) if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


def _in_utc(moment: dt.datetime) -> dt.datetime:
    try:
        return moment.astimezone(dt.UTC)
    except OverflowError:
        raise ValueError(f"{moment.isoformat()} is outside of all calendars in UTC") from None


def moment_of(nanoseconds: int) -> dt.datetime:
    """Unix time in nanoseconds, as the server gives it, to the microsecond."""
    return _EPOCH + nanoseconds // 1000 * _MICROSECOND


class _Exported(msgspec.Struct):
    """A dead letter in a file. The body is in `body` if it is text, else in `body_base64`."""

    sequence: Annotated[int, msgspec.Meta(ge=1)]
    stored_at: dt.datetime
    headers: dict[str, str]
    body: str | None = None
    body_base64: str | None = None


_IMPORT: Final = msgspec.json.Decoder(_Exported).decode


def to_line(letter: StoredDeadLetter) -> bytes:
    """A dead letter as one line of JSON, bytes safe, with the end of the line."""
    try:
        body = {"body": letter.body.decode()}
    except UnicodeDecodeError:
        body = {"body_base64": base64.b64encode(letter.body).decode()}
    document = {
        "sequence": letter.sequence,
        "stored_at": letter.stored_at.isoformat(),
        **body,
        "headers": dict(letter.headers),
    }
    # In ASCII, so that no editor takes anything in it for the end of a line.
    return json.dumps(document).encode() + b"\n"


def from_line(line: bytes) -> StoredDeadLetter:
    """The dead letter in a line that `to_line` wrote, edited or not. Raises ValueError, with what is wrong."""
    try:
        found = _IMPORT(line)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if (found.body is None) == (found.body_base64 is None):
        raise ValueError("it needs either `body` or `body_base64`")
    if found.stored_at.tzinfo is None:
        raise ValueError("`stored_at` needs its offset from UTC")
    body = found.body.encode() if found.body is not None else base64.b64decode(found.body_base64 or "", validate=True)
    letter = StoredDeadLetter(found.sequence, _in_utc(found.stored_at), found.headers, body)
    if not letter.job:
        raise ValueError(f"the header {SOURCE_SUBJECT_HEADER} names no subject job.status.<uuid>")
    return letter
