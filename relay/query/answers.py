"""Answers requests about jobs: reads a job's updates and how far each of them got, and makes the reply.

    what the lane's owner knows ──► the job's updates ──► it is certain about all of them: done
                                                      └─► otherwise the job's dead letters ──► the updates again

progress_sources.py says why the order matters. If the owner does not know, the server is asked, and then dead letters
and updates are read once more.
"""

import base64
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final, TypeVar

import msgspec
from msgspec import UNSET, Raw

from relay.contract.model import JobStatus
from relay.contract.subjects import STATUS_STREAM, is_job_uuid, lane_of, lane_of_stored
from relay.contract.wire import Unsendable, decode
from relay.dead_letters.stored import StoredDeadLetter
from relay.nats.messages import StoredMessage
from relay.query.archive import Archive
from relay.query.progress_sources import Known, OwnerProgress, ProgressSources, ServerProgress
from relay.query.replies import HistoryReply, HistoryRequest, QueryRequest, UpdateProgress, UpdateReply

R = TypeVar("R", QueryRequest, HistoryRequest)

BAD_REQUEST: Final = 400
NOT_FOUND: Final = 404
_OVERHEAD_BYTES: Final = 2048
"""Bytes that a reply needs in addition to its updates, and NATS in addition to the reply."""
_NO_REASON: Final = "unknown"
"""The reason given for a dead letter without one, which another program wrote."""
_NULL: Final = Raw(b"null")
_MOST_ECHO_CHARS: Final = 60
_CLOCK_SKEW_S: Final = 60.0
"""How much the clocks of two servers may differ. If in doubt, an update counts as dead-lettered."""


class QueryError(Exception):
    """A request that cannot be answered: a status code as in HTTP, and the reason, which the client gets."""

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        self.reason = reason
        super().__init__(f"{code}: {reason}")


@dataclass(slots=True)
class _Page:
    """Updates as they were last read, and what is known about them."""

    sources: dict[int, OwnerProgress | ServerProgress]
    """By lane: what its owner or the server knows."""
    updates: list[StoredMessage] = field(default_factory=list[StoredMessage])
    next: int | None = None
    dead_letters: Sequence[StoredDeadLetter] = ()
    """The job's dead letters, oldest first."""
    has_all_dead_letters: bool = True
    """False if `dead_letters` has only the job's last one."""

    def known(self, update: StoredMessage) -> Known:
        source = self.sources.get(lane_of_stored(update.subject))
        return Known.UNKNOWN if source is None else source.known(update)

    def dead_letter(self, update: StoredMessage) -> StoredDeadLetter | None:
        """The update's dead letter, if it was read."""
        return next((letter for letter in self.dead_letters if letter.is_of(update, skew_s=_CLOCK_SKEW_S)), None)

    def progress(self, update: StoredMessage) -> UpdateProgress:
        known = self.known(update)
        if known is Known.DEAD_LETTERED or self.dead_letter(update) is not None:
            return UpdateProgress.DEAD_LETTERED
        is_acknowledged = known in (Known.ACKNOWLEDGED, Known.SETTLED)
        return UpdateProgress.ACKNOWLEDGED if is_acknowledged else UpdateProgress.PENDING

    @property
    def is_certain(self) -> bool:
        """Whether dead letters need not be read."""
        return all(self.known(update) in (Known.PENDING, Known.ACKNOWLEDGED) for update in self.updates)

    @property
    def unknown_lanes(self) -> set[int]:
        """The lanes that the server has to be asked about."""
        return {lane_of_stored(update.subject) for update in self.updates if self.known(update) is Known.UNKNOWN}

    @property
    def needs_all_dead_letters(self) -> bool:
        """Whether the dead letter of a settled update may be among those not yet read."""
        # If the oldest dead letter that was read is older than the update, all dead letters before it are, too.
        return not self.has_all_dead_letters and any(
            self.progress(update) is not UpdateProgress.PENDING
            and self.dead_letter(update) is None
            and not all(letter.is_older_than(update.stored_at_s, skew_s=_CLOCK_SKEW_S) for letter in self.dead_letters)
            for update in self.updates
        )


_Read = Callable[[_Page], Awaitable[None]]
"""Reads the updates of a page again."""


