"""What a replay would do, without doing it."""

from dataclasses import dataclass
from typing import Final

from relay.contract.subjects import STATUS_STREAM, job_filter
from relay.contract.wire import Unsendable, decode
from relay.dead_letters.stored import StoredDeadLetter, status_in
from relay.nats.jetstream import Requester
from relay.nats.messages import find_message

_JOBS_REMEMBERED: Final = 4096


@dataclass(frozen=True, slots=True)
class LaterUpdate:
    """The last update of a job that has gone on since one of its updates became a dead letter."""

    sequence: int
    status: str


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What the replay of one dead letter would do."""

    letter: StoredDeadLetter
    fault: Unsendable | None
    """Why it would fail again as it is; None if nothing is known."""
    later: LaterUpdate | None
    """What the job had got to, if it has gone on: the Facilitator would then show the replayed status after it."""

    @property
    def warnings(self) -> list[str]:
        """In words: what should be known before it is replayed."""
        found: list[str] = []
        if self.fault is not None:
            found.append(f"it would fail again, with {self.fault.reason}: {self.fault.error}")
        if self.later is not None:
            status, last = self.letter.status or "unreadable", self.later.status or "unreadable"
            found.append(f"its job has gone on to {last} since: the Facilitator would show {status} after that")
        return found


class Rehearser:
    """Looks at dead letters one after another; each job's last update is looked up once."""

    def __init__(self, client: Requester) -> None:
        self._client = client
        self._last: dict[str, LaterUpdate | None] = {}

    async def rehearse(self, letter: StoredDeadLetter) -> Rehearsal:
        """What the replay of this one would do. Changes nothing. Raises RelayError. Cancelling it is safe."""
        fault, later = decode(letter.body, letter.job), await self._last_update(letter.job)
        return Rehearsal(
            letter,
            fault if isinstance(fault, Unsendable) else None,
            later if later is not None and later.sequence > letter.source_sequence > 0 else None,
        )

    async def _last_update(self, job: str) -> LaterUpdate | None:
        if not job:
            return None
        if job not in self._last:
            if len(self._last) >= _JOBS_REMEMBERED:
                self._last.clear()
            found = await find_message(self._client, STATUS_STREAM, {"last_by_subj": job_filter(job)})
            self._last[job] = None if found is None else LaterUpdate(found.sequence, status_in(found.body))
        return self._last[job]
