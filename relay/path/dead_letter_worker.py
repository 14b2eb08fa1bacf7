"""Writes updates to the dead-letter stream. Only when the server has confirmed that, an update is terminated."""

from typing import Final

from relay.contract.errors import JetStreamError, RelayError
from relay.core.trace import traced
from relay.core.update import Update
from relay.core.verdict import DeadLetter
from relay.dead_letters.writer import DeadLetterWriter
from relay.nats.err_codes import TOO_LARGE
from relay.observability.logs import get_logger
from relay.observability.metrics import Metrics
from relay.path.lane_run import DEAD_LETTERED_BEFORE
from relay.path.lanes import Lanes
from relay.path.outlet_worker import OutletWorker
from relay.path.settlement import Settlement
from relay.timing.room import Room

_log = get_logger(__name__)

WRITERS: Final = 4
"""How many updates are dead-lettered at a time."""
ROOM_BYTES: Final = 16 * 1024 * 1024
"""How many bytes the bodies of these updates may have, on all connections to the Facilitator. A larger one goes alone.

Four of a megabyte are written side by side; and one of 8 MB at a time, so that a slow NATS has 5 s for each of them.
"""


class DeadLetterWorker:
    """Dead-letters the heads that lanes have for the dead-letter stream.

    Args:
        room: for the bodies that are written at a time.
        retry_s: how long an update waits if the dead-letter stream could not be reached.
    """

    def __init__(
        self,
        lanes: Lanes,
        settlement: Settlement,
        dead_letters: DeadLetterWriter,
        metrics: Metrics,
        *,
        room: Room,
        retry_s: float,
    ) -> None:
        self._lanes = lanes
        self._settlement = settlement
        self._dead_letters = dead_letters
        self._metrics = metrics
        self._room = room
        metrics.hold("dead_letters", lambda: room.held_bytes)
        self._heads = OutletWorker(
            lanes, lanes.turns.take_dead_letter, lanes.outlets.dead_letters, at_a_time=WRITERS, retry_s=retry_s
        )

    async def run(self) -> None:
        """Dead-letter until cancelled, which is safe at any time.

        If the update of a dead letter was not terminated yet, the lane's next owner finds the dead letter.
        """
        await self._heads.run(self._handle)

    async def _handle(self, update: Update) -> None:
        try:
            async with self._room.held(len(update.delivery.body)):
                await self._dead_letter(update)
        except RelayError as error:
            self._keep(update, error)

    async def _dead_letter(self, update: Update) -> None:
        if update.maybe_dead_lettered:
            if await self._dead_letters.holds(update.delivery):
                self._settlement.dead_lettered(update, DEAD_LETTERED_BEFORE)
                return
            dead_letter = update.lane.has_no_dead_letter(update)
        else:
            dead_letter = update.dead_letter
        if dead_letter is None:
            self._lanes.progressed([update.lane])
            return
        await self._dead_letters.write(update.delivery, dead_letter, update.attempts)
        self._settlement.dead_lettered(update, dead_letter.reason)
        self._told(update, dead_letter)

    def _told(self, update: Update, dead_letter: DeadLetter) -> None:
        self._metrics.dead_lettered(dead_letter.reason)
        _log.warning(
            "dead-lettered",
            subject=update.delivery.subject,
            sequence=update.sequence,
            reason=dead_letter.reason,
            attempts=update.attempts,
            error=dead_letter.error,
            **traced(update.delivery.headers),
        )

    def _keep(self, update: Update, error: RelayError) -> None:
        update.unwritten = str(error)
        if isinstance(error, JetStreamError) and error.err_code == TOO_LARGE:
            update.unwritten = f"{error.description}; raise max_payload of nats-server until it fits"
        # If no server answers, the other updates cannot be dead-lettered either.
        is_silence = not isinstance(error, JetStreamError)
        self._heads.keep(update, "the dead letters cannot be reached", error, concerns_all=is_silence)