class Answers:
    """Answers requests about jobs. Cancelling an answer is safe.

    Args:
        lanes: the number of lanes.
        max_payload: returns how many bytes a message may have now.
    """

    def __init__(self, archive: Archive, sources: ProgressSources, lanes: int, max_payload: Callable[[], int]) -> None:
        self._archive = archive
        self._sources = sources
        self._lanes = lanes
        self._max_payload = max_payload

    async def latest(self, job: str, request: bytes) -> bytes:
        """The job's last update, as an UpdateReply. Raises QueryError, and RelayError if NATS does not answer."""
        wanted = _decode_request(job, request, QueryRequest)

        async def read(page: _Page) -> None:
            last = await self._archive.last_update(job)
            page.updates = [] if last is None else [last]

        page = await self._read(job, read)
        if not page.updates:
            raise _unknown_job(job)
        return _encode_update(job, page, page.updates[0], self._room, metadata=wanted.metadata)

    async def history(self, job: str, request: bytes) -> bytes:
        """The job's updates, as a HistoryReply. Raises QueryError, and RelayError if NATS does not answer."""
        wanted = _decode_request(job, request, HistoryRequest)

        async def read(page: _Page) -> None:
            await self._read_updates(job, wanted, page)

        page = await self._read(job, read)
        return self._encode_history(job, page, metadata=wanted.metadata)

    @property
    def _room(self) -> int:
        """How many bytes the updates of a reply may have."""
        return self._max_payload() - _OVERHEAD_BYTES

    async def _read(self, job: str, read: _Read) -> _Page:
        lane = lane_of(job, self._lanes)
        page = _Page({lane: await self._sources.owner(lane, job)})
        await read(page)
        if page.is_certain:
            return page
        await self._read_dead_letters(job, page, read)
        if lanes := page.unknown_lanes:
            for each in lanes:
                page.sources[each] = await self._sources.server(each)
            await self._read_dead_letters(job, page, read)
        return page

    async def _read_dead_letters(self, job: str, page: _Page, read: _Read) -> None:
        """Read dead letters, then the updates again. Usually the last dead letter is enough."""
        last = await self._archive.last_dead_letter(job)
        page.dead_letters, page.has_all_dead_letters = ([], True) if last is None else ([last], False)
        await read(page)
        if last is not None and page.needs_all_dead_letters:
            page.dead_letters, page.has_all_dead_letters = await self._archive.dead_letters(job, last), True
            await read(page)

    async def _read_updates(self, job: str, wanted: HistoryRequest, page: _Page) -> None:
        last = await self._archive.last_update(job)
        if last is None:
            raise _unknown_job(job)
        page.updates, page.next = [], None
        after, size, most = wanted.after, 0, self._max_payload()
        while after < last.sequence:
            found = await self._archive.next_update(job, after)
            if found is None:
                return  # the rest were removed meanwhile
            size += len(found.body)
            if page.updates and (len(page.updates) == wanted.limit or size > most):
                page.next = after
                return
            page.updates.append(found)
            after = found.sequence

    def _encode_history(self, job: str, page: _Page, *, metadata: bool) -> bytes:
        room = self._room
        replies = [_encode_update(job, page, update, room, metadata=metadata) for update in page.updates]
        count = sum(size <= room for size in accumulate(len(reply) + 1 for reply in replies))
        after = page.next if count == len(replies) else page.updates[count - 1].sequence
        return msgspec.json.encode(HistoryReply(job, [Raw(reply) for reply in replies[:count]], after))


def _encode_update(job: str, page: _Page, update: StoredMessage, room: int, *, metadata: bool) -> bytes:
    """The UpdateReply, with the body if `metadata`. The body is null if it would not fit into `room` bytes."""
    reply = _update_reply(job, page, update, metadata=metadata)
    encoded = msgspec.json.encode(reply)
    if len(encoded) < room:
        return encoded
    return msgspec.json.encode(msgspec.structs.replace(reply, body=_NULL))


def _update_reply(job: str, page: _Page, update: StoredMessage, *, metadata: bool) -> UpdateReply:
    letter = page.dead_letter(update)
    content = decode(update.body, job)
    readable = not isinstance(content, Unsendable)
    return UpdateReply(
        uuid=job,
        status=content.status if readable else None,
        terminal=readable and JobStatus(content.status).terminal,
        sequence=update.sequence,
        published=update.time,
        progress=page.progress(update),
        reason=letter.reason or _NO_REASON if letter else None,
        dead_letter=letter.sequence if letter else None,
        unreadable=None if readable else f"{content.reason}: {content.error}",
        body=UNSET if not metadata else Raw(content.text) if readable else _as_base64(update.body),
    )


def _as_base64(body: bytes) -> Raw:
    return Raw(b'"' + base64.b64encode(body) + b'"')


def _decode_request(job: str, request: bytes, kind: type[R]) -> R:
    if not is_job_uuid(job):
        shown = job if len(job) <= _MOST_ECHO_CHARS else job[:_MOST_ECHO_CHARS] + "..."
        raise QueryError(BAD_REQUEST, f"'{shown}' is not a UUID in lower case with hyphens")
    if not request.strip():
        return kind()
    try:
        return msgspec.json.decode(request.decode(), type=kind)
    except UnicodeDecodeError:
        raise QueryError(BAD_REQUEST, "the request cannot be read: it is not UTF-8") from None
    except msgspec.DecodeError as error:
        raise QueryError(BAD_REQUEST, f"the request cannot be read: {error}") from None


def _unknown_job(job: str) -> QueryError:
    why = f"none was published, or {STATUS_STREAM} keeps it no longer"
    return QueryError(NOT_FOUND, f"no update of job {job} is stored: {why}")
