"""Sources: the updates that dead letters were made of. They are deleted from JOB_STATUS with their dead letters.

There are two reasons. An update in JOB_STATUS that is settled and has no dead letter must be one that the Facilitator
acknowledged. And a lane's consumer that is deleted and made again must not deliver what was replayed or purged. The
source is deleted before the dead letter: after an interruption in between, the dead letter is still there, and removing
it again completes the work.

A sequence alone does not identify an update, because a status stream that was deleted and made again counts from 1
again. An update is the source of a dead letter if it has the sequence, the job and the time that the dead letter names;
if an older relay did not name the time, it must not be younger. Deleting an update also settles it, even if its worker
has not terminated it yet.
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
)
from relay.dead_letters.lookups import Lookups
from relay.dead_letters.moments import unix_us
from relay.dead_letters.stored import StoredDeadLetter
from relay.nats.err_codes import STREAM_NOT_FOUND
from relay.nats.jetstream import Requester, api_request
from relay.nats.messages import delete_message

_STRIDE: Final = 64
"""How many sequences share one lookup of their age."""
_LOOKUPS_REMEMBERED: Final = 1024


@dataclass(frozen=True, slots=True)
class _StreamRange:
    """When the status stream was made, and its first sequence: it cannot hold older sources."""

    made_at: dt.datetime
    first: int

    def may_hold_source_of(self, letter: StoredDeadLetter) -> bool:
        return letter.newest_s >= self.made_at.timestamp() and letter.source_sequence >= self.first


_NEVER: Final = dt.datetime.max.replace(tzinfo=dt.UTC)
_NO_STREAM: Final = _StreamRange(_NEVER, 0)


@dataclass(slots=True)
class _AgeLookup:
    """When the first update after a stride was stored. If there is none, no update counts as old enough."""

    ended: asyncio.Event = field(default_factory=asyncio.Event)
    stored_at: dt.datetime = _NEVER


class SourceUpdates:
    """Deletes the sources of dead letters. Use one object for many, because it remembers what it has looked up."""

    def __init__(self, client: Requester, lookups: Lookups | None = None) -> None:
        self._client = client
        self._messages = lookups or Lookups(client)
        self._range: _StreamRange | None = None
        self._range_lock = asyncio.Lock()
        # Bounded: a lookup that was forgotten is made again.
        self._lookups: OrderedDict[int, _AgeLookup] = OrderedDict()

    async def remove(self, letter: StoredDeadLetter, *, same_job: bool = False) -> None:
        """Delete the update that a dead letter was made of, if the status stream has it.

        `same_job`: the caller knows that the update with the source's sequence is of the same job. Then only its age is
        checked, with one lookup for many. Raises RelayError. If cancelled, the update may or may not be deleted.
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
        """Whether the update with the source's sequence is certainly not younger than the dead letter.

        In a stream, times ascend with sequences. So if the first update after a stride is old enough, all updates of
        the stride are.
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
        # A source that seems younger than what follows it is in an earlier stream, and a clock was set back since.
        return (letter.source_stored_us or 0) <= unix_us(lookup.stored_at) and lookup.stored_at <= letter.stored_at

    async def _look_up(self, start: int, lookup: "_AgeLookup") -> None:
        found = await self._messages.find(STATUS_STREAM, {"next_by_subj": job_filter("*"), "seq": start})
        if found is not None:
            lookup.stored_at = found.stored_at

    async def _is_there(self, letter: StoredDeadLetter) -> bool:
        message = await self._messages.get(STATUS_STREAM, letter.source_sequence)
        return message is not None and letter.is_of(message)
