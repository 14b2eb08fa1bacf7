"""Asks the stream about updates that the Facilitator says it has, although they were not sent before."""

from typing import Final

from relay.contract.errors import RelayError
from relay.core.update import Update
from relay.path.earlier_updates import EarlierUpdates
from relay.path.lanes import Lanes
from relay.path.outlet_worker import OutletWorker
from relay.path.settlement import Settlement

ASKERS: Final = 4
"""About how many updates the stream is asked at a time."""


class QuestionWorker:
    """Asks about the heads for which the lanes need it.

    Args:
        retry_s: how long an update waits if the stream could not be asked.
    """

    def __init__(self, lanes: Lanes, settlement: Settlement, earlier: EarlierUpdates, *, retry_s: float) -> None:
        self._settlement = settlement
        self._earlier = earlier
        self._heads = OutletWorker(
            lanes, lanes.turns.take_question, lanes.outlets.questions, at_a_time=ASKERS, retry_s=retry_s
        )

    async def run(self) -> None:
        """Ask until cancelled, which is safe at any time: the updates are delivered again, to the lane's next owner."""
        await self._heads.run(self._ask)

    async def _ask(self, update: Update) -> None:
        try:
            explained = await self._earlier.hold_equal(update)
        except RelayError as error:
            trouble = "the stream cannot be asked whether the Facilitator may have an update"
            self._heads.keep(update, trouble, error, concerns_all=True)  # whatever is wrong concerns the stream
        else:
            self._settlement.answer_explained(update, explained=explained)
