"""What a replay publishes: the update that a dead letter was made of, and the marks of the replay.

A replay is published with the message id `relay-replay:<sequence>:<stored at>:<digest of the body>`. No two dead
letters share one, not even those of two streams of one name, and an edited body changes it. So JOB_STATUS itself shows
whether a dead letter was replayed before, however long ago (see replay.py).
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
"""How many past failures are kept: together they must fit into the room that a dead letter has for headers."""
_ID_PREFIX: Final = "relay-replay:"
_ID: Final = re.compile(_ID_PREFIX + r"([0-9]{1,19}):([0-9]{1,17}):")
"""Sequence, and microseconds few enough for every calendar."""
_LEFT_OUT_HEADERS: Final = ("relay-", "nats-")
"""In any case of letters: what the relay wrote for people, and what would steer the server."""
_HEADERS_REMEMBERED: Final = 256


class ReplayMessage(msgspec.Struct, frozen=True):
    """An update to publish again. `headers` contain `message_id` and the marks of the replay."""

    job: str
    subject: str
    headers: dict[str, str]
    body: bytes
    message_id: str
    likely_last: int
    """The sequence of the job's last update in JOB_STATUS, if nothing was published since this one failed."""

    def without_history(self) -> "ReplayMessage":
        """The same with as few bytes of headers as can be, for a message that the server finds too large."""
        headers = {name: value for name, value in self.headers.items() if name != HISTORY_HEADER}
        return msgspec.structs.replace(self, headers=headers)


def replay_message_of(letter: StoredDeadLetter) -> ReplayMessage | None:
    """What to publish; None if the dead letter does not say on which subject."""
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
    """The headers that the producer gave, without those that steer the server."""
    return {name: value for name, value in letter.headers.items() if not _is_left_out(name)}


@functools.lru_cache(maxsize=_HEADERS_REMEMBERED)
def _is_left_out(header: str) -> bool:
    return header.lower().startswith(_LEFT_OUT_HEADERS)


def is_replay_id(message_id: str) -> bool:
    """Whether `message_id` is one that a replay was published with."""
    return message_id.startswith(_ID_PREFIX)


def origin_of_replay(message_id: str) -> tuple[int, dt.datetime] | None:
    """The sequence of the dead letter that a replay with this id was made of, and when it was stored."""
    match = _ID.match(message_id)
    return (int(match[1]), moment_of_us(int(match[2]))) if match else None


def _id_of(letter: StoredDeadLetter) -> str:
    digest = hashlib.blake2b(letter.body, digest_size=8).hexdigest()
    return f"{_ID_PREFIX}{letter.sequence}:{unix_us(letter.stored_at)}:{digest}"
