"""The updates that dead letters were made of: they are deleted from JOB_STATUS together with their dead letters.

So an update that is in JOB_STATUS, is settled and has no dead letter was acknowledged by the Facilitator; and a lane's
consumer that is made anew does not deliver again what was replayed or purged. The source is deleted before the dead
letter: after an interruption in between, the dead letter is still there, and removing it again completes the work.

A sequence alone does not identify an update: a status stream that was deleted and made anew counts from 1 again. The
source of a dead letter has the sequence and the job that it names and is not younger. For the server a deletion settles
an update, also one that its worker has not terminated yet.
"""

import asyncio
import datetime as dt
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from relay.contract.errors import JetStreamError
from relay.contract.subjects import (
    STATUS_STREAM,
    api_stream_info,
    job_filter,
    token_of_stored,
)
from relay.dead_letters.stored import StoredDeadLetter
from relay.nats.connection import Requester, api_request
from relay.nats.err_codes import STREAM_NOT_FOUND
from relay.nats.messages import delete_message, find_message, get_message

_STRIDE: Final = 64
"""How many sequences share one lookup, which tells whether they are all older than their dead letters."""
_LOOKUPS_REMEMBERED: Final = 1024


@dataclass(frozen=True, slots=True)
class _StreamRange:
    """Which sources the status stream can have."""

    made_at: dt.datetime
    first: int

    def may_hold_source_of(self, letter: StoredDeadLetter) -> bool:
        return letter.stored_at >= self.made_at and letter.source_sequence >= self.first


_NEVER: Final = dt.datetime.max.replace(tzinfo=dt.UTC)
_NO_STREAM: Final = _StreamRange(_NEVER, 0)


@dataclass(slots=True)
class _AgeLookup:
    """When the first update behind a stride was stored. If there is none, no update counts as old enough."""

    ended: asyncio.Event = field(default_factory=asyncio.Event)
    stored_at: dt.datetime = _NEVER


class SourceUpdates:
    """Deletes the sources of dead letters. Use one for many: it remembers what it has looked up."""

    def __init__(self, client: Requester) -> None:
        self._client = client
        self._range: _StreamRange | None = None
        self._range_lock = asyncio.Lock()
        # Bounded: a forgotten one is looked up again.
        self._lookups: OrderedDict[int, _AgeLookup] = OrderedDict()

    async def remove(self, letter: StoredDeadLetter, *, same_job: bool = False) -> None:
        """Delete the update that a dead letter was made of, if the status stream has it.

        `same_job`: the caller knows that the update with the source's sequence is of the same job. Then only its age
        is checked, with one lookup for many. Raises RelayError. If cancelled, the update may or may not be deleted.
        """
        sequence = letter.source_sequence
        if not (sequence and letter.job) or not (await self._stream_range()).may_hold_source_of(letter):
            return
        if (same_job and await self._is_old(letter)) or await self._is_there(letter):
            await delete_message(self._client, STATUS_STREAM, sequence)

    async def _stream_range(self) -> _StreamRange:
        async with self._range_lock:
            if self._range is None:
                self._range = await self._find_range()
        return self._range

    async def _find_range(self) -> _StreamRange:
        try:
            info = await api_request(self._client, api_stream_info(STATUS_STREAM))
        except JetStreamError as error:
            if error.err_code == STREAM_NOT_FOUND:
                return _NO_STREAM
            raise
        return _StreamRange(dt.datetime.fromisoformat(info["created"]), info["state"]["first_seq"])

    async def _is_old(self, letter: StoredDeadLetter) -> bool:
        """Whether the source's sequence is certainly not younger than the dead letter.

        In a stream, times ascend with sequences. So if one update is old enough, all before it are: the first update
        behind a stride tells for the whole stride.
        """
        behind = (letter.source_sequence // _STRIDE + 1) * _STRIDE
        if (lookup := self._lookups.get(behind)) is not None:
            await lookup.ended.wait()
        else:
            lookup = self._lookups[behind] = _AgeLookup()
            if len(self._lookups) > _LOOKUPS_REMEMBERED:
                self._lookups.popitem(last=False)
            try:
                await self._look_up(behind, lookup)
            finally:
                lookup.ended.set()
        return lookup.stored_at <= letter.stored_at

    async def _look_up(self, start: int, lookup: "_AgeLookup") -> None:
        found = await find_message(self._client, STATUS_STREAM, {"next_by_subj": job_filter("*"), "seq": start})
        if found is not None:
            lookup.stored_at = found.stored_at

    async def _is_there(self, letter: StoredDeadLetter) -> bool:
        message = await get_message(self._client, STATUS_STREAM, letter.source_sequence)
        return (
            message is not None
            and token_of_stored(message.subject) == letter.job
            and message.stored_at <= letter.stored_at
        )
