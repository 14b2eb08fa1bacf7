"""Writing to the dead-letter stream: the update as it was, and why it is there."""

import base64
import datetime as dt
import math
import re
import time
from collections.abc import Mapping
from typing import Final

from nats.aio.client import Client

from relay.broker.connection import TOO_LARGE, api_request, publish_confirmed
from relay.core.ports import UpdateLike
from relay.core.verdict import DeadLetter
from relay.errors import JetStreamError, RelayError
from relay.subjects import (
    ATTEMPTS_HEADER,
    DLQ_STREAM,
    DLQ_SUBJECTS,
    ERROR_HEADER,
    FAILED_AT_HEADER,
    HISTORY_HEADER,
    MSG_ID_HEADER,
    ORIGINAL_HEADER_PREFIX,
    REASON_HEADER,
    REPLAYED_FROM_HEADER,
    SOURCE_SEQUENCE_HEADER,
    SOURCE_SUBJECT_HEADER,
    STATUS_STREAM,
    api_message_get,
    dlq_msg_id,
    dlq_subject,
    published_subject,
    token_of_stored,
)

_NO_MESSAGE: Final = 10037
_LOOK_TIMEOUT_S: Final = 1.0
"""How long to wait for an answer: a server that went away meanwhile gives none, and lanes wait for it."""
_WRITE_TIMEOUT_S: Final = 5.0
_CLOCK_SKEW_S: Final = 60.0
"""By how much the clocks of two servers, or a server's and ours, may differ."""
_MAX_ERROR_CHARS: Final = 1000
"""The Facilitator's complaints can echo a whole update; the update is in the body already."""
_HEADERS_LEFT_OUT: Final = " (the headers of the original were too large, and were left out)"
_CONTROL_HEADER_PREFIX: Final = "nats-"
"""Headers that tell the server what to do with a message, in any case of letters."""
_REPLAY_HEADERS: Final = frozenset({REPLAYED_FROM_HEADER, HISTORY_HEADER})
_UNSAFE_IN_NAME: Final = re.compile(r"[^0-9A-Za-z!#$%&'*+.^_`|~-]")
"""What nats-py refuses to send, so that such a dead letter could never be written."""


class DeadLetters:
    """The dead-letter stream, to write to."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc
        self._newest_s = math.inf

    async def look(self) -> None:
        """See how old the newest dead letter is, for `may_hold`."""
        try:
            answer = await api_request(
                self._nc, api_message_get(DLQ_STREAM), {"last_by_subj": DLQ_SUBJECTS}, timeout_s=_LOOK_TIMEOUT_S
            )
        except RelayError as error:
            self._newest_s = -math.inf if _is_absent(error) else math.inf
        else:
            self._newest_s = dt.datetime.fromisoformat(answer["message"]["time"]).timestamp()

    def may_hold(self, delivery: UpdateLike) -> bool:
        """Whether it takes a look to know about an update: a dead letter is never older than its update."""
        return delivery.stored_at_s <= self._newest_s + _CLOCK_SKEW_S

    async def write(self, delivery: UpdateLike, letter: DeadLetter, attempts: int) -> None:
        """Store a copy of the update with its reason, and wait until the server has it.

        Written again with the same `Nats-Msg-Id` it is stored once, as long as the stream's duplicate window lasts.

        Raises:
            JetStreamError: the server refused it, for instance because the stream is full.
            PublishUnconfirmed: it may or may not be stored.
        """
        subject = dlq_subject(token_of_stored(delivery.subject))
        carried = _carried(delivery.headers)
        told = {
            MSG_ID_HEADER: dlq_msg_id(STATUS_STREAM, delivery.sequence),
            REASON_HEADER: letter.reason.value,
            ERROR_HEADER: _one_line(letter.error),
            ATTEMPTS_HEADER: str(attempts),
            SOURCE_SUBJECT_HEADER: published_subject(delivery.subject),
            SOURCE_SEQUENCE_HEADER: str(delivery.sequence),
            FAILED_AT_HEADER: dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
        }
        try:
            await self._publish(subject, delivery.body, carried | told)
        except JetStreamError as error:
            if error.err_code != TOO_LARGE:
                raise
            # Made safe, headers can outgrow the room that is left for them. Better without them than never.
            kept = {name: value for name, value in carried.items() if name in _REPLAY_HEADERS}
            told[ERROR_HEADER] += _HEADERS_LEFT_OUT
            await self._publish(subject, delivery.body, kept | told)
        self._newest_s = max(self._newest_s, time.time())

    async def _publish(self, subject: str, body: bytes, headers: dict[str, str]) -> None:
        await publish_confirmed(self._nc, subject, body, headers, timeout_s=_WRITE_TIMEOUT_S)

    async def holds(self, delivery: UpdateLike) -> bool:
        """Whether the update is a dead letter already, because a worker died before it could end it.

        One look at the job's last dead letter tells: an update that is not ended yet holds back its job's later
        ones, so none of theirs can be there. Raises RelayError if nobody can tell now.
        """
        subject = dlq_subject(token_of_stored(delivery.subject))
        try:
            answer = await api_request(
                self._nc, api_message_get(DLQ_STREAM), {"last_by_subj": subject}, timeout_s=_LOOK_TIMEOUT_S
            )
        except JetStreamError as error:
            if _is_absent(error):
                return False
            raise
        headers = base64.b64decode(answer["message"].get("hdrs", ""))
        return f"\r\n{SOURCE_SEQUENCE_HEADER}: {delivery.sequence}\r\n".encode() in headers


def _is_absent(error: RelayError) -> bool:
    return isinstance(error, JetStreamError) and error.err_code == _NO_MESSAGE


def _carried(headers: Mapping[str, str]) -> dict[str, str]:
    """The original's headers as they travel in the copy: safe to send, to show, and for the server to read."""
    # Those that steered a replay are no producer's.
    was_replayed = REPLAYED_FROM_HEADER in headers
    return {
        (ORIGINAL_HEADER_PREFIX if _is_control(name) else "") + _UNSAFE_IN_NAME.sub("_", name): _printable(value)
        for name, value in headers.items()
        if not (was_replayed and _is_control(name))
    }


def _is_control(name: str) -> bool:
    return name.lower().startswith(_CONTROL_HEADER_PREFIX)


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)


def _one_line(text: str) -> str:
    printable = _printable(text)
    return printable if len(printable) <= _MAX_ERROR_CHARS else printable[:_MAX_ERROR_CHARS] + " ..."
