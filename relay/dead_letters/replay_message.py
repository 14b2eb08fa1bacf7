"""What a replay publishes: the update of a dead letter, with headers that mark it as a replay.

A replay has the message id `relay-replay:<sequence>:<stored at>:<digest of the body>`. It is different for each dead
letter, also if the stream was deleted and made again, and an edited body changes it. So JOB_STATUS shows whether a dead
letter was replayed before, for as long as it keeps the replay (see replay.py).
"""

import datetime as dt
import functools
import hashlib
import re
from typing import Final

import msgspec

from relay.contract.subjects import HISTORY_HEADER, MSG_ID_HEADER, REPLAYED_FROM_HEADER, status_subject
from relay.dead_letters.moments import moment_of_us, unix_us
from relay.dead_letters.stored import PastFailure, StoredDeadLetter

_HISTORY_LENGTH: Final = 20
"""How many past failures are kept. Together they must fit into the space that a dead letter has for headers."""
_ID_PREFIX: Final = "relay-replay:"
_ID: Final = re.compile(_ID_PREFIX + r"([0-9]{1,19}):([0-9]{1,17}):")
"""Sequence and microseconds, with few enough digits for the year to stay valid."""
_LEFT_OUT_HEADERS: Final = ("relay-", "nats-")
"""In upper or lower case: headers that the relay wrote for people, and headers that instruct the server."""
_HEADERS_REMEMBERED: Final = 256


class ReplayMessage(msgspec.Struct, frozen=True):
    """An update to publish again. `headers` contain `message_id` and the headers that mark a replay."""

    job: str
    subject: str
    headers: dict[str, str]
    body: bytes
    message_id: str
    likely_last: int
    """A guess at the sequence of the job's last update in JOB_STATUS: right if nothing came after this one failed."""

    def without_history(self) -> "ReplayMessage":
        """The same message with the shortest headers, for when the server finds it too large."""
        headers = {name: value for name, value in self.headers.items() if name != HISTORY_HEADER}
        return msgspec.structs.replace(self, headers=headers)


def replay_message_of(letter: StoredDeadLetter) -> ReplayMessage | None:
    """What to publish; None if the dead letter does not name a subject to publish on."""
    if not letter.job:
        return None
    failures = (*letter.history, PastFailure(letter.reason, letter.attempts, letter.failed_at))[-_HISTORY_LENGTH:]
    message_id = _id_of(letter)
    headers = original_headers(letter) | {
        MSG_ID_HEADER: message_id,
        REPLAYED_FROM_HEADER: str(letter.sequence),
        HISTORY_HEADER: "; ".join(map(str, failures)),
    }
    subject = status_subject(letter.job)
    return ReplayMessage(letter.job, subject, headers, letter.body, message_id, letter.source_sequence)


def original_headers(letter: StoredDeadLetter) -> dict[str, str]:
    """The producer's headers, without those that instruct the server."""
    return {name: value for name, value in letter.headers.items() if not _is_left_out(name)}


@functools.lru_cache(maxsize=_HEADERS_REMEMBERED)
def _is_left_out(header: str) -> bool:
    return header.lower().startswith(_LEFT_OUT_HEADERS)


def is_replay_id(message_id: str) -> bool:
    """Whether `message_id` is that of a replay."""
    return message_id.startswith(_ID_PREFIX)


def origin_of_replay(message_id: str) -> tuple[int, dt.datetime] | None:
    """The sequence of the dead letter that was replayed with this id, and when it was stored."""
    match = _ID.match(message_id)
    return (int(match[1]), moment_of_us(int(match[2]))) if match else None


def _id_of(letter: StoredDeadLetter) -> str:
    digest = hashlib.blake2b(letter.body, digest_size=8).hexdigest()
    return f"{_ID_PREFIX}{letter.sequence}:{unix_us(letter.stored_at)}:{digest}"
