"""Publishing dead letters again: each is stored exactly once, however often the replay is tried.

    dead letter ──► publish, if nothing was stored for its job since we looked ──► PubAck ──► delete both
                          │ something was
                          ▼
                    read what was stored for the job ──► this replay is there ──────────────► delete both
                          └── it is not ──► publish ...

"Delete both" deletes the source (see sources.py), then the dead letter. A replay that is interrupted between the PubAck
and the deletion leaves its dead letter behind. The next replay must then find the stored update, even if the server has
forgotten the message id. So the server is told to store an update only if the job's last update has the sequence that
we know (`Nats-Expected-Last-Subject-Sequence`). If it refuses, the job's updates are searched for the replay's message
id. This also works for two replays at the same time. The only limit is the age of updates in the status stream: after
7 days an earlier replay is no longer found there.

A replay that failed again is the source of a second dead letter. Before that source is deleted, the first dead letter
must be deleted, because only the source shows that the first one was replayed.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from relay.contract.errors import JetStreamError
from relay.contract.subjects import (
    DLQ_STREAM,
    MSG_ID_HEADER,
    STATUS_STREAM,
    job_filter,
    token_of_stored,
)
from relay.dead_letters.lookups import Lookups
from relay.dead_letters.replay_message import ReplayMessage, is_replay_id, origin_of_replay, replay_message_of
from relay.dead_letters.sources import SourceUpdates
from relay.dead_letters.stored import StoredDeadLetter
from relay.nats.err_codes import TOO_LARGE, WRONG_LAST_SEQUENCE
from relay.nats.jetstream import Requester, publish_confirmed
from relay.nats.messages import StoredMessage, delete_message

_JOBS_REMEMBERED: Final = 4096
_TRIES: Final = 4
"""How often to publish one dead letter. The last try is unconditional, in case something is stored before each."""
_EXPECTED_SEQUENCE: Final = "Nats-Expected-Last-Subject-Sequence"
_EXPECTED_SUBJECT: Final = "Nats-Expected-Last-Subject-Sequence-Subject"


class ReplayResult(msgspec.Struct, frozen=True):
    """How the replay of one dead letter ended: with an update in the status stream, or with a problem."""

    letter: StoredDeadLetter
    sequence: int = 0
    """The new update's sequence in the status stream."""
    already_stored: bool = False
    """An earlier replay had published it."""
    problem: str = ""
    """Why the dead letter cannot be replayed; it is kept. Empty if it was replayed."""
    source_of_job: bool = False
    """Whether the update with the source's sequence is known to be of the same job."""


@dataclass(slots=True)
class _JobHistory:
    """What is known about the stored updates of one job."""

    last: int
    """The sequence of the last update; a guess before the first lookup."""
    read_up_to: int = 0
    """`replays` is complete up to this sequence, except for updates that the stream no longer has."""
    replays: dict[str, int] = field(default_factory=dict[str, int])
    """By message id: the sequence of each update that is a replay."""
    sequences: set[int] = field(default_factory=set[int])
    """The sequences of the updates that were read."""


