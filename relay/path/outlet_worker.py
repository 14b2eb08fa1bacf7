"""What the workers on the side ways of the path have in common: dead letters, and questions to the stream."""

import asyncio
import math
from collections.abc import Awaitable, Callable

from relay.contract.errors import RelayError
from relay.core.trace import traced
from relay.core.update import Update
from relay.observability.logs import get_logger
from relay.path.lanes import Lanes
from relay.timing.clock import monotonic

_log = get_logger(__name__)


class OutletWorker:
    """Handles the heads for one outlet of the lanes, several at a time. The path to the Facilitator does not wait.

    A head that cannot be handled now stays in its lane, and is tried again later. No attempt is counted for that.

    Args:
        take: gives the next head for this outlet at a time of the monotonic clock, None if there is none.
        outlet: is set when there may be one.
        at_a_time: how many heads are handled at a time.
        retry_s: how long a head waits that could not be handled.
    """

    def __init__(
        self,
        lanes: Lanes,
        take: Callable[[float], Update | None],
        outlet: asyncio.Event,
        *,
        at_a_time: int,
        retry_s: float,
    ) -> None:
        self._lanes = lanes
        self._take = take
        self._outlet = outlet
        self._at_a_time = at_a_time
        self._retry_s = retry_s
        self._unanswered_until_s = -math.inf

    async def run(self, handle: Callable[[Update], Awaitable[None]]) -> None:
        """Pass each head to `handle`, until cancelled. `handle` calls `keep` if it cannot do it now."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._at_a_time):
                group.create_task(self._keep_handling(handle))

    async def _keep_handling(self, handle: Callable[[Update], Awaitable[None]]) -> None:
        while True:
            update = await self._next()
            if (pause_s := self._unanswered_until_s - monotonic()) > 0:
                self._lanes.retry(update, pause_s)
                continue
            await handle(update)
            self._lanes.open()

    async def _next(self) -> Update:
        while (update := self._take(monotonic())) is None:
            self._outlet.clear()
            await self._outlet.wait()
        return update

    def keep(self, update: Update, trouble: str, error: RelayError, *, concerns_all: bool) -> None:
        """The head stays in its lane because of `error`.

        With `concerns_all`, any other head would meet the same error. Trying each of them would take a timeout for
        each, and a lane that is handed over or stopped would have to wait for all of them; so they wait as well.
        """
        _log.error(
            f"{trouble}; the update is kept",
            subject=update.delivery.subject,
            sequence=update.sequence,
            error=str(error),
            **traced(update.delivery.headers),
        )
        self._lanes.retry(update, self._retry_s)
        if concerns_all:
            self._unanswered_until_s = monotonic() + self._retry_s
