"""Looks at streams and consumers while a relay runs: somebody may change them at any time."""

import asyncio
from collections.abc import Sequence
from typing import Final

from relay.contract.errors import RelayError
from relay.nats.frames import FrameClient
from relay.observability.logs import get_logger
from relay.topology.plan import Drift
from relay.topology.provision import Topology, look

_log = get_logger(__name__)

_LOOK_EVERY_S: Final = 30.0


class TopologyWatch:
    """Compares the server with `topology` every `look_every_s` seconds, and logs what it finds once."""

    def __init__(self, client: FrameClient, topology: Topology, look_every_s: float = _LOOK_EVERY_S) -> None:
        self.troubles: Sequence[str] = ()
        """What `relay provision` would mend or refuse, in words for an operator; empty if there is nothing."""
        self.warnings: Sequence[str] = ()
        """Options that `relay provision` leaves as they are, and what they mean."""
        self._client = client
        self._topology = topology
        self._look_every_s = look_every_s

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self._look()
            await asyncio.sleep(self._look_every_s)

    async def _look(self) -> None:
        try:
            drift = await look(self._client, self._topology)
        except RelayError as error:
            _log.debug("streams and consumers cannot be looked at", error=str(error))
            return  # others report that NATS does not answer
        self._tell(drift)
        self.troubles, self.warnings = drift.troubles, drift.warnings

    def _tell(self, drift: Drift) -> None:
        for text in drift.troubles:
            if text not in self.troubles:
                _log.error(text)
        for text in drift.warnings:
            if text not in self.warnings:
                _log.warning(text)
        if self.troubles and not drift.troubles:
            _log.info("streams and consumers are as the relay needs them again")
