"""What the streams hold of a job, and how far its lane is settled: from the leaders, which know the last write."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from relay.contract.errors import JetStreamError
from relay.contract.subjects import (
    ADVISORY_STREAM,
    DLQ_STREAM,
    STATUS_STREAM,
    advisory_subject,
    api_consumer_info,
    dlq_subject,
    job_filter,
    lane_consumer,
    lane_of_stored,
)
from relay.dead_letters.stored import StoredDeadLetter
from relay.nats.connection import Requester, api_request
from relay.nats.err_codes import CONSUMER_NOT_FOUND
from relay.nats.messages import StoredMessage, find_message

_TIMEOUT_S: Final = 1.0
"""How long to wait for a leader: one that just died never answers, the next one does at once."""


@dataclass(frozen=True, slots=True)
class StoredUpdate:
    """An update as JOB_STATUS keeps it."""

    lane: int
    """Of its stored subject: with another number of lanes it may have been another one."""
    sequence: int
    published: str
    """When the stream stored it, as the server writes it: RFC 3339, UTC, nanoseconds."""
    stored_at_s: float
    """The same in Unix time."""
    body: bytes


@dataclass(frozen=True, slots=True)
class Floor:
    """Up to where everything of a lane has left its consumer."""

    sequence: int
    told_at_s: float
    """When the server said so, in Unix time."""


class Archive:
    """Reads what is asked about. Every method raises RelayError if nobody can tell now."""

    def __init__(self, client: Requester) -> None:
        self._client = client

    async def latest(self, job: str) -> StoredUpdate | None:
        """The job's last update."""
        return _update(await self._get(STATUS_STREAM, {"last_by_subj": job_filter(job)}))

    async def following(self, job: str, after: int) -> StoredUpdate | None:
        """The job's first update with a sequence above `after`."""
        return _update(await self._get(STATUS_STREAM, {"next_by_subj": job_filter(job), "seq": after + 1}))

    async def last_dead_letter(self, job: str) -> StoredDeadLetter | None:
        """The job's last dead letter."""
        return await self._dead_letter({"last_by_subj": dlq_subject(job)})

    async def dead_letters(self, job: str, last: StoredDeadLetter) -> list[StoredDeadLetter]:
        """All dead letters of the job up to `last`: one request for each but that."""
        found: list[StoredDeadLetter] = []
        after = 0
        while after < last.sequence:
            letter = await self._dead_letter({"next_by_subj": dlq_subject(job), "seq": after + 1})
            if letter is None:
                break  # replayed or purged meanwhile
            after = letter.sequence
            found.append(letter)
        return found

    async def floor(self, lane: int) -> Floor | None:
        """Where the lane's consumer stands, or None if there is no such consumer."""
        request = api_consumer_info(STATUS_STREAM, lane_consumer(lane))
        try:
            info = await api_request(self._client, request, timeout_s=_TIMEOUT_S)
        except JetStreamError as error:
            if error.err_code == CONSUMER_NOT_FOUND:
                return None
            raise
        return Floor(info["ack_floor"]["stream_seq"], dt.datetime.fromisoformat(info["ts"]).timestamp())

    async def has_given_up(self, lane: int) -> bool:
        """Whether there are updates of the lane that JetStream gave up on and whose dead letters may be missing."""
        request = {"last_by_subj": advisory_subject(lane_consumer(lane))}
        return await self._get(ADVISORY_STREAM, request) is not None

    async def _dead_letter(self, request: Mapping[str, Any]) -> StoredDeadLetter | None:
        message = await self._get(DLQ_STREAM, request)
        return None if message is None else StoredDeadLetter.of(message)

    async def _get(self, stream: str, request: Mapping[str, Any]) -> StoredMessage | None:
        return await find_message(self._client, stream, request, timeout_s=_TIMEOUT_S)


def _update(message: StoredMessage | None) -> StoredUpdate | None:
    if message is None:
        return None
    return StoredUpdate(
        lane=lane_of_stored(message.subject),
        sequence=message.sequence,
        published=message.time,
        stored_at_s=message.stored_at_s,
        body=message.body,
    )
