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
from relay.dead_letters.stored import StoredDeadLetter, number_of
from relay.nats.connection import Requester, api_request
from relay.nats.err_codes import STREAM_NOT_FOUND
from relay.nats.messages import delete_message, find_message, get_message

_STRIDE: Final = 64
"""For how many sequences one look has to do, which tells whether they are all older than their dead letters."""
_STRIDES_REMEMBERED: Final = 1024


@dataclass(frozen=True, slots=True)
class _Extent:
    """What the status stream can have the sources of."""

    made_at: dt.datetime
    first: int

    def may_hold(self, letter: StoredDeadLetter, sequence: int) -> bool:
        return letter.stored_at >= self.made_at and sequence >= self.first


_FOREVER: Final = dt.datetime.max.replace(tzinfo=dt.UTC)
_NOWHERE: Final = _Extent(_FOREVER, 0)


@dataclass(slots=True)
class _Look:
    """A look at the first update behind a stride; if it finds none, nothing is old enough."""

    ended: asyncio.Event = field(default_factory=asyncio.Event)
    found_at: dt.datetime = _FOREVER


class Sources:
    """Removes the sources of dead letters."""

    def __init__(self, client: Requester) -> None:
        self._client = client
        self._extent: _Extent | None = None
        self._finding: asyncio.Event | None = None
        """Set when the extent has been looked for, and None while nobody looks."""
        # Bounded: forgetting one costs another look.
        self._looks: OrderedDict[int, _Look] = OrderedDict()

    async def remove(self, letter: StoredDeadLetter, *, of_its_job: bool = False) -> None:
        """Delete the update that a dead letter was made of, if the status stream has it.

        `of_its_job`: it is known that the sequence is one of its job's. Then its age alone is looked at, for many at
        a time. Raises RelayError.
        """
        sequence = number_of(letter.source_sequence)
        if sequence is None or not letter.job:
            return
        if not (await self._known_extent()).may_hold(letter, sequence):
            return
        if (of_its_job and await self._is_old(letter, sequence)) or await self._is_there(letter, sequence):
            await delete_message(self._client, STATUS_STREAM, sequence)

    async def _known_extent(self) -> _Extent:
        while self._extent is None:
            if self._finding is not None:
                await self._finding.wait()
                continue
            self._finding = finding = asyncio.Event()
            try:
                self._extent = await self._find_extent()
            finally:
                self._finding = None
                finding.set()
        return self._extent

    async def _find_extent(self) -> _Extent:
        try:
            info = await api_request(self._client, api_stream_info(STATUS_STREAM))
        except JetStreamError as error:
            if error.err_code == STREAM_NOT_FOUND:
                return _NOWHERE
            raise
        return _Extent(dt.datetime.fromisoformat(info["created"]), info["state"]["first_seq"])

    async def _is_old(self, letter: StoredDeadLetter, sequence: int) -> bool:
        """Whether a sequence is certainly not younger than a dead letter.

        In a stream times ascend with sequences, so one update that is old enough speaks for all before it: for each
        stride the first behind it.
        """
        behind = (sequence // _STRIDE + 1) * _STRIDE
        if (look := self._looks.get(behind)) is not None:
            await look.ended.wait()
        else:
            look = self._looks[behind] = _Look()
            if len(self._looks) > _STRIDES_REMEMBERED:
                self._looks.popitem(last=False)
            try:
                await self._look_at(behind, look)
            finally:
                look.ended.set()
        return look.found_at <= letter.stored_at

    async def _look_at(self, start: int, look: "_Look") -> None:
        ahead = await find_message(self._client, STATUS_STREAM, {"next_by_subj": job_filter("*"), "seq": start})
        if ahead is not None:
            look.found_at = ahead.stored_at

    async def _is_there(self, letter: StoredDeadLetter, sequence: int) -> bool:
        message = await get_message(self._client, STATUS_STREAM, sequence)
        return (
            message is not None
            and token_of_stored(message.subject) == letter.job
            and message.stored_at <= letter.stored_at
        )
