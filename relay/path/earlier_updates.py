"""Looking in the streams for an earlier update of a job with the same status, which may be stored at the Facilitator.

This happens only if the Facilitator says that it has an update which was not sent before. core/repeats.py says why.
"""

from collections.abc import Mapping
from typing import Any, Final

from relay.contract.subjects import DLQ_STREAM, STATUS_STREAM, dlq_subject, job_filter
from relay.contract.wire import Frame, decode
from relay.core.repeats import may_be_stored
from relay.core.update import Update
from relay.core.verdict import Outcome
from relay.dead_letters.stored import StoredDeadLetter
from relay.nats.jetstream import Requester
from relay.nats.messages import StoredMessage, find_message

_LOOKUP_TIMEOUT_S: Final = 1.0
"""How long to wait for a stream's leader: one that has just died never answers, the next one does at once."""
_MOST_READ: Final = 256
"""How many updates of the job, and dead letters, are read at most. A job has some ten updates."""


class EarlierUpdates:
    """Reads a job's updates from JOB_STATUS. What it has already settled itself, the lane knows."""

    def __init__(self, client: Requester) -> None:
        self._client = client

    async def hold_equal(self, update: Update) -> bool:
        """Whether an earlier update of the job with the same status may be stored at the Facilitator.

        Raises RelayError if NATS does not answer. Cancelling it is safe.
        """
        after = 0
        for _ in range(_MOST_READ):
            found = await self._find(STATUS_STREAM, {"next_by_subj": job_filter(update.job), "seq": after + 1})
            if found is None or found.sequence >= update.sequence:
                return False
            after = found.sequence
            content = decode(found.body, update.job)
            if (
                isinstance(content, Frame)
                and content.status == update.status
                and await self._may_be_stored(found, update)
            ):
                return True
        return False

    async def _may_be_stored(self, earlier: StoredMessage, update: Update) -> bool:
        # A job's updates go one after another, so the earlier one was settled: acknowledged, or dead-lettered.
        if update.lane.outcome_of(earlier.sequence) in (Outcome.ACKNOWLEDGED, Outcome.DUPLICATE):
            return True
        after, subject = 0, dlq_subject(update.job)
        for _ in range(_MOST_READ):
            found = await self._find(DLQ_STREAM, {"next_by_subj": subject, "seq": after + 1})
            if found is None:
                # Its dead letter may have been replayed or purged since the update was read, and the update with it.
                return await self._find(STATUS_STREAM, {"seq": earlier.sequence}) is not None
            after = found.sequence
            letter = StoredDeadLetter.of(found)
            if letter.is_of(earlier):
                return may_be_stored(letter.reason)
        return False

    async def _find(self, stream: str, request: Mapping[str, Any]) -> StoredMessage | None:
        return await find_message(self._client, stream, request, timeout_s=_LOOKUP_TIMEOUT_S)
