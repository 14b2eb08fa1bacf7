"""Measuring how far the lanes are behind: what is stored and not settled, as the server counts it."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from nats.aio.client import Client

from relay.contract.errors import BrokerUnavailable, RelayError
from relay.contract.report import LaneReport
from relay.observability.metrics import Metrics
from relay.timing.clock import monotonic
from relay.topology.consumer_state import OldestUpdates, find_consumer_state

_LOOK_EVERY_S: Final = 5.0
_TIMEOUT_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class _LagSample:
    """How far a lane was behind when the server was last asked."""

    unsettled: int
    oldest_s: float
    """Age of the oldest of them; 0 if there are none."""
    taken_s: float
    """When, on the monotonic clock."""


class Backlog:
    """Keeps the lag metrics of the lanes that this worker drives up to date.

    Args:
        client: the connection to NATS.
        lanes: returns the state of those lanes now.
        metrics: where the lag is reported.
        on_floor: called with each lane and its ack floor.
    """

    def __init__(
        self,
        client: Client,
        lanes: Callable[[], Sequence[LaneReport]],
        metrics: Metrics,
        look_every_s: float = _LOOK_EVERY_S,
        on_floor: Callable[[int, int], None] | None = None,
    ) -> None:
        self._client = client
        self._lanes = lanes
        self._metrics = metrics
        self._look_every_s = look_every_s
        self._on_floor = on_floor
        self._oldest = OldestUpdates(client, timeout_s=_TIMEOUT_S)
        self._samples: dict[int, _LagSample] = {}

    async def run(self) -> None:
        """Measure every few seconds until cancelled, which is safe."""
        while True:
            await self._look()
            await asyncio.sleep(self._look_every_s)

    async def _look(self) -> None:
        lanes = self._lanes()
        answered = True
        for lane in lanes:
            if answered:
                answered = await self._look_at(lane)
            self._report(lane.lane)
        driven = {lane.lane for lane in lanes}
        self._samples = {lane: sample for lane, sample in self._samples.items() if lane in driven}

    async def _look_at(self, lane: LaneReport) -> bool:
        """Take a sample. False if the server does not answer: then it is of no use to ask about the next lane."""
        try:
            state = await find_consumer_state(self._client, lane.lane, timeout_s=_TIMEOUT_S)
            if state is None:
                return True
            if self._on_floor is not None:
                self._on_floor(lane.lane, state.ack_floor)
            if lane.at_hand and not lane.held:
                # Updates that were not delivered yet are younger, so the server need not be asked for the oldest.
                oldest_s = lane.oldest_at_hand_s if state.unsettled else 0.0
            else:
                oldest_s = await self._oldest.age_s(lane.lane, state) or 0.0
        except RelayError as error:
            # The owner of the lane reports what is wrong with it.
            return not isinstance(error, BrokerUnavailable)
        self._samples[lane.lane] = _LagSample(state.unsettled, oldest_s, monotonic())
        return True

    def _report(self, lane: int) -> None:
        sample = self._samples.get(lane)
        if sample is None or all(lane != driven.lane for driven in self._lanes()):  # released meanwhile
            return
        # While the server cannot be reached, nothing is settled there either, so the oldest update gets older.
        grown_s = monotonic() - sample.taken_s if sample.unsettled else 0.0
        self._metrics.backlog(lane, sample.unsettled, sample.oldest_s + grown_s)