class Replayer:
    """Publishes dead letters on their original subjects.

    Dead letters of one job must be replayed one after another; those of different jobs may be replayed side by side.
    """

    def __init__(self, client: Requester) -> None:
        self._client = client
        self._lookups = Lookups(client)
        self._sources = SourceUpdates(client, self._lookups)
        # Bounded: a history that was forgotten is read again.
        self._histories: OrderedDict[str, _JobHistory] = OrderedDict()

    async def move(self, letter: StoredDeadLetter) -> ReplayResult:
        """Publish a dead letter as `publish` does. Without a problem, delete its source and then the dead letter.

        Raises RelayError. After an error or a cancellation, call it again.
        """
        result = await self.publish(letter)
        if not result.problem:
            if letter.replayed_from:
                await self._remove_origin(letter)
            await self._sources.remove(letter, same_job=result.source_of_job)
            await delete_message(self._client, DLQ_STREAM, letter.sequence)
        return result

    async def publish(self, letter: StoredDeadLetter) -> ReplayResult:
        """Publish a dead letter's update again, unless that was done before, and wait for its PubAck.

        Raises JetStreamError if the server refuses the update (the stream is full, ...), PublishUnconfirmed if the
        update may or may not be stored, BrokerUnavailable if that cannot be looked up. After an error or a
        cancellation, call it again.
        """
        message = replay_message_of(letter)
        if message is None:
            return ReplayResult(letter, problem="it does not say on which subject job.status.<uuid> it was published")
        try:
            return await self._publish(letter, message)
        except JetStreamError as error:
            if error.err_code != TOO_LARGE:
                raise
        try:
            return await self._publish(letter, message.without_history())
        except JetStreamError as error:
            if error.err_code != TOO_LARGE:
                raise
            return ReplayResult(letter, problem=f"with the marks of a replay it is too large ({error.description})")

    async def _publish(self, letter: StoredDeadLetter, message: ReplayMessage) -> ReplayResult:
        history, source = self._history(message), letter.source_sequence
        for tries_left in reversed(range(_TRIES)):
            if (sequence := history.replays.get(message.message_id)) is not None:
                return ReplayResult(letter, sequence, already_stored=True, source_of_job=source in history.sequences)
            expected = history.last
            condition = {_EXPECTED_SEQUENCE: str(expected), _EXPECTED_SUBJECT: job_filter(message.job)}
            # A producer that never pauses could make every conditional try fail, so the last one has no condition. It
            # is not stored twice: the server remembers message ids for longer than the time since the last lookup.
            headers = message.headers | (condition if tries_left else {})
            try:
                ack = await publish_confirmed(self._client, message.subject, message.body, headers)
            except JetStreamError as error:
                if error.err_code != WRONG_LAST_SEQUENCE:
                    raise
                await self._read_on(message.job, history)
            else:
                history.last = ack.sequence
                history.replays[message.message_id] = ack.sequence
                # By storing it, the server confirms that the job's last update had the expected sequence.
                if tries_left and not ack.duplicate:
                    history.sequences.add(expected)
                found = source in history.sequences
                return ReplayResult(letter, ack.sequence, already_stored=ack.duplicate, source_of_job=found)
        raise AssertionError("the last try has no condition")

    def _history(self, message: ReplayMessage) -> _JobHistory:
        if (history := self._histories.get(message.job)) is not None:
            self._histories.move_to_end(message.job)
            return history
        history = self._histories[message.job] = _JobHistory(last=message.likely_last)
        if len(self._histories) > _JOBS_REMEMBERED:
            self._histories.popitem(last=False)
        return history

    async def _read_on(self, job: str, history: _JobHistory) -> None:
        """Read what is stored for a job, from where the history ends to the job's last update."""
        newest = await self._stored({"last_by_subj": job_filter(job)})
        history.last = newest.sequence if newest else 0
        while history.read_up_to < history.last:
            request = {"next_by_subj": job_filter(job), "seq": history.read_up_to + 1}
            if (found := await self._stored(request)) is None:
                return  # the rest are too old and were removed meanwhile
            history.read_up_to = found.sequence
            history.sequences.add(found.sequence)
            if is_replay_id(message_id := _message_id(found)):
                history.replays[message_id] = found.sequence

    async def _remove_origin(self, letter: StoredDeadLetter) -> None:
        """Remove the dead letter whose replay became this one's source, if an interrupted replay left it behind."""
        source = await self._stored({"seq": letter.source_sequence})
        if source is None or token_of_stored(source.subject) != letter.job:
            return
        origin = origin_of_replay(_message_id(source))
        there = await self._lookups.get(DLQ_STREAM, origin[0]) if origin else None
        if origin and there and there.stored_at == origin[1]:
            await self._sources.remove(StoredDeadLetter.of(there))
            await delete_message(self._client, DLQ_STREAM, there.sequence)

    async def _stored(self, request: Mapping[str, Any]) -> StoredMessage | None:
        return await self._lookups.find(STATUS_STREAM, request)


def _message_id(message: StoredMessage) -> str:
    return message.headers.get(MSG_ID_HEADER, "")
