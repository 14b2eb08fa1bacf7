"""Writing to the dead-letter stream: the original update, and the reason."""

import datetime as dt
import math
import re
from collections.abc import Mapping
from typing import Final

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
    SOURCE_STORED_AT_HEADER,
    SOURCE_SUBJECT_HEADER,
    STATUS_STREAM,
    dlq_msg_id,
    dlq_subject,
    published_subject,
    token_of_stored,
)
from relay.contract.text import one_line
from relay.core.update import DeadLetterHorizon, UpdateLike
from relay.core.verdict import DeadLetter
from relay.dead_letters.index import DeadLetterIndex
from relay.dead_letters.moments import moment_of_us
from relay.dead_letters.stored import stored_us
from relay.nats.err_codes import TOO_LARGE
from relay.nats.frames import FrameClient
from relay.nats.jetstream import publish_confirmed

_MAX_ERROR_CHARS: Final = 1000
"""Bounded, because an error of the Facilitator can repeat the whole update, which is in the body already."""
_HEADERS_LEFT_OUT: Final = " (the headers of the original were too large, and were left out)"
_CONTROL_HEADER_PREFIX: Final = "nats-"
"""Headers that tell the server what to do with a message, in upper or lower case."""
_REPLAY_HEADERS: Final = frozenset({REPLAYED_FROM_HEADER, HISTORY_HEADER})
_UNSAFE_IN_NAME: Final = re.compile(r"[^0-9A-Za-z!#$%&'*+.^_`|~-]")
"""Characters that nats-py refuses to send in names. With them the dead letter could never be written."""


class DeadLetterWriter:
    """Writes dead letters, and finds out whether an update has one already. Cancelling `look` and `holds` is safe."""

    def __init__(self, client: FrameClient, *, write_timeout_s: float = 5.0) -> None:
        self._client = client
        self._write_timeout_s = write_timeout_s
        self._index = DeadLetterIndex(client)
        self.horizon = DeadLetterHorizon()
        """Which updates may have a dead letter already; see `look`."""

    async def look(self) -> None:
        """Find out how new the newest dead letter is, for `horizon`. Call it before a lane is driven."""
        self._index.forget()
        try:
            newest = await self._index.last(DLQ_SUBJECTS)
        except RelayError:
            newest_s = math.inf  # unknown now, so each update has to be looked up
        else:
            newest_s = newest.newest_s if newest else -math.inf
        self.horizon.at_start_s = self.horizon.newest_s = newest_s

    async def write(self, update: UpdateLike, dead_letter: DeadLetter, attempts: int) -> None:
        """Store a copy of the update with the reason, and wait for the PubAck.

        If it is written again within the stream's duplicate window, it is still stored only once.

        Raises:
            JetStreamError: the server refused it, for example because the stream is full.
            PublishUnconfirmed: it may or may not be stored. The same holds after a cancellation.
        """
        carried = _carried(update.headers)
        added = {
            MSG_ID_HEADER: dlq_msg_id(STATUS_STREAM, update.sequence),
            REASON_HEADER: dead_letter.reason.value,
            ERROR_HEADER: _bounded(one_line(dead_letter.error)),
            ATTEMPTS_HEADER: str(attempts),
            SOURCE_SUBJECT_HEADER: published_subject(update.subject),
            SOURCE_SEQUENCE_HEADER: str(update.sequence),
            SOURCE_STORED_AT_HEADER: moment_of_us(stored_us(update)).isoformat(timespec="microseconds"),
            FAILED_AT_HEADER: dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
        }
        try:
            await self._store(update, carried | added)
        except JetStreamError as error:
            if error.err_code != TOO_LARGE:
                raise
            # Headers that were made safe can be larger than the original ones. If they are too large, leave them out.
            kept = {name: value for name, value in carried.items() if name in _REPLAY_HEADERS}
            added[ERROR_HEADER] += _HEADERS_LEFT_OUT
            await self._store(update, kept | added)
        self.horizon.newest_s = max(self.horizon.newest_s, update.stored_at_s)

    async def _store(self, update: UpdateLike, headers: dict[str, str]) -> None:
        subject = dlq_subject(token_of_stored(update.subject))
        ack = await publish_confirmed(self._client, subject, update.body, headers, timeout_s=self._write_timeout_s)
        if ack.duplicate and not ((stored := await self._index.at(ack.sequence)) and stored.is_of(update)):
            # The status stream was made again and counts from 1 again, so the id was that of an older update.
            headers = headers | {MSG_ID_HEADER: f"{headers[MSG_ID_HEADER]}:{stored_us(update)}"}
            await publish_confirmed(self._client, subject, update.body, headers, timeout_s=self._write_timeout_s)

    async def holds(self, update: UpdateLike) -> bool:
        """Whether the update has a dead letter already. It is a request, so ask only if `horizon` says that it may.

        It has one if a worker died before it could terminate the update, or if the consumer was deleted and made again.
        Raises RelayError if the server does not answer.
        """
        return await self._index.holds(update)


def _carried(headers: Mapping[str, str]) -> dict[str, str]:
    """The update's headers as the dead letter has them: safe to send and to show, without effect on the server."""
    # The control headers of a replay come from the relay, not from the producer.
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
