"""Dead letters of updates that no consumer delivers: JetStream gave up on them, or stored them under no lane."""

from collections.abc import Sequence

from relay.contract.subjects import REPLAYED_FROM_HEADER, token_of_stored
from relay.contract.wire import Unsendable, decode
from relay.core.ports import SettlementObserver
from relay.core.trace import traced
from relay.core.update import Settled
from relay.core.verdict import DeadLetter, Outcome
from relay.dead_letters.writer import DeadLetterWriter
from relay.nats.messages import StoredMessage
from relay.observability.logs import get_logger
from relay.observability.metrics import Metrics
from relay.timing.clock import monotonic

_log = get_logger(__name__)


class Undelivered:
    """Dead-letters such updates, and tells of each. `observers` are told as of any other settled update."""

    def __init__(
        self, dead_letters: DeadLetterWriter, metrics: Metrics, observers: Sequence[SettlementObserver] = ()
    ) -> None:
        self._dead_letters = dead_letters
        self._metrics = metrics
        self._observers = observers

    async def dead_letter(self, update: StoredMessage, letter: DeadLetter, *, lane: int, deliveries: int) -> None:
        """Write the update's dead letter unless there is one. Raises RelayError; may be repeated after any end.

        `lane`: the lane that looks after it.
        """
        if await self._dead_letters.holds(update):
            return
        await self._dead_letters.write(update, letter, deliveries)
        self._metrics.dead_lettered(letter.reason)
        self._tell(update, letter, lane, deliveries)
        _log.warning(
            "dead-lettered",
            subject=update.subject,
            lane=lane,
            sequence=update.sequence,
            reason=letter.reason,
            **traced(update.headers),
            attempts=deliveries,
            error=letter.error,
        )

    def _tell(self, update: StoredMessage, letter: DeadLetter, lane: int, deliveries: int) -> None:
        if REPLAYED_FROM_HEADER in update.headers:
            self._metrics.replayed(Outcome.DEAD_LETTERED)
        job = token_of_stored(update.subject)
        content = decode(update.body, job)
        settled = Settled(
            job=job,
            status=None if isinstance(content, Unsendable) else content.status,
            sequence=update.sequence,
            lane=lane,
            outcome=Outcome.DEAD_LETTERED,
            reason=letter.reason,
            error=letter.error,
            attempts=deliveries,
            deliveries=deliveries,
            headers=update.headers,
            stored_at_s=update.stored_at_s,
            delivered_s=monotonic(),
        )
        for observer in self._observers:
            observer.settled(settled)
