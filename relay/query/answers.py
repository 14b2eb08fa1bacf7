"""The answers of the status service: what is stored of a job, put together with how far each update got.

    evidence of what is settled ──► the job's updates ──► the evidence tells all of them: that is the answer
                                                      └─► else: the job's dead letters ──► its updates again

Why in this order, evidence.py says. If the lane's owner cannot tell, the server is asked, and dead letters and updates
are read once more after that.
"""

import base64
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final, TypeVar

import msgspec
from msgspec import UNSET, Raw

from relay.contract.model import JobStatus
from relay.contract.subjects import is_job_uuid, lane_of
from relay.contract.wire import Fault, decode
from relay.dead_letters.stored import StoredDeadLetter
from relay.query.archive import Archive, StoredUpdate
from relay.query.progress_sources import Evidence, ProgressSources
from relay.query.replies import HistoryReply, HistoryRequest, Progress, QueryRequest, UpdateReply

R = TypeVar("R", QueryRequest, HistoryRequest)

BAD_REQUEST: Final = 400
NOT_FOUND: Final = 404
_ROOM_BYTES: Final = 2048
"""What a reply needs beside its updates, and what NATS needs beside the reply."""
_NO_REASON: Final = "unknown"
"""Of a dead letter that somebody else wrote."""
_NULL: Final = Raw(b"null")
_MOST_ECHO_CHARS: Final = 60
_CLOCK_SKEW_S: Final = 60.0
"""By how much the clocks of two servers may differ. In doubt an update is dead-lettered, and never acknowledged."""


class Refused(Exception):  # noqa: N818 - an answer to whoever asked, not a failure of ours
    """The request has no answer: a status code as of HTTP, and why in words."""

    def __init__(self, code: int, why: str) -> None:
        self.code = code
        self.why = why
        super().__init__(f"{code}: {why}")


@dataclass(slots=True)
class _Page:
    """Updates as they were read, and what is known of each."""

    updates: list[StoredUpdate] = field(default_factory=list[StoredUpdate])
    next: int | None = None
    dead_letters: Sequence[StoredDeadLetter] = ()
    """Of the job: all, or its last one."""
    all_dead_letters: bool = True
    evidence: dict[int, Evidence] = field(default_factory=dict[int, Evidence])
    """By lane."""

    def settled(self, update: StoredUpdate) -> bool | None:
        evidence = self.evidence.get(update.lane)
        return None if evidence is None else evidence.settled(update)

    @property
    def told(self) -> bool:
        """Whether the evidence is all that is needed."""
        return all(
            update.lane in self.evidence and self.evidence[update.lane].is_all(update) for update in self.updates
        )

    @property
    def unsure(self) -> set[int]:
        """The lanes that more must be known of."""
        return {update.lane for update in self.updates if self.settled(update) is None}

    def dead_letter_of(self, update: StoredUpdate) -> StoredDeadLetter | None:
        return next((letter for letter in self.dead_letters if _is_of(letter, update)), None)

    @property
    def lacks_dead_letters(self) -> bool:
        """Whether an update would count as acknowledged, although its dead letter can be one that was not read."""
        return not self.all_dead_letters and any(
            self.settled(update)
            and self.dead_letter_of(update) is None
            and not all(_is_older(letter, update) for letter in self.dead_letters)
            for update in self.updates
        )


_Read = Callable[[_Page], Awaitable[None]]


