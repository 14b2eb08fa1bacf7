"""What the streams hold of a job, and how far its lane is settled: from the leaders, which know the last write."""

import base64
import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from nats.aio.client import Client

from relay.broker.connection import api_request
from relay.errors import JetStreamError
from relay.subjects import (
    ADVISORY_STREAM,
    DLQ_STREAM,
    REASON_HEADER,
    SOURCE_SEQUENCE_HEADER,
    STATUS_STREAM,
    advisory_subject,
    api_consumer_info,
    api_message_get,
    dlq_subject,
    job_filter,
    lane_consumer,
    lane_of_stored,
)

_TIMEOUT_S: Final = 1.0
"""How long to wait for a leader: one that just died never answers, the next one does at once."""
_CLOCK_SKEW_S: Final = 60.0
"""By how much the clocks of two servers may differ: so much younger than its dead letter may an update seem to be."""
_NO_MESSAGE: Final = 10037
_CONSUMER_NOT_FOUND: Final = 10014
_SOURCE: Final = re.compile(rb"\r\n" + SOURCE_SEQUENCE_HEADER.encode() + rb": (\d{1,19})\r\n")
_REASON: Final = re.compile(rb"\r\n" + REASON_HEADER.encode() + rb": ([a-z_]{1,64})\r\n")


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
class Burial:
    """A dead letter of a job."""

    sequence: int
    stored_at_s: float
    source: int
    """The sequence of its update; 0 if it does not say."""
    reason: str

    def is_of(self, update: StoredUpdate) -> bool:
        """Whether this is the dead letter of an update of its job.

        A stream that was made anew counts from 1 again: the dead letters of the old one are older than its updates.
        """
        return self.source == update.sequence and not self.is_older_than(update)

    def is_older_than(self, update: StoredUpdate) -> bool:
        """Whether it was there before the update was, by any clock: then so were all dead letters before it."""
        return self.stored_at_s < update.stored_at_s - _CLOCK_SKEW_S


@dataclass(frozen=True, slots=True)
class Floor:
    """Up to where everything of a lane has left its consumer."""

    sequence: int
    told_at_s: float
    """When the server said so, in Unix time."""


class Archive:
    """Reads what is asked about. Every method raises RelayError if nobody can tell now."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def latest(self, job: str) -> StoredUpdate | None:
        """The job's last update."""
        return _update(await self._get(STATUS_STREAM, {"last_by_subj": job_filter(job)}))

    async def following(self, job: str, after: int) -> StoredUpdate | None:
        """The job's first update with a sequence above `after`."""
        return _update(await self._get(STATUS_STREAM, {"next_by_subj": job_filter(job), "seq": after + 1}))

    async def last_burial(self, job: str) -> Burial | None:
        """The job's last dead letter."""
        return _burial(await self._get(DLQ_STREAM, {"last_by_subj": dlq_subject(job)}))

    async def burials(self, job: str, last: Burial) -> list[Burial]:
        """All dead letters of the job up to `last`: one request for each but that."""
        found: list[Burial] = []
        after = 0
        while after < last.sequence:
            request = {"next_by_subj": dlq_subject(job), "seq": after + 1}
            burial = _burial(await self._get(DLQ_STREAM, request))
            if burial is None:
                break  # replayed or purged meanwhile
            after = burial.sequence
            found.append(burial)
        return found

    async def floor(self, lane: int) -> Floor | None:
        """Where the lane's consumer stands, or None if there is no such consumer."""
        request = api_consumer_info(STATUS_STREAM, lane_consumer(lane))
        try:
            info = await api_request(self._client, request, timeout_s=_TIMEOUT_S)
        except JetStreamError as error:
            if error.err_code == _CONSUMER_NOT_FOUND:
                return None
            raise
        return Floor(info["ack_floor"]["stream_seq"], _unix_s(info["ts"]))

    async def has_given_up(self, lane: int) -> bool:
        """Whether there are updates of the lane that JetStream gave up on and whose dead letters may be missing."""
        request = {"last_by_subj": advisory_subject(lane_consumer(lane))}
        return await self._get(ADVISORY_STREAM, request) is not None

    async def _get(self, stream: str, request: Mapping[str, Any]) -> Mapping[str, Any] | None:
        try:
            answer = await api_request(self._client, api_message_get(stream), request, timeout_s=_TIMEOUT_S)
        except JetStreamError as error:
            if error.err_code == _NO_MESSAGE:
                return None
            raise
        return answer["message"]


def _update(message: Mapping[str, Any] | None) -> StoredUpdate | None:
    if message is None:
        return None
    return StoredUpdate(
        lane=lane_of_stored(message["subject"]),
        sequence=message["seq"],
        published=message["time"],
        stored_at_s=_unix_s(message["time"]),
        body=base64.b64decode(message.get("data", "")),
    )


def _burial(message: Mapping[str, Any] | None) -> Burial | None:
    if message is None:
        return None
    headers = base64.b64decode(message.get("hdrs", ""))
    source, reason = _SOURCE.search(headers), _REASON.search(headers)
    return Burial(
        sequence=message["seq"],
        stored_at_s=_unix_s(message["time"]),
        source=int(source[1]) if source else 0,
        reason=reason[1].decode() if reason else "unknown",
    )


def _unix_s(time: str) -> float:
    return dt.datetime.fromisoformat(time).timestamp()
