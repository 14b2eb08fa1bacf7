"""Looks at streams and consumers while a relay runs: somebody may change them at any time."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from relay.contract.errors import RelayError
from relay.nats.frames import FrameClient
from relay.observability.logs import get_logger
from relay.topology.drift import Drift
from relay.topology.provision import Topology, look

_log = get_logger(__name__)

_LOOK_EVERY_S: Final = 30.0


class TopologyWatch:
    """Compares the server with `topology` every `look_every_s` seconds, and logs what it finds once.

    `on_ack_wait` is called with the `ack_wait` of the lane consumers in seconds, which may differ from the setting.
    """

    def __init__(
        self,
        client: FrameClient,
        topology: Topology,
        look_every_s: float = _LOOK_EVERY_S,
        on_ack_wait: Callable[[float], None] | None = None,
    ) -> None:
        self.troubles: Sequence[str] = ()
        """What `relay provision` would mend or refuse, in words for an operator; empty if there is nothing."""
        self.warnings: Sequence[str] = ()
        """What `relay provision` leaves as it is, lost copies, and other values of settings, with what they mean."""
        self.unseen: str | None = None
        """Why `troubles` and `warnings` are not of now, in words for an operator; None if they are."""
        self.missing_copies: int | None = None
        """How many copies of streams and lane consumers are lost, away or behind; None while that cannot be seen."""
        self._client = client
        self._topology = topology
        self._look_every_s = look_every_s
        self._on_ack_wait = on_ack_wait

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self._look()
            await asyncio.sleep(self._look_every_s)

    async def _look(self) -> None:
        try:
            drift = await look(self._client, self._topology)
        except RelayError as error:
            unseen = f"nobody sees whether streams and consumers are as the relay needs them: {error}"
            if unseen != self.unseen and self._client.is_connected:
                _log.warning(unseen)
            self.unseen = unseen
            self.missing_copies = None
            return
        self.unseen = None
        self._tell(drift)
        self.troubles, self.warnings = drift.troubles, drift.warnings
        self.missing_copies = drift.missing_copies
        if self._on_ack_wait is not None and drift.ack_wait_s is not None:
            self._on_ack_wait(drift.ack_wait_s)

    def _tell(self, drift: Drift) -> None:
        for text in drift.troubles:
            if text not in self.troubles:
                _log.error(text)
        for text in drift.warnings:
            if text not in self.warnings:
                _log.warning(text)
        if self.troubles and not drift.troubles:
            _log.info("streams and consumers are as the relay needs them again")
