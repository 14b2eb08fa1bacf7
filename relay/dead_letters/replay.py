"""Publishing dead letters again, each once however often it is tried.

    dead letter ──► publish, if nothing was stored for its job since we looked ──► PubAck ──► remove both
                          │ something was
                          ▼
                    read what was stored for the job ──► this replay is there ──────────────► remove both
                          └── it is not ──► publish ...

Both are the dead letter and, before it, its source (see broker/sources.py). A replay that is interrupted between the
PubAck and the removal leaves its dead letter behind, and the next one must find the update, also when the server has
forgotten the message id. So the server is told to store it only if the job's last update has the sequence that we know
(`Nats-Expected-Last-Subject-Sequence`), and on its refusal the job's updates are searched for the replay's id. That
also holds when two replays run at a time. The one limit is the age of updates in the status stream: after 7 days an
update that was replayed before is not found there any more.

A replay that failed again is the source of a dead letter itself. Before it is removed, the dead letter that it was
made of has to be gone, because it shows that this one was replayed.
"""

import asyncio
import contextlib
import re
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from relay.contract.errors import JetStreamError, RelayError
from relay.contract.subjects import (
    DLQ_STREAM,
    MSG_ID_HEADER,
    SOURCE_SEQUENCE_HEADER,
    SOURCE_SUBJECT_HEADER,
    STATUS_STREAM,
    job_filter,
    token_of_stored,
)
from relay.dead_letters.burial import Burial
from relay.dead_letters.flow import for_each
from relay.dead_letters.sources import Sources
from relay.dead_letters.stored import Replay, StoredDeadLetter, is_replay_id, number_of, origin_of_replay, replay_of
from relay.nats.connection import Requester, publish_confirmed
from relay.nats.err_codes import TOO_LARGE, WRONG_LAST_SEQUENCE
from relay.nats.messages import StoredMessage, delete_message, find_message, get_message

_JOBS_REMEMBERED: Final = 4096
_TRIES: Final = 4
"""How often to publish one: if something was stored for its job in between each time, the last goes all the same."""
_EXPECTED_SEQUENCE: Final = "Nats-Expected-Last-Subject-Sequence"
_EXPECTED_SUBJECT: Final = "Nats-Expected-Last-Subject-Sequence-Subject"
_MSG_ID: Final = re.compile(rb"\r\n" + MSG_ID_HEADER.encode() + rb": ([^\r\n]*)\r\n")


class Replayed(msgspec.Struct, frozen=True):
    """What became of one dead letter: its update's sequence in the status stream, or why it has none."""

    letter: StoredDeadLetter
    sequence: int = 0
    was_there: bool = False
    """An earlier replay had published it."""
    unfit: str = ""
    """Why it cannot be replayed as it is; it stays where it is."""
    source_found: bool = False
    """The status stream had an update of the job under the sequence of its source."""


class _Trail(msgspec.Struct):
    """What is known of the updates that are stored for one job."""

    last: int
    """The sequence of the last one; a guess before the first look."""
    looked_up_to: int = 0
    """Up to here `replays` is complete, but for what is older than the stream."""
    replays: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """Sequences of those that are replays, by their message id."""
    sequences: set[int] = msgspec.field(default_factory=set[int])
    """Of those that were looked at."""


