"""Which updates have a dead letter already, asked of the dead-letter stream itself.

Clocks that differ are not allowed for: in doubt an update is tried again, which the promise allows, and not dropped
for another one's dead letter, which it does not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from nats.aio.client import Client

from relay.contract.errors import JetStreamError
from relay.contract.subjects import (
    DLQ_STREAM,
    dlq_subject,
    published_subject,
    token_of_stored,
)
from relay.core.ports import UpdateLike
from relay.dead_letters.burial import Burial
from relay.nats.err_codes import STREAM_NOT_FOUND
from relay.nats.messages import find_message

_LOOK_TIMEOUT_S: Final = 1.0
"""How long to wait for an answer: a server that went away meanwhile gives none, and lanes wait for it."""
_LETTERS_REMEMBERED: Final = 65_536
"""When so many were read, the next job's make room by having all forgotten: that costs another look."""


@dataclass(slots=True)
class _Trail:
    """The dead letters of one job, as far as they were read."""

    read_up_to: int = 0
    """A sequence of the dead-letter stream."""
    stored_at_s: dict[int, float] = field(default_factory=dict[int, float])
    """When the latest dead letter of each source sequence was stored."""


class DeadLetterIndex:
    """Looks updates up in the dead-letter stream. Every look raises RelayError if nobody can tell now."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._trails: dict[bytes, _Trail] = {}
        self._remembered = 0

    def forget(self) -> None:
        """Read everything anew: somebody else may have written since."""
        self._trails.clear()
        self._remembered = 0

    async def last(self, subject: str) -> Burial | None:
        """The newest dead letter on a subject."""
        return await self._get({"last_by_subj": subject})

    async def at(self, sequence: int) -> Burial | None:
        """The dead letter with this sequence."""
        return await self._get({"seq": sequence})

    async def holds(self, update: UpdateLike) -> bool:
        """Whether there is a dead letter of an update.

        Mostly the last one of the job tells. If that is younger than the update and another's, all of the job's are
        read, once: a consumer that was made anew delivers again what was settled long ago.
        """
        subject = dlq_subject(token_of_stored(update.subject))
        last = await self.last(subject)
        if last is None or last.stored_at_s < update.stored_at_s:
            return False
        return is_of(last, update) or await self._is_in_trail(update, subject, last.sequence)

    async def _is_in_trail(self, update: UpdateLike, subject: str, up_to: int) -> bool:
        trail = self._trail(_source_subject(update), up_to)
        while trail.read_up_to < up_to:
            found = await self._get({"next_by_subj": subject, "seq": trail.read_up_to + 1})
            if found is None:
                break  # replayed or purged meanwhile
            trail.read_up_to = found.sequence
            self._remembered += 1
            if found.source_subject == _source_subject(update):
                trail.stored_at_s[found.source_sequence] = found.stored_at_s
        return trail.stored_at_s.get(update.sequence, 0.0) >= update.stored_at_s

    def _trail(self, source_subject: bytes, up_to: int) -> _Trail:
        trail = self._trails.get(source_subject)
        if trail is None or trail.read_up_to > up_to:  # the dead-letter stream was made anew
            if self._remembered > _LETTERS_REMEMBERED:
                self.forget()
            trail = self._trails[source_subject] = _Trail()
        return trail

    async def _get(self, request: Mapping[str, Any]) -> Burial | None:
        try:
            message = await find_message(self._client, DLQ_STREAM, request, timeout_s=_LOOK_TIMEOUT_S)
        except JetStreamError as error:
            if error.err_code == STREAM_NOT_FOUND:
                return None  # and whatever was in it is gone
            raise
        return None if message is None else Burial.parse(message)


def is_of(burial: Burial, update: UpdateLike) -> bool:
    """Whether a dead letter is an update's."""
    return (
        burial.source_sequence == update.sequence
        and burial.source_subject == _source_subject(update)
        and not burial.is_older_than(update.stored_at_s, skew_s=0.0)
    )


def _source_subject(update: UpdateLike) -> bytes:
    """As the client writes it into a header."""
    return published_subject(update.subject).strip().encode()
