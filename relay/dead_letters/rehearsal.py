"""What a replay would do, without doing it."""

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Final

from relay.contract.subjects import STATUS_STREAM, job_filter
from relay.contract.wire import Unsendable, decode
from relay.dead_letters.lookups import Lookups
from relay.dead_letters.stored import StoredDeadLetter, status_in
from relay.nats.connection import Requester

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
            found.append(f"its job has gone on to {last} since: the Facilitator would show {status} after it")
        return found


async def rehearse(client: Requester, letters: AsyncIterator[StoredDeadLetter]) -> AsyncGenerator[Rehearsal]:
    """What the replay of each would do. Changes nothing. Raises RelayError. Cancelling it is safe."""
    lookups = Lookups(client)
    last: dict[str, LaterUpdate | None] = {}
    async for letter in letters:
        if letter.job not in last:
            if len(last) >= _JOBS_REMEMBERED:
                last.clear()
            last[letter.job] = await _last_update(lookups, letter.job) if letter.job else None
        later = last[letter.job]
        fault = decode(letter.body, letter.job)
        yield Rehearsal(
            letter,
            fault if isinstance(fault, Unsendable) else None,
            later if later is not None and later.sequence > letter.source_sequence > 0 else None,
        )


async def _last_update(lookups: Lookups, job: str) -> LaterUpdate | None:
    found = await lookups.find(STATUS_STREAM, {"last_by_subj": job_filter(job)})
    return None if found is None else LaterUpdate(found.sequence, status_in(found.body))
