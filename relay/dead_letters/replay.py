"""Publishing dead letters again, each exactly once however often it is tried.

    dead letter ──► publish, if nothing was stored for its job since we looked ──► PubAck ──► delete both
                          │ something was
                          ▼
                    read what was stored for the job ──► this replay is there ──────────────► delete both
                          └── it is not ──► publish ...

Both are the dead letter and, before it, its source (see sources.py). A replay that is interrupted between the PubAck
and the deletion leaves its dead letter behind. The next replay must then find the update, even if the server has
forgotten the message id. So the server is told to store an update only if the job's last update has the sequence that
we know (`Nats-Expected-Last-Subject-Sequence`). If it refuses, the job's updates are searched for the replay's message
id. This also holds for two replays at a time. The one limit is the age of updates in the status stream: after 7 days an
earlier replay is not found there any more.

A replay that failed again is the source of another dead letter. Before that source is deleted, the first dead letter
has to be: the source is what shows that it was replayed.
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
from relay.dead_letters.replay_message import ReplayMessage, is_replay_id, origin_of_replay, replay_message_of
from relay.dead_letters.sources import SourceUpdates
from relay.dead_letters.stored import StoredDeadLetter
from relay.nats.connection import Requester, publish_confirmed
from relay.nats.err_codes import TOO_LARGE, WRONG_LAST_SEQUENCE
from relay.nats.messages import StoredMessage, delete_message, find_message, get_message

_JOBS_REMEMBERED: Final = 4096
_TRIES: Final = 4
"""How often to publish one: if something was stored for its job in between each time, the last try is unconditional."""
_EXPECTED_SEQUENCE: Final = "Nats-Expected-Last-Subject-Sequence"
_EXPECTED_SUBJECT: Final = "Nats-Expected-Last-Subject-Sequence-Subject"


class ReplayResult(msgspec.Struct, frozen=True):
    """How the replay of one dead letter ended: with an update in the status stream, or with a problem."""

    letter: StoredDeadLetter
    sequence: int = 0
    """Of the new update in the status stream."""
    already_stored: bool = False
    """An earlier replay had published it."""
    problem: str = ""
    """Why it cannot be replayed as it is; it stays where it is."""
    source_of_job: bool = False
    """The status stream had an update of the job under the sequence of its source."""


@dataclass(slots=True)
class _JobHistory:
    """What is known of the updates that are stored for one job."""

    last: int
    """The sequence of the last one; a guess before the first lookup."""
    read_up_to: int = 0
    """Up to this sequence `replays` is complete, except for updates that the stream no longer has."""
    replays: dict[str, int] = field(default_factory=dict[str, int])
    """Sequences of the updates that are replays, by their message id."""
    sequences: set[int] = field(default_factory=set[int])
    """Of the updates that were read."""


class Replayer:
    """Publishes dead letters on their original subjects.

    The dead letters of one job must be given one after another; those of other jobs may be under way meanwhile.
    """

    def __init__(self, client: Requester) -> None:
        self._client = client
        self._sources = SourceUpdates(client)
        # Bounded: a forgotten one is read again.
        self._histories: OrderedDict[str, _JobHistory] = OrderedDict()

    async def move(self, letter: StoredDeadLetter) -> ReplayResult:
        """Publish a dead letter as `publish` does, then delete its source and itself, unless there is a problem.

        Raises RelayError: try it again. The same holds if this is cancelled.
        """
        result = await self.publish(letter)
        if not result.problem:
            if letter.replayed_from:
                await self._remove_origin(letter)
            await self._sources.remove(letter, same_job=result.source_of_job)
            await delete_message(self._client, DLQ_STREAM, letter.sequence)
        return result

    async def publish(self, letter: StoredDeadLetter) -> ReplayResult:
        """Store one dead letter's update again, unless that was done before, and wait for its PubAck.

        Raises JetStreamError if the server refuses it (the stream is full, ...), PublishUnconfirmed if it may or may
        not be stored, BrokerUnavailable if that cannot be looked up: try it again. The same holds if this is cancelled.
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
            # A producer who never pauses would win every race. The last try has no condition: the server's memory of
            # message ids is long enough for what came since the last lookup.
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
                # By storing it, the server confirms which sequence the job's last update had.
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
                return  # it is gone meanwhile, as old updates go
            history.read_up_to = found.sequence
            history.sequences.add(found.sequence)
            if is_replay_id(message_id := _message_id(found)):
                history.replays[message_id] = found.sequence

    async def _remove_origin(self, letter: StoredDeadLetter) -> None:
        """Remove what an interrupted replay left: the dead letter that this one's source is a replay of."""
        source = await self._stored({"seq": letter.source_sequence})
        if source is None or token_of_stored(source.subject) != letter.job:
            return
        origin = origin_of_replay(_message_id(source))
        there = await get_message(self._client, DLQ_STREAM, origin[0]) if origin else None
        if origin and there and there.stored_at == origin[1]:
            await self._sources.remove(StoredDeadLetter.of(there))
            await delete_message(self._client, DLQ_STREAM, there.sequence)

    async def _stored(self, request: Mapping[str, Any]) -> StoredMessage | None:
        return await find_message(self._client, STATUS_STREAM, request)


def _message_id(message: StoredMessage) -> str:
    return message.headers.get(MSG_ID_HEADER, "")
