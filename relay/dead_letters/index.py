"""Which updates have a dead letter already, looked up in the dead-letter stream.

A dead letter names its update by sequence and time. Those of older relays do not name the time: then ages are compared,
without an allowance for clocks that differ. So an update in doubt is sent again, which is allowed; it is never dropped
because of another update's dead letter, which would lose it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from relay.contract.errors import JetStreamError
from relay.contract.subjects import (
    DLQ_STREAM,
    dlq_subject,
    token_of_stored,
)
from relay.core.update import UpdateLike
from relay.dead_letters.stored import StoredDeadLetter, source_subject_of, stored_us
from relay.nats.err_codes import STREAM_NOT_FOUND
from relay.nats.frames import FrameClient
from relay.nats.messages import find_message

_LOOKUP_TIMEOUT_S: Final = 1.0
"""How long to wait for an answer. Short, because lanes wait for it, and a server that has just died gives none."""
_MOST_REMEMBERED: Final = 65_536
"""After more dead letters than this were read, all are forgotten before the next job's are read."""


@dataclass(slots=True)
class _JobIndex:
    """The dead letters of one job that were read so far."""

    read_up_to: int = 0
    """The last sequence of the dead-letter stream that was read."""
    sources: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])
    """The sequence of each source, and when it was stored, in Unix time in microseconds."""
    stored_at_s: dict[int, float] = field(default_factory=dict[int, float])
    """Of dead letters that do not tell the latter: by source sequence, when the latest was stored itself."""


class DeadLetterIndex:
    """Looks updates up in the dead-letter stream.

    Lookups raise RelayError if the server does not answer. Cancelling them is safe.
    """

    def __init__(self, client: FrameClient) -> None:
        self._client = client
        self._jobs: dict[str, _JobIndex] = {}
        self._remembered = 0

    def forget(self) -> None:
        """Read everything again from now on, because another worker may have written dead letters."""
        self._jobs.clear()
        self._remembered = 0

    async def last(self, subject: str) -> StoredDeadLetter | None:
        """The newest dead letter on a subject."""
        return await self._find({"last_by_subj": subject})

    async def at(self, sequence: int) -> StoredDeadLetter | None:
        """The dead letter with this sequence."""
        return await self._find({"seq": sequence})

    async def holds(self, update: UpdateLike) -> bool:
        """Whether an update has a dead letter.

        Usually the job's last dead letter is enough to know. If that is younger than the update and not the update's,
        all dead letters of the job are read, once. This happens when a consumer was deleted and made again: it delivers
        updates again that were settled long ago.
        """
        subject = dlq_subject(token_of_stored(update.subject))
        last = await self.last(subject)
        if last is None:
            return False
        if last.is_of(update):
            return True
        is_older = last.is_older_than(update.stored_at_s, skew_s=0.0)
        return not is_older and await self._is_among_all(update, subject, last.sequence)

    async def _is_among_all(self, update: UpdateLike, subject: str, up_to: int) -> bool:
        source_subject = source_subject_of(update)
        job = self._job(source_subject, up_to)
        while job.read_up_to < up_to:
            found = await self._find({"next_by_subj": subject, "seq": job.read_up_to + 1})
            if found is None:
                break  # the rest were replayed or purged meanwhile
            job.read_up_to = found.sequence
            self._remembered += 1
            if found.source_subject != source_subject:
                continue
            if (source_us := found.source_stored_us) is not None:
                job.sources.add((found.source_sequence, source_us))
            else:
                job.stored_at_s[found.source_sequence] = found.stored_at.timestamp()
        if (update.sequence, stored_us(update)) in job.sources:
            return True
        return job.stored_at_s.get(update.sequence, 0.0) >= update.stored_at_s

    def _job(self, source_subject: str, up_to: int) -> _JobIndex:
        job = self._jobs.get(source_subject)
        if job is None or job.read_up_to > up_to:  # the dead-letter stream was deleted and made again
            if self._remembered > _MOST_REMEMBERED:
                self.forget()
            job = self._jobs[source_subject] = _JobIndex()
        return job

    async def _find(self, request: Mapping[str, Any]) -> StoredDeadLetter | None:
        try:
            message = await find_message(self._client, DLQ_STREAM, request, timeout_s=_LOOKUP_TIMEOUT_S)
        except JetStreamError as error:
            if error.err_code == STREAM_NOT_FOUND:
                return None  # the stream was deleted, with all dead letters
            raise
        return None if message is None else StoredDeadLetter.of(message)
