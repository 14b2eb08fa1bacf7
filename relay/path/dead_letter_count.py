"""Counting the dead letters that are stored: somebody may replay or purge them at any time."""

import asyncio
from typing import Final

from relay.contract.errors import RelayError
from relay.contract.subjects import DLQ_STREAM, api_stream_info
from relay.nats.jetstream import Requester, api_request
from relay.observability.metrics import Metrics

_LOOK_EVERY_S: Final = 10.0
_TIMEOUT_S: Final = 3.0


class DeadLetterCount:
    """Keeps the metric up to date. Each worker has it, because none of them is in charge.

    While the server does not say how many there are, the metric is absent: 0 would look as if there were none.
    """

    def __init__(self, client: Requester, metrics: Metrics) -> None:
        self._client = client
        self._metrics = metrics

    async def run(self) -> None:
        """Ask every few seconds until cancelled, which is safe."""
        while True:
            await self._look()
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _look(self) -> None:
        try:
            info = await api_request(self._client, api_stream_info(DLQ_STREAM), timeout_s=_TIMEOUT_S)
        except RelayError:  # others report what is wrong
            self._metrics.dead_letters_stored(None)
        else:
            self._metrics.dead_letters_stored(info["state"]["messages"])
