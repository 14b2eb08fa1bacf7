"""Updates that JetStream gave up on: delivered `max_deliver` times, and never settled.

The server takes such an update out of its consumer and publishes an advisory, which JOB_ADVISORIES keeps. Nothing else
tells of it then. So the lane's owner deletes an advisory only when it is certain what became of the update:

    advisory ──► the update is at hand here ─────────────────► kept, until the lane has settled it
             ├─► settled here, or gone from its stream ──────► deleted
             └─► otherwise ──► dead letter ──► PubAck ───────► deleted

If a worker dies in between, the next one still has the advisory, and finds the dead letter if it was written.
The Facilitator may have stored the update as well, if a worker sent it before it died: that cannot be found out.
"""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from nats.aio.msg import Msg

from relay.contract.errors import RelayError
from relay.contract.subjects import (
    ADVISORY_STREAM,
    STATUS_STREAM,
    Reason,
    advisory_subject,
    lane_consumer,
)
from relay.core.lane import Lane
from relay.core.ports import SettlementObserver
from relay.core.trace import traced
from relay.core.verdict import DeadLetter
from relay.dead_letters.writer import DeadLetterWriter
from relay.nats.frames import FrameClient
from relay.nats.messages import StoredMessage, delete_message, find_message, get_message
from relay.observability.logs import get_logger
from relay.observability.metrics import Metrics
from relay.path.undelivered import Undelivered
from relay.timing.room import Room
from relay.timing.waiting import set_within

_log = get_logger(__name__)

_STORED_S: Final = 0.25
"""When NATS has surely stored what it has sent to us."""


class _Advisory(msgspec.Struct, frozen=True):
    """The fields that matter of `io.nats.jetstream.advisory.v1.max_deliver`."""

    stream_seq: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
    deliveries: int


class Advisories:
    """The advisories of one lane, for as long as it is driven here.

    Args:
        lane: tells which updates are at hand, and how recent ones were settled.
        observers: are told of each update that is dead-lettered.
        look_every_s: how often to look without a hint, because a hint can be missed, and a try can fail.
    """

    def __init__(
        self,
        client: FrameClient,
        lane: Lane,
        dead_letters: DeadLetterWriter,
        metrics: Metrics,
        room: Room,
        *,
        observers: Sequence[SettlementObserver] = (),
        look_every_s: float = 5.0,
    ) -> None:
        self._client = client
        self._lane = lane
        self._undelivered = Undelivered(dead_letters, metrics, observers)
        self._room = room
        self._look_every_s = look_every_s
        self._subject = advisory_subject(lane_consumer(lane.number))
        self._hint = asyncio.Event()
        # The lane forgets old settled updates. What was at hand at an earlier look is remembered here, so that it does
        # not count as unknown later.
        self._was_at_hand: set[int] = set()
        self._trouble: str | None = None

    async def run(self) -> None:
        """Dead-letter what JetStream gave up on, until cancelled (which is safe at any time)."""
        subscription = await self._client.subscribe(self._subject, cb=self._heard)
        try:
            while True:
                hinted = self._hint.is_set()
                self._hint.clear()
                await self._look()
                # A hint can come before NATS has stored what it is about.
                await set_within(self._hint, min(_STORED_S, self._look_every_s) if hinted else self._look_every_s)
        finally:
            if not self._client.is_closed:
                await subscription.unsubscribe()

    async def _heard(self, _: Msg) -> None:
        # Only a hint to look: what counts is the copy in the stream.
        self._hint.set()

    async def _look(self) -> None:
        """Follow up every advisory of the lane once, oldest first."""
        after = 0
        try:
            request = {"next_by_subj": self._subject}
            while (
                message := await find_message(self._client, ADVISORY_STREAM, request | {"seq": after + 1})
            ) is not None:
                after = message.sequence
                await self._follow_up(message)
        except RelayError as error:
            self._complain(error)
        else:
            self._trouble = None

    async def _follow_up(self, message: StoredMessage) -> None:
        try:
            advisory = msgspec.json.decode(message.body, type=_Advisory)
        except (ValueError, RecursionError) as error:
            _log.error("an advisory cannot be read and is deleted", advisory=message.body[:200], error=str(error))
            await self._delete(message)
            return
        sequence = advisory.stream_seq
        if any(update.sequence == sequence for update in self._lane.at_hand()):
            self._was_at_hand.add(sequence)
            return
        if sequence in self._was_at_hand or self._lane.outcome_of(sequence) is not None:
            self._was_at_hand.discard(sequence)
        else:
            async with self._room.held(self._client.max_payload):  # how large the update is, is not known yet
                if not await self._is_buried(advisory):
                    return
        await self._delete(message)

    async def _is_buried(self, advisory: _Advisory) -> bool:
        """Write the dead letter unless it is there already; False if it must be tried again."""
        where = {"lane": self._lane.number, "sequence": advisory.stream_seq, "reason": Reason.MAX_DELIVER}
        update = await get_message(self._client, STATUS_STREAM, advisory.stream_seq)
        if update is None:
            _log.warning("an update that reached max_deliver is gone from its stream: too old, or deleted", **where)
            return True
        told = f"delivered {advisory.deliveries} times without being settled: look for workers that died with it"
        letter = DeadLetter(Reason.MAX_DELIVER, told)
        try:
            await self._undelivered.dead_letter(update, letter, lane=self._lane.number, deliveries=advisory.deliveries)
        except RelayError as error:
            where |= traced(update.headers)
            _log.error("the dead letters cannot be reached; the advisory is kept", **where, error=str(error))
            return False
        return True

    async def _delete(self, message: StoredMessage) -> None:
        await delete_message(self._client, ADVISORY_STREAM, message.sequence)  # or another worker did

    def _complain(self, error: RelayError) -> None:
        trouble = str(error)
        if trouble != self._trouble:
            _log.error("advisories cannot be followed up; trying again", lane=self._lane.number, error=trouble)
        self._trouble = trouble