class Answers:
    """Answers requests about jobs.

    Args:
        witnesses: know what is settled.
        lanes: how many lanes there are.
        room: the most bytes that a reply may have now.
    """

    def __init__(self, archive: Archive, witnesses: ProgressSources, lanes: int, room: Callable[[], int]) -> None:
        self._archive = archive
        self._witnesses = witnesses
        self._lanes = lanes
        self._room = room

    async def latest(self, job: str, request: bytes) -> bytes:
        """The job's last update, as an UpdateReply. Raises Refused, and RelayError if nobody can tell now."""
        wanted = _request(job, request, QueryRequest)

        async def read(page: _Page) -> None:
            found = await self._archive.latest(job)
            page.updates = [] if found is None else [found]

        page = await self._read(job, read)
        if not page.updates:
            raise _unknown(job)
        return self._fitting(job, page, page.updates[0], self._room() - _ROOM_BYTES, metadata=wanted.metadata)

    async def history(self, job: str, request: bytes) -> bytes:
        """The job's updates, as a HistoryReply. Raises Refused, and RelayError if nobody can tell now."""
        wanted = _request(job, request, HistoryRequest)

        async def read(page: _Page) -> None:
            await self._read_page(job, wanted, page)

        page = await self._read(job, read)
        return self._history_reply(job, page, metadata=wanted.metadata)

    async def _read(self, job: str, read: _Read) -> _Page:
        lane = lane_of(job, self._lanes)
        page = _Page(evidence={lane: await self._witnesses.owner(lane, job)})
        await read(page)
        if page.told:
            return page
        await self._look(job, page, read)
        if unsure := page.unsure:
            for each in unsure:
                page.evidence[each] = await self._witnesses.server(each)
            await self._look(job, page, read)
        return page

    async def _look(self, job: str, page: _Page, read: _Read) -> None:
        """Dead letters first, then updates; mostly the last dead letter is enough to know."""
        last = await self._archive.last_dead_letter(job)
        page.dead_letters, page.all_dead_letters = ([], True) if last is None else ([last], False)
        await read(page)
        if last is not None and page.lacks_dead_letters:
            page.dead_letters, page.all_dead_letters = await self._archive.dead_letters(job, last), True
            await read(page)

    async def _read_page(self, job: str, wanted: HistoryRequest, page: _Page) -> None:
        last = await self._archive.latest(job)
        if last is None:
            raise _unknown(job)
        page.updates, page.next = [], None
        after, size, room = wanted.after, 0, self._room()
        while after < last.sequence:
            found = await self._archive.following(job, after)
            if found is None:
                return  # removed meanwhile
            size += len(found.body)
            if page.updates and (len(page.updates) == wanted.limit or size > room):
                page.next = after
                return
            page.updates.append(found)
            after = found.sequence

    def _history_reply(self, job: str, page: _Page, *, metadata: bool) -> bytes:
        room = self._room() - _ROOM_BYTES
        replies = [self._fitting(job, page, update, room, metadata=metadata) for update in page.updates]
        count = sum(size <= room for size in accumulate(len(reply) + 1 for reply in replies))
        after = page.next if count == len(replies) else page.updates[count - 1].sequence
        return msgspec.json.encode(HistoryReply(job, [Raw(reply) for reply in replies[:count]], after))

    def _fitting(self, job: str, page: _Page, update: StoredUpdate, room: int, *, metadata: bool) -> bytes:
        reply = _reply(job, page, update, metadata=metadata)
        encoded = msgspec.json.encode(reply)
        if len(encoded) < room:
            return encoded
        return msgspec.json.encode(msgspec.structs.replace(reply, body=_NULL))


def _is_of(letter: StoredDeadLetter, update: StoredUpdate) -> bool:
    """Whether an update has become a dead letter of its job."""
    return letter.source_sequence == update.sequence and not _is_older(letter, update)


def _is_older(letter: StoredDeadLetter, update: StoredUpdate) -> bool:
    """Whether a dead letter was there before the update was, by any clock: then so were all dead letters before it."""
    return letter.is_older_than(update.stored_at_s, skew_s=_CLOCK_SKEW_S)


def _reply(job: str, page: _Page, update: StoredUpdate, *, metadata: bool) -> UpdateReply:
    letter = page.dead_letter_of(update)
    progress = Progress.PENDING
    if letter is not None:
        progress = Progress.DEAD_LETTERED
    elif page.settled(update):
        progress = Progress.ACKNOWLEDGED
    content = decode(update.body, job)
    readable = not isinstance(content, Fault)
    return UpdateReply(
        uuid=job,
        status=content.status if readable else None,
        terminal=readable and JobStatus(content.status).terminal,
        sequence=update.sequence,
        published=update.published,
        progress=progress,
        reason=letter.reason or _NO_REASON if letter else None,
        dead_letter=letter.sequence if letter else None,
        unreadable=None if readable else f"{content.reason}: {content.error}",
        body=UNSET if not metadata else Raw(content.text) if readable else _as_base64(update.body),
    )


def _as_base64(body: bytes) -> Raw:
    return Raw(b'"' + base64.b64encode(body) + b'"')


def _request(job: str, request: bytes, kind: type[R]) -> R:
    if not is_job_uuid(job):
        shown = job if len(job) <= _MOST_ECHO_CHARS else job[:_MOST_ECHO_CHARS] + "..."
        raise Refused(BAD_REQUEST, f"'{shown}' is not a UUID in lower case with hyphens")
    if not request.strip():
        return kind()
    try:
        return msgspec.json.decode(request, type=kind)
    except msgspec.DecodeError as error:  # a ValidationError is one as well
        raise Refused(BAD_REQUEST, f"the request cannot be read: {error}") from None


def _unknown(job: str) -> Refused:
    return Refused(NOT_FOUND, f"no update of job {job} is stored: none was published in the last 7 days")
