"""The way into the dead-letter stream: doomed updates are written there, and only then ended."""

import asyncio
import math
from typing import Final, Protocol

from relay.contract.errors import JetStreamError, RelayError
from relay.core.lane import Lane
from relay.core.ports import DeadLetterStream, DeliveryLike, InFlight
from relay.core.trace import traced
from relay.core.verdict import Outcome
from relay.observability.logs import get_logger
from relay.observability.metrics import Metrics
from relay.timing.clock import now_s

_log = get_logger(__name__)

WRITERS: Final = 4
ENDED_BEFORE: Final = "dead-lettered before"
"""With what an update is ended that has its dead letter from an earlier time."""
_RETRY_S: Final = 5.0
_QUEUE_SIZE: Final = 100


class Lanes(Protocol):
    """Where doomed updates come from, and where those go that cannot be buried now; see dispatcher.py."""

    def settled(self, update: InFlight, outcome: Outcome) -> None: ...
    def retry(self, update: InFlight, delay_s: float) -> None: ...
    def put_back(self, update: InFlight) -> None: ...
    def pump(self) -> None: ...


class DeadLetterWorker:
    """Dead-letters the doomed updates of some lanes, several at a time."""

    def __init__(self, dead_letters: DeadLetterStream, lanes: Lanes, metrics: Metrics) -> None:
        self._dead_letters = dead_letters
        self._lanes = lanes
        self._metrics = metrics
        self._doomed: asyncio.Queue[InFlight] = asyncio.Queue(_QUEUE_SIZE)
        self._unanswered_until_s = -math.inf

    def take(self, lane: Lane[DeliveryLike]) -> None:
        """Take the doomed heads of a lane, as far as there is room; it is asked again with each `pump`."""
        while lane.doomed and not self._doomed.full() and (update := lane.take_doomed(now_s())) is not None:
            self._doomed.put_nowait(update)

    async def run(self) -> None:
        """Bury what was taken, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(WRITERS):
                group.create_task(self._keep_burying())

    async def _keep_burying(self) -> None:
        while True:
            update = await self._doomed.get()
            if now_s() >= update.lane.ours_until_s:
                # The lane is another's by now, and so is the update; but it goes on if only the renewal is late.
                self._lanes.put_back(update)
                continue
            if (pause_s := self._unanswered_until_s - now_s()) > 0:
                self._lanes.retry(update, pause_s)
                continue
            try:
                await self._bury(update)
            except RelayError as error:
                self._keep(update, error)
            self._lanes.pump()

    async def _bury(self, update: InFlight) -> None:
        if update.unsure and await self._dead_letters.holds(update.delivery):
            update.delivery.term(ENDED_BEFORE)
            self._lanes.settled(update, Outcome.DEAD_LETTERED)
            return
        update.unsure = False
        if update.doom is None:
            self._lanes.put_back(update)
            return
        await self._dead_letters.write(update.delivery, update.doom, update.attempts)
        update.delivery.term(update.doom.reason)
        self._lanes.settled(update, Outcome.DEAD_LETTERED)
        self._metrics.dead_lettered(update.doom.reason)
        _log.warning(
            "dead-lettered",
            subject=update.delivery.subject,
            sequence=update.sequence,
            reason=update.doom.reason,
            attempts=update.attempts,
            error=update.doom.error,
            **traced(update.delivery.headers),
        )

    def _keep(self, update: InFlight, error: RelayError) -> None:
        _log.error(
            "the dead letters cannot be reached; the update is kept",
            subject=update.delivery.subject,
            sequence=update.sequence,
            error=str(error),
            **traced(update.delivery.headers),
        )
        self._lanes.retry(update, _RETRY_S)
        if not isinstance(error, JetStreamError):
            # Nobody answers. To learn that of each update would take a timeout each, which those who hand
            # a lane over or stop would have to wait for.
            self._unanswered_until_s = now_s() + _RETRY_S
