"""Checks that the stream still has as many lanes as this relay: provisioning can change that while it runs."""

import asyncio
from typing import Final

from relay.contract.errors import RelayError
from relay.contract.subjects import STATUS_STREAM, api_stream_info, lanes_of_transform
from relay.nats.jetstream import Requester, api_request
from relay.observability.logs import get_logger

_log = get_logger(__name__)

_TIMEOUT_S: Final = 1.0


class LaneCount:
    """Compares the number of lanes of the stream with `lanes`, the relay's, every `look_every_s` seconds."""

    def __init__(self, client: Requester, lanes: int, look_every_s: float = 5.0) -> None:
        self.trouble: str | None = None
        """How the numbers differ and what to do, in words for an operator; None if they are equal."""
        self._client = client
        self._lanes = lanes
        self._look_every_s = look_every_s

    async def run(self) -> None:
        """Compare until cancelled."""
        while True:
            await self._look()
            await asyncio.sleep(self._look_every_s)

    async def _look(self) -> None:
        try:
            info = await api_request(self._client, api_stream_info(STATUS_STREAM), timeout_s=_TIMEOUT_S)
        except RelayError:
            return  # the lanes' consumers report what is wrong with the stream
        trouble = self._judge(lanes_of_transform(info["config"].get("subject_transform")))
        if trouble == self.trouble:
            return
        if trouble is None:
            _log.info(f"stream {STATUS_STREAM} has the lanes of this relay again", lanes=self._lanes)
        else:
            _log.error(trouble)
        self.trouble = trouble

    def _judge(self, found: int | None) -> str | None:
        if found == self._lanes:
            return None
        if found is None:
            return (
                f"stream {STATUS_STREAM} files updates in no lanes any more, so they become dead letters (no_lane); "
                "run `relay provision`"
            )
        few, many = sorted((found, self._lanes))
        meaning = "updates wait for relays that know them" if found == many else "there are no updates any more"
        return (
            f"stream {STATUS_STREAM} has {found} lanes now, and this relay goes by {self._lanes}: "
            f"in {_range(few, many)} {meaning}; restart every relay with RELAY_LANES={found}"
        )


def _range(few: int, many: int) -> str:
    return f"lane {few}" if many - few == 1 else f"lanes {few} to {many - 1}"
