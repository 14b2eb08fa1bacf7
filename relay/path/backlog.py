"""How far the lanes are behind: what is stored and not settled, as the server counts it."""

import asyncio
import datetime as dt
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from relay.contract.errors import BrokerUnavailable, RelayError
from relay.contract.report import LaneReport
from relay.contract.subjects import STATUS_STREAM, api_consumer_info, lane_consumer, lane_filter
from relay.nats.connection import api_request
from relay.nats.frames import FrameClient
from relay.nats.messages import find_message
from relay.observability.metrics import Metrics

_LOOK_EVERY_S: Final = 5.0
_TIMEOUT_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Sight:
    """What the last look at a lane showed."""

    unsettled: int
    oldest_s: float
    seen_s: float
    """When, on the monotonic clock."""


class Backlog:
    """Keeps the metrics of the lanes that are driven here up to date.

    Args:
        lanes: how those lanes stand now.
    """

    def __init__(self, client: FrameClient, lanes: Callable[[], Sequence[LaneReport]], metrics: Metrics) -> None:
        self._client = client
        self._lanes = lanes
        self._metrics = metrics
        self._sights: dict[int, _Sight] = {}

    async def run(self) -> None:
        """Look every few seconds, until cancelled."""
        while True:
            await self._look()
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _look(self) -> None:
        lanes = self._lanes()
        answered = True
        for lane in lanes:
            if answered:
                answered = await self._look_at(lane)
            self._tell(lane.lane)
        driven = {lane.lane for lane in lanes}
        self._sights = {lane: sight for lane, sight in self._sights.items() if lane in driven}

    async def _look_at(self, lane: LaneReport) -> bool:
        """False if nobody answers, so that there is no use in asking for the next lane."""
        try:
            self._sights[lane.lane] = await self._sight(lane)
        except RelayError as error:
            # Whoever drives the lane says what is wrong with it.
            return not isinstance(error, BrokerUnavailable)
        return True

    def _tell(self, lane: int) -> None:
        sight = self._sights.get(lane)
        if sight is None or all(lane != driven.lane for driven in self._lanes()):  # it went away meanwhile
            return
        # As long as the server cannot be asked, nothing is settled there either.
        grown_s = time.monotonic() - sight.seen_s if sight.unsettled else 0.0
        self._metrics.backlog(lane, sight.unsettled, sight.oldest_s + grown_s)

    async def _sight(self, lane: LaneReport) -> _Sight:
        request = api_consumer_info(STATUS_STREAM, lane_consumer(lane.lane))
        info = await api_request(self._client, request, timeout_s=_TIMEOUT_S)
        unsettled: int = info["num_pending"] + info["num_ack_pending"]
        oldest_s = await self._oldest_s(lane, info) if unsettled else 0.0
        return _Sight(unsettled, oldest_s, time.monotonic())

    async def _oldest_s(self, lane: LaneReport, info: dict[str, Any]) -> float:
        if lane.at_hand and not lane.held:
            # What was not delivered yet is younger than all that was; so the server need not send the oldest again.
            return lane.oldest_at_hand_s
        first = {"seq": info["ack_floor"]["stream_seq"] + 1, "next_by_subj": lane_filter(lane.lane)}
        oldest = await find_message(self._client, STATUS_STREAM, first, timeout_s=_TIMEOUT_S)
        if oldest is None:
            return 0.0  # deleted or too old since the consumer was asked
        return max(0.0, (dt.datetime.fromisoformat(info["ts"]) - oldest.stored_at).total_seconds())
