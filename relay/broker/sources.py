"""The updates that dead letters were made of: they leave the status stream with their dead letters.

What is in the status stream, settled, and has no dead letter was acknowledged by the Facilitator; and a consumer that
is made anew delivers nothing again that was replayed or purged. So whoever removes a dead letter removes its source
first: interrupted in between, the dead letter is still there, and to remove it again mends it.

A sequence alone names no update: a status stream that was deleted and made anew counts from 1 again. A source has the
sequence and the job of its dead letter and is not younger. To the server a deletion is the end of an update, also of
one that its worker has not ended yet.
"""

import asyncio
import datetime as dt
from dataclasses import dataclass
from typing import Final

from nats.aio.client import Client

from relay.broker.connection import api_request
from relay.broker.messages import delete_message, find_message, get_message
from relay.core.letters import Letter, number_of
from relay.err_codes import STREAM_NOT_FOUND
from relay.errors import JetStreamError
from relay.subjects import (
    STATUS_STREAM,
    api_stream_info,
    job_filter,
    token_of_stored,
)

_STRIDE: Final = 64
"""How many sequences ahead to look for an update that is still older than a dead letter."""


@dataclass(frozen=True, slots=True)
class _Extent:
    """What the status stream can have the sources of."""

    made_at: dt.datetime
    first: int

    def may_hold(self, letter: Letter, sequence: int) -> bool:
        return letter.stored_at >= self.made_at and sequence >= self.first


_NOWHERE: Final = _Extent(dt.datetime.max.replace(tzinfo=dt.UTC), 0)


class Sources:
    """Removes the sources of dead letters."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._looking = asyncio.Lock()
        self._extent: _Extent | None = None
        self._old_up_to, self._old_at = 0, dt.datetime.max.replace(tzinfo=dt.UTC)
        """Everything up to this sequence was stored at this time or before."""
        self._stride_from = 0

    async def remove(self, letter: Letter, *, of_its_job: bool = False) -> None:
        """Delete the update that a dead letter was made of, if the status stream has it.

        `of_its_job`: it is known that the sequence is one of its job's. Then its age alone is looked at, for many at
        a time. Raises RelayError.
        """
        sequence = number_of(letter.source_sequence)
        if sequence is None or not letter.job:
            return
        if self._extent is None:
            async with self._looking:
                self._extent = self._extent or await self._look()
        if not self._extent.may_hold(letter, sequence):
            return
        if (of_its_job and await self._is_old(letter, sequence)) or await self._is_there(letter, sequence):
            await delete_message(self._client, STATUS_STREAM, sequence)

    async def _is_old(self, letter: Letter, sequence: int) -> bool:
        """Whether a sequence is certainly not younger than a dead letter.

        In a stream times ascend with sequences, so one update that is old enough speaks for all before it.
        """
        if sequence > self._old_up_to:
            async with self._looking:
                if self._old_up_to < sequence >= self._stride_from:
                    await self._look_ahead(sequence + _STRIDE)
        return sequence <= self._old_up_to and self._old_at <= letter.stored_at

    async def _look_ahead(self, start: int) -> None:
        self._stride_from = start
        ahead = await find_message(self._client, STATUS_STREAM, {"next_by_subj": job_filter("*"), "seq": start})
        if ahead is not None:
            self._old_up_to, self._old_at = ahead["seq"], dt.datetime.fromisoformat(ahead["time"])

    async def _look(self) -> _Extent:
        try:
            info = await api_request(self._client, api_stream_info(STATUS_STREAM))
        except JetStreamError as error:
            if error.err_code == STREAM_NOT_FOUND:
                return _NOWHERE
            raise
        return _Extent(dt.datetime.fromisoformat(info["created"]), info["state"]["first_seq"])

    async def _is_there(self, letter: Letter, sequence: int) -> bool:
        message = await get_message(self._client, STATUS_STREAM, sequence)
        return (
            message is not None
            and token_of_stored(message["subject"]) == letter.job
            and dt.datetime.fromisoformat(message["time"]) <= letter.stored_at
        )
