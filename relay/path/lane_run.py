"""One lane and its source: how it is taken over, held, and given back."""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from relay.contract.errors import RelayError
from relay.contract.report import LaneReport
from relay.core.continuity import ConsumerState, Continuity, patience_s
from relay.core.lane import Lane
from relay.core.ports import DeliveryLike, OpenSource
from relay.observability.logs import get_logger
from relay.path.limits import Limits
from relay.timing.clock import now_s

_log = get_logger(__name__)

_RECHECK_S: Final = 0.2
"""How often a held lane's consumer is looked at again; what comes back in between is noticed at once."""
_HANDFUL: Final = 64


class LaneRun:
    """A lane that is being driven, with its source.

    Args:
        on_delivery: what to do with each delivery of the source.
        opened: set while the connection to the Facilitator may be used.
    """

    def __init__(
        self,
        number: int,
        open_source: OpenSource,
        on_delivery: Callable[["LaneRun", DeliveryLike], None],
        opened: asyncio.Event,
        limits: Limits,
    ) -> None:
        self.lane: Lane[DeliveryLike] = Lane(number, Continuity(patience_s(limits.ack_wait_s)))
        self.made_at_s = math.inf
        """When the consumer was made that the source pulls from, in seconds of Unix time."""
        self._opened = opened
        self._capacity = limits.lane_capacity
        self._recheck = asyncio.Event()
        self._progress = asyncio.Event()
        self.source = open_source(
            number, room=self._room, on_delivery=partial(on_delivery, self), on_start=self._on_start
        )

    def connection_opened(self) -> None:
        """The session with the Facilitator may be used: pull, and be patient with what comes back only now."""
        self.lane.continuity.be_patient(now_s())
        self._recheck.set()
        self.source.top_up()

    def connection_lost(self) -> None:
        """The session with the Facilitator is over, and nothing of the lane is OUT there any more."""
        self._progress.set()

    def progressed(self) -> None:
        """An update of the lane is not OUT any more."""
        self._progress.set()
        self.source.top_up()

    def look_again(self) -> None:
        """It may have changed whether the lane must be held."""
        self._recheck.set()

    async def recover(self, pump: Callable[[], None]) -> None:
        """While the lane is held, see whether what the server delivered before has all come back; until cancelled.

        `pump` lets updates out, once the lane is not held any more.
        """
        lane = self.lane
        while True:
            await self._recheck.wait()
            self._recheck.clear()
            await self._opened.wait()  # nothing is pulled before, so nothing can come back
            if not lane.continuity.held:
                continue
            missing = await self._resolve()
            if lane.continuity.held:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_RECHECK_S):
                        await self._recheck.wait()
                self._recheck.set()
                continue
            if missing:
                _log.warning(
                    "updates delivered earlier did not come back in time; going on without them",
                    lane=lane.number,
                    missing=missing,
                )
            _log.debug("lane is flowing", lane=lane.number, at_hand=len(lane))
            pump()

    async def give_back(self) -> None:
        """Wait until nothing is OUT, or the connection is lost, and return the rest to the server."""
        while self.lane.out and self._opened.is_set():
            self._progress.clear()
            await self._progress.wait()
        for update in self.lane.unsent():
            update.delivery.nak()
        await self.source.confirm()

    def report(self) -> LaneReport:
        """How the lane stands."""
        lane, wall = self.lane, time.time()
        oldest = min((update.delivery.stored_at_s for update in lane.at_hand()), default=wall)
        return LaneReport(
            lane=lane.number,
            at_hand=len(lane),
            out=lane.out,
            held=lane.continuity.held,
            oldest_at_hand_s=max(0.0, wall - oldest),
            trouble=self.source.trouble,
        )

    def _room(self) -> int:
        # With the Facilitator away nothing is asked for: JetStream is the buffer. A lane that has something to
        # send is refilled by the handful, because a request for each update would cost more than the update.
        lane = self.lane
        free = self._capacity - len(lane)
        return free if self._opened.is_set() and (free >= _HANDFUL or lane.idle or lane.continuity.held) else 0

    def _on_start(self, state: ConsumerState) -> None:
        self.lane.continuity.began(state, now_s())
        self.lane.coverage.began(state)
        self.made_at_s = state.made_at_s
        self._recheck.set()

    async def _resolve(self) -> int:
        lane = self.lane
        try:
            state = await self.source.state()
        except RelayError as error:
            _log.debug("cannot look at a held lane's consumer", lane=lane.number, error=str(error))
            lane.continuity.be_patient(now_s())  # as long as nobody answers, nothing comes back either
            return 0
        missing = lane.continuity.resolve(state, lane.count_up_to, now_s())
        if not lane.continuity.held:
            lane.let_go(state, missing)
        return missing
