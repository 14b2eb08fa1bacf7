"""Writing to the dead-letter stream: the update as it was, and why it is there."""

import datetime as dt
import math
import re
from collections.abc import Mapping
from typing import Final

from nats.aio.client import Client

from relay.contract.errors import JetStreamError, RelayError
from relay.contract.subjects import (
    ATTEMPTS_HEADER,
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
    dlq_msg_id,
    dlq_subject,
    published_subject,
    token_of_stored,
)
from relay.contract.text import one_line
from relay.core.ports import DeliveryLike, UpdateLike
from relay.core.verdict import DeadLetter
from relay.dead_letters.index import DeadLetterIndex, is_of
from relay.nats.connection import publish_confirmed
from relay.nats.err_codes import TOO_LARGE

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


class DeadLetterWriter:
    """The dead-letter stream, to write to."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc
        self._buried = DeadLetterIndex(nc)
        self._found_s = self._newest_s = math.inf

    async def look(self) -> None:
        """See how old the newest dead letter is, for `may_hold`: to be called before a lane is driven."""
        self._buried.forget()
        try:
            newest = await self._buried.last(DLQ_SUBJECTS)
        except RelayError:
            self._found_s = math.inf
        else:
            self._found_s = newest.stored_at_s if newest else -math.inf
        self._newest_s = self._found_s

    def may_hold(self, delivery: DeliveryLike, made_at_s: float) -> bool:
        """Whether it takes a look to know about an update of a consumer that was made at `made_at_s` (Unix time).

        A dead letter is never older than its update. Of an update that is delivered for the first time there is one
        only if a consumer before this one had delivered it, and then it was there before us.
        """
        until_s = self._newest_s if delivery.deliveries > 1 else min(self._found_s, made_at_s)
        return delivery.stored_at_s <= until_s + _CLOCK_SKEW_S

    async def write(self, delivery: UpdateLike, letter: DeadLetter, attempts: int) -> None:
        """Store a copy of the update with its reason, and wait until the server has it.

        Written again with the same `Nats-Msg-Id` it is stored once, as long as the stream's duplicate window lasts.

        Raises:
            JetStreamError: the server refused it, for instance because the stream is full.
            PublishUnconfirmed: it may or may not be stored.
        """
        carried = _carried(delivery.headers)
        told = {
            MSG_ID_HEADER: dlq_msg_id(STATUS_STREAM, delivery.sequence),
            REASON_HEADER: letter.reason.value,
            ERROR_HEADER: _bounded(one_line(letter.error)),
            ATTEMPTS_HEADER: str(attempts),
            SOURCE_SUBJECT_HEADER: published_subject(delivery.subject),
            SOURCE_SEQUENCE_HEADER: str(delivery.sequence),
            FAILED_AT_HEADER: dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
        }
        try:
            await self._store(delivery, carried | told)
        except JetStreamError as error:
            if error.err_code != TOO_LARGE:
                raise
            # Made safe, headers can outgrow the room that is left for them. Better without them than never.
            kept = {name: value for name, value in carried.items() if name in _REPLAY_HEADERS}
            told[ERROR_HEADER] += _HEADERS_LEFT_OUT
            await self._store(delivery, kept | told)
        self._newest_s = max(self._newest_s, delivery.stored_at_s)

    async def _store(self, update: UpdateLike, headers: dict[str, str]) -> None:
        subject = dlq_subject(token_of_stored(update.subject))
        ack = await publish_confirmed(self._nc, subject, update.body, headers, timeout_s=_WRITE_TIMEOUT_S)
        if ack.duplicate and not ((there := await self._buried.at(ack.sequence)) and is_of(there, update)):
            # The status stream was made anew and counts from 1 again: the id was an older update's.
            headers = headers | {MSG_ID_HEADER: f"{headers[MSG_ID_HEADER]}:{round(update.stored_at_s * 1e6)}"}
            await publish_confirmed(self._nc, subject, update.body, headers, timeout_s=_WRITE_TIMEOUT_S)

    async def holds(self, update: UpdateLike) -> bool:
        """Whether the update is a dead letter already: `may_hold` says whether to ask.

        A worker died before it could end the update, or the update comes from a consumer that was made anew. Raises
        RelayError if nobody can tell now.
        """
        return await self._buried.holds(update)


def _carried(headers: Mapping[str, str]) -> dict[str, str]:
    """The original's headers as they travel in the copy: safe to send, to show, and for the server to read."""
    # Those that steered a replay are no producer's.
    was_replayed = REPLAYED_FROM_HEADER in headers
    return {
        (ORIGINAL_HEADER_PREFIX if _is_control(name) else "") + _UNSAFE_IN_NAME.sub("_", name): one_line(value)
        for name, value in headers.items()
        if not (was_replayed and _is_control(name))
    }


def _is_control(name: str) -> bool:
    return name.lower().startswith(_CONTROL_HEADER_PREFIX)


def _bounded(text: str) -> str:
    return text if len(text) <= _MAX_ERROR_CHARS else text[:_MAX_ERROR_CHARS] + " ..."
