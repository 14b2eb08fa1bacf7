"""Reads what the streams hold about a job, and how far its lane is settled.

The leaders of streams and consumers are asked, so that the last write is always seen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from relay.contract.subjects import (
    ADVISORY_STREAM,
    DLQ_STREAM,
    STATUS_STREAM,
    advisory_subject,
    dlq_subject,
    is_marker,
    job_filter,
    lane_consumer,
)
from relay.dead_letters.stored import StoredDeadLetter
from relay.nats.jetstream import Requester
from relay.nats.messages import StoredMessage, find_message
from relay.topology.consumer_state import find_consumer_state

_TIMEOUT_S: Final = 1.0
"""How long to wait for a leader. One that has just died never answers; the next leader answers at once."""


@dataclass(frozen=True, slots=True)
class AckFloor:
    """The sequence up to which everything in a lane has left its consumer."""

    sequence: int
    told_at_s: float
    """When the server said so: Unix time in seconds, on the server's clock."""


class Archive:
    """Reads what answers are made of. Methods raise RelayError if NATS does not answer. Cancelling them is safe."""

    def __init__(self, client: Requester) -> None:
        self._client = client

    async def last_update(self, job: str) -> StoredMessage | None:
        """The job's last update."""
        last = await self._find(STATUS_STREAM, {"last_by_subj": job_filter(job)})
        # The server stores a marker when the last update of a job is gone.
        return None if last is not None and is_marker(last.headers, last.body) else last

    async def next_update(self, job: str, after: int) -> StoredMessage | None:
        """The job's first update with a sequence above `after`."""
        while (
            found := await self._find(STATUS_STREAM, {"next_by_subj": job_filter(job), "seq": after + 1})
        ) is not None:
            if not is_marker(found.headers, found.body):
                break
            after = found.sequence
        return found

    async def last_dead_letter(self, job: str) -> StoredDeadLetter | None:
        """The job's last dead letter, without its body."""
        message = await self._find(DLQ_STREAM, {"last_by_subj": dlq_subject(job)})
        return None if message is None else StoredDeadLetter.without_body(message)

    async def dead_letters(self, job: str, last: StoredDeadLetter) -> list[StoredDeadLetter]:
        """All dead letters of the job up to `last`, oldest first, without their bodies; with one request for each."""
        found: list[StoredDeadLetter] = []
        after = 0
        while after < last.sequence:
            message = await self._find(DLQ_STREAM, {"next_by_subj": dlq_subject(job), "seq": after + 1})
            if message is None:
                break  # the rest were replayed or purged meanwhile
            after = message.sequence
            found.append(StoredDeadLetter.without_body(message))
        return found

    async def ack_floor(self, lane: int) -> AckFloor | None:
        """The ack floor of the lane's consumer; None if there is no such consumer."""
        state = await find_consumer_state(self._client, lane, timeout_s=_TIMEOUT_S)
        return None if state is None else AckFloor(state.ack_floor, state.told_at_s)

    async def has_given_up(self, lane: int) -> bool:
        """Whether JetStream gave up on updates of the lane and their dead letters may not be written yet."""
        return await self._find(ADVISORY_STREAM, {"last_by_subj": advisory_subject(lane_consumer(lane))}) is not None

    async def _find(self, stream: str, request: Mapping[str, Any]) -> StoredMessage | None:
        return await find_message(self._client, stream, request, timeout_s=_TIMEOUT_S)
