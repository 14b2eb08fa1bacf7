"""One lane that this worker drives, with its source: how it is taken over, held, and given back."""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from relay.contract.errors import RelayError
from relay.contract.report import LaneReport
from relay.core.continuity import ConsumerState, Continuity, patience_s
from relay.core.lane import Lane
from relay.core.ports import OpenSource
from relay.core.update import DeadLetterHorizon, DeliveryLike
from relay.core.verdict import Outcome
from relay.observability.logs import get_logger
from relay.observability.metrics import Metrics
from relay.path.limits import LaneLimits
from relay.path.outlets import Outlets
from relay.timing.clock import monotonic
from relay.timing.waiting import set_within

_log = get_logger(__name__)

DEAD_LETTERED_BEFORE: Final = "dead-lettered before"
"""The reason for terminating an update whose dead letter was written earlier."""
_RECHECK_S: Final = 0.2
"""How often a held lane's consumer is looked at again; a delivery in between causes a look at once."""
_BATCHES: Final = 8
"""A lane that has something to send is refilled in so many batches."""


class LaneRun:
    """A lane that is being driven, with its source.

    Args:
        outlets: where its updates go out.
        opened: set while the connection to the Facilitator may be used.
    """

    def __init__(
        self,
        number: int,
        open_source: OpenSource,
        horizon: DeadLetterHorizon,
        outlets: Outlets,
        opened: asyncio.Event,
        *,
        limits: LaneLimits,
        metrics: Metrics,
    ) -> None:
        share = limits.memory.join()
        self.lane = Lane(number, Continuity(patience_s(limits.ack_wait_s)), horizon, share)
        self.progress = asyncio.Event()
        """Set when an update of the lane is not OUT any more."""
        self._outlets = outlets
        self._opened = opened
        self._capacity = limits.capacity
        self._clock = limits.clock
        self._metrics = metrics
        self._recheck = asyncio.Event()
        self.source = open_source(number, share=share, room=self._room, on_deliveries=self._admit, on_start=self._began)
        share.on_room = self.source.top_up

    def connection_opened(self) -> None:
        """The session with the Facilitator may be used: pull, and start to wait for what can come back only now."""
        self.lane.continuity.be_patient(monotonic())
        self._recheck.set()
        self.source.top_up()

    async def release_when_complete(self) -> None:
        """Whenever the lane is held, release it once all that was delivered before has come back.

        Runs until cancelled, which is safe.
        """
        lane = self.lane
        while True:
            await self._recheck.wait()
            self._recheck.clear()
            await self._opened.wait()  # nothing is pulled before, so nothing can come back
            if not lane.held:
                continue
            missing = await self._resolve()
            if lane.held:
                await set_within(self._recheck, _RECHECK_S)
                self._recheck.set()
                continue
            if missing:
                _log.warning(
                    "updates delivered earlier did not come back in time; going on without them",
                    lane=lane.number,
                    missing=missing,
                )
            _log.debug("lane is flowing", lane=lane.number, at_hand=len(lane))
            self._outlets.open([lane])

    async def give_back(self) -> None:
        """Wait until nothing is OUT, or the connection is lost, and return the rest to the server.

        If cancelled, the server redelivers the rest after `ack_wait`.
        """
        while self.lane.out and self._opened.is_set():
            self.progress.clear()
            await self.progress.wait()
        for update in self.lane.unsent():
            update.delivery.nak()
        await self.source.confirm()

    def report(self) -> LaneReport:
        """The state of the lane."""
        lane, wall_s, now_s = self.lane, time.time(), monotonic()
        at_hand = lane.at_hand()
        ages_s = [self._clock.age_s(each.delivery.stored_at_s, each.delivered_s, wall_s, now_s) for each in at_hand]
        return LaneReport(
            lane=lane.number,
            at_hand=len(lane),
            out=lane.out,
            held=lane.held,
            oldest_at_hand_s=max(ages_s, default=0.0),
            trouble=self.source.trouble,
            full=lane.share.is_full,
            unexplained=sum(update.unexplained for update in lane.at_hand()),
        )

    # --- what the source calls

    def _room(self) -> int:
        # While the Facilitator is away nothing is requested: JetStream is the buffer. A lane that has something to
        # send is refilled in batches, because a request for each update would cost more than the update.
        lane = self.lane
        lane.share.held = lane.held
        free = self._capacity - len(lane)
        worth_it = free >= self._capacity // _BATCHES or not lane.ready or lane.held
        return free if self._opened.is_set() and worth_it else 0

    def _began(self, state: ConsumerState) -> None:
        self.lane.began(state, monotonic())
        self._recheck.set()

    def _admit(self, deliveries: Sequence[DeliveryLike]) -> None:
        """Take in together what was read together, then send together what may go."""
        lane = self.lane
        admission = lane.admit(deliveries, monotonic())
        if admission.held:
            self._recheck.set()
        self._outlets.send()
        if lane.dead_letters:
            self._outlets.dead_letters.set()
        for delivery, outcome in admission.settled_before:
            _settle_again(delivery, outcome)
        if admission.markers:
            admission.markers[0].ack(*admission.markers[1:])
            self._metrics.markers_ended(len(admission.markers))
        for rule in admission.repairs:
            self._metrics.repaired(rule)
        if admission.malformed_traceparents:
            self._metrics.traceparents_malformed(admission.malformed_traceparents)

    async def _resolve(self) -> int:
        lane = self.lane
        try:
            state = await self.source.state()
        except RelayError as error:
            _log.debug("cannot look at a held lane's consumer", lane=lane.number, error=str(error))
            lane.continuity.be_patient(monotonic())  # while no server answers, nothing comes back either
            return 0
        now_s = monotonic()
        overdue = lane.overdue(state, now_s)
        missing = lane.resolve(state, now_s)
        if lane.held and overdue:
            _log.info(
                "updates delivered earlier have not come back by themselves; asking for them again",
                lane=lane.number,
                missing=missing,
                among=f"{overdue[0]} to {overdue[-1]}",
            )
            self.source.ask_again(overdue, state)
        return missing


def _settle_again(delivery: DeliveryLike, outcome: Outcome) -> None:
    """Settle a redelivered update again, in the same way: the server missed it the first time."""
    if outcome is Outcome.DEAD_LETTERED:
        delivery.term(DEAD_LETTERED_BEFORE)
    else:
        delivery.ack()