class Republisher:
    """Publishes dead letters on their original subjects.

    The dead letters of one job must be given one after another; those of others may be under way meanwhile.
    """

    def __init__(self, client: Requester) -> None:
        self._client = client
        self._sources = Sources(client)
        # Bounded: forgetting one costs another look.
        self._trails: OrderedDict[str, _Trail] = OrderedDict()

    async def move(self, letter: StoredDeadLetter) -> Replayed:
        """Publish a dead letter as `publish` does, and remove its source and itself, unless it is unfit.

        Raises RelayError: try it again.
        """
        replayed = await self.publish(letter)
        if not replayed.unfit:
            if letter.replayed_from:
                await self._remove_origin(letter)
            await self._sources.remove(letter, of_its_job=replayed.source_found)
            await delete_message(self._client, DLQ_STREAM, letter.sequence)
        return replayed

    async def publish(self, letter: StoredDeadLetter) -> Replayed:
        """Store one dead letter's update anew, unless that was done before, and wait for its PubAck.

        Raises JetStreamError if the server refuses it (the stream is full, ...), PublishUnconfirmed if it may or may
        not be stored, BrokerUnavailable if that cannot be looked up: try it again.
        """
        replay = replay_of(letter)
        if replay is None:
            return Replayed(letter, unfit="it does not say on which subject job.status.<uuid> it was published")
        try:
            return await self._publish(letter, replay)
        except JetStreamError as error:
            if error.err_code != TOO_LARGE:
                raise
        try:
            return await self._publish(letter, replay.without_history())
        except JetStreamError as error:
            if error.err_code != TOO_LARGE:
                raise
            return Replayed(letter, unfit=f"with the marks of a replay it is too large ({error.description})")

    async def _publish(self, letter: StoredDeadLetter, replay: Replay) -> Replayed:
        trail = self._trail(replay)
        for tries_left in reversed(range(_TRIES)):
            if (sequence := trail.replays.get(replay.message_id)) is not None:
                return Replayed(letter, sequence, was_there=True, source_found=replay.guess in trail.sequences)
            expected = trail.last
            condition = {_EXPECTED_SEQUENCE: str(expected), _EXPECTED_SUBJECT: job_filter(replay.job)}
            # A producer who never pauses would win every race: against whatever came since the last look, the
            # server's memory of message ids is long enough.
            headers = replay.headers | (condition if tries_left else {})
            try:
                ack = await publish_confirmed(self._client, replay.subject, replay.body, headers)
            except JetStreamError as error:
                if error.err_code != WRONG_LAST_SEQUENCE:
                    raise
                await self._look(replay.job, trail)
            else:
                trail.last = ack.sequence
                trail.replays[replay.message_id] = ack.sequence
                # By storing it, the server says which sequence the job's last update had.
                if tries_left and not ack.duplicate:
                    trail.sequences.add(expected)
                found = replay.guess in trail.sequences
                return Replayed(letter, ack.sequence, was_there=ack.duplicate, source_found=found)
        raise AssertionError("the last try has no condition")

    def _trail(self, replay: Replay) -> _Trail:
        if (trail := self._trails.get(replay.job)) is not None:
            self._trails.move_to_end(replay.job)
            return trail
        trail = self._trails[replay.job] = _Trail(last=replay.guess)
        if len(self._trails) > _JOBS_REMEMBERED:
            self._trails.popitem(last=False)
        return trail

    async def _look(self, job: str, trail: _Trail) -> None:
        """Read on in what is stored for a job, up to what is its last update now."""
        newest = await self._stored({"last_by_subj": job_filter(job)})
        trail.last = newest.sequence if newest else 0
        while trail.looked_up_to < trail.last:
            request = {"next_by_subj": job_filter(job), "seq": trail.looked_up_to + 1}
            if (found := await self._stored(request)) is None:
                return  # what was there is gone, as old updates go
            trail.looked_up_to = found.sequence
            trail.sequences.add(found.sequence)
            if is_replay_id(message_id := _message_id(found)):
                trail.replays[message_id] = found.sequence

    async def _remove_origin(self, letter: StoredDeadLetter) -> None:
        """Remove what an earlier replay left behind: the dead letter of which this one's source is the replay."""
        source = await self._stored({"seq": number_of(letter.source_sequence) or 0})
        if source is None or token_of_stored(source.subject) != letter.job:
            return
        origin = origin_of_replay(_message_id(source))
        there = await get_message(self._client, DLQ_STREAM, origin[0]) if origin else None
        if origin and there and there.stored_at == origin[1]:
            burial = Burial.parse(there)
            named = {
                SOURCE_SEQUENCE_HEADER: str(burial.source_sequence),
                SOURCE_SUBJECT_HEADER: burial.source_subject.decode(errors="replace"),
            }
            await self._sources.remove(StoredDeadLetter(*origin, headers=named, body=b""))
            await delete_message(self._client, DLQ_STREAM, origin[0])

    async def _stored(self, request: Mapping[str, Any]) -> StoredMessage | None:
        return await find_message(self._client, STATUS_STREAM, request)


def _message_id(message: StoredMessage) -> str:
    match = _MSG_ID.search(message.header_block)
    return match[1].decode(errors="replace") if match else ""


@dataclass(slots=True)
class Account:
    """How a replay of many went."""

    replayed: int = 0
    were_there: int = 0
    unfit: int = 0
    failure: RelayError | None = None
    """What stopped it, if anything did."""

    def count(self, replayed: Replayed) -> None:
        if replayed.unfit:
            self.unfit += 1
        elif replayed.was_there:
            self.were_there += 1
        else:
            self.replayed += 1


async def replay_all(
    letters: AsyncIterator[StoredDeadLetter],
    replay: Callable[[StoredDeadLetter], Coroutine[Any, Any, Replayed]],
    *,
    account: Account,
    on_replayed: Callable[[Replayed], None],
    rate_per_s: float | None = None,
) -> None:
    """Replay `letters` in their order, as many at a time as the window holds, but one job's one after another.

    The first failure stops it: nothing new is begun, what is under way is finished, and `account` says it. Cancelled,
    what is under way is dropped; `account` then has what is known.
    """

    async def replay_one(letter: StoredDeadLetter) -> None:
        if account.failure is not None:
            return  # a later one of this job must not overtake the one that failed
        try:
            replayed = await replay(letter)
        except RelayError as error:
            account.failure = account.failure or error
            return
        account.count(replayed)
        on_replayed(replayed)

    async with contextlib.aclosing(_until_it_fails(letters, account, _Pace(rate_per_s))) as begun:
        await for_each(begun, replay_one, turn=lambda letter: letter.job)


async def _until_it_fails(
    letters: AsyncIterator[StoredDeadLetter], account: Account, pace: "_Pace"
) -> AsyncGenerator[StoredDeadLetter]:
    try:
        async for letter in letters:
            await pace.wait()
            if account.failure is not None:
                return
            yield letter
    except RelayError as error:
        account.failure = account.failure or error


class _Pace:
    """So many a second at most; None for no limit."""

    def __init__(self, rate_per_s: float | None) -> None:
        self._interval_s = 1 / rate_per_s if rate_per_s else 0.0
        self._next_s = 0.0

    async def wait(self) -> None:
        if not self._interval_s:
            return
        now = asyncio.get_running_loop().time()
        if self._next_s > now:
            await asyncio.sleep(self._next_s - now)
        self._next_s = max(now, self._next_s) + self._interval_s
