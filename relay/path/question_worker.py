"""Asks the stream about updates that the Facilitator says it has, although they were not sent before."""

import asyncio
import math
import time
from typing import Final

from relay.contract.errors import RelayError
from relay.core.trace import traced
from relay.core.update import Update
from relay.observability.logs import get_logger
from relay.path.earlier_updates import EarlierUpdates
from relay.path.lanes import Lanes
from relay.path.settlement import Settlement

_log = get_logger(__name__)

ASKERS: Final = 4
"""About how many updates the stream is asked at a time."""


class QuestionWorker:
    """Asks about the heads for which the lanes need it, several at a time. Answers of the Facilitator do not wait.

    Args:
        retry_s: how long an update waits if the stream could not be asked. No attempt is counted for that.
    """

    def __init__(self, lanes: Lanes, settlement: Settlement, earlier: EarlierUpdates, *, retry_s: float) -> None:
        self._lanes = lanes
        self._settlement = settlement
        self._earlier = earlier
        self._retry_s = retry_s
        self._unanswered_until_s = -math.inf

    async def run(self) -> None:
        """Ask until cancelled, which is safe at any time: the updates are delivered again, to the lane's next owner."""
        async with asyncio.TaskGroup() as group:
            for _ in range(ASKERS):
                group.create_task(self._keep_asking())

    async def _keep_asking(self) -> None:
        while True:
            update = await self._next()
            if (pause_s := self._unanswered_until_s - time.monotonic()) > 0:
                self._lanes.retry(update, pause_s)
                continue
            try:
                explained = await self._earlier.hold_equal(update)
            except RelayError as error:
                self._keep(update, error)
            else:
                self._settlement.answer_explained(update, explained=explained)
            self._lanes.open()

    async def _next(self) -> Update:
        while (update := self._lanes.turns.take_question(time.monotonic())) is None:
            self._lanes.outlets.questions.clear()
            await self._lanes.outlets.questions.wait()
        return update

    def _keep(self, update: Update, error: RelayError) -> None:
        _log.error(
            "the stream cannot be asked whether the Facilitator may have an update; the update is kept",
            subject=update.delivery.subject,
            sequence=update.sequence,
            error=str(error),
            **traced(update.delivery.headers),
        )
        self._lanes.retry(update, self._retry_s)
        # Whatever is wrong concerns the stream, not this update: asking about each would take a timeout for each.
        self._unanswered_until_s = time.monotonic() + self._retry_s
