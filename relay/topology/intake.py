"""Does the status stream store what is published? While producers are quiet, workers try it themselves.

After a failed write, as on a full disk, nats-server stores nothing more in that stream until it is restarted: it gives
no PubAck, and all else works: other streams, and publishes that the server refuses before it writes. Only a message
that the stream must store shows it: the canary. It is in no lane, so it is never delivered.
"""

import asyncio
import datetime as dt
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from relay.contract.errors import JetStreamError, PublishUnconfirmed, RelayError
from relay.contract.subjects import CANARY_SUBJECT, STATUS_STREAM, api_stream_info
from relay.core.server_clock import ServerClock
from relay.nats.err_codes import STREAM_NOT_FOUND
from relay.nats.jetstream import Requester, api_request, not_permitted, publish_confirmed
from relay.observability.logs import get_logger
from relay.timing.clock import monotonic

_log = get_logger(__name__)

_LOOKS: Final = 4
"""How often it looks, and how many requests there is time for, while the stream may be idle."""
_SAME_CLOCK_S: Final = 1.0
"""So much later than now may the latest update be, as servers' clocks go."""
_UNSEEN: Final = f"nobody sees whether stream {STATUS_STREAM} stores what is published"


def idle_s(info: Mapping[str, Any]) -> float | None:
    """How long the stream has stored nothing, on the server's clock, from what JetStream's API answers about it.

    None if it stored the latest message in the future: its clock was set back, so nobody knows how long ago that was.
    """
    moments = (info["created"], *((info["state"]["last_ts"],) if info["state"]["last_seq"] else ()))
    last = max(map(dt.datetime.fromisoformat, moments))
    idle_s = (dt.datetime.fromisoformat(info["ts"]) - last).total_seconds()
    return max(0.0, idle_s) if idle_s > -_SAME_CLOCK_S else None


class Intake:
    """Looks four times in `canary_after_s`, and publishes a canary if the stream has stored nothing for that time.

    All workers see what one of them has published, so a stream gets one canary in that time, and none while producers
    are busy. `on_stream` is called with what JetStream's API answers about the stream; with None if there is none.
    `clock` learns the time of the server that leads the stream.
    """

    def __init__(
        self,
        client: Requester,
        canary_after_s: float,
        on_stream: Callable[[Mapping[str, Any] | None], None] | None = None,
        clock: ServerClock | None = None,
    ) -> None:
        self.trouble: str | None = None
        """Why the stream stores nothing, and what to do, in words for an operator; None if it stores."""
        self.warning: str | None = None
        """Why nobody knows whether it stores; None if that is known."""
        self._looked = False
        self._client = client
        self._canary_after_s = canary_after_s
        self._on_stream = on_stream
        self._clock = clock or ServerClock()
        self._look_every_s = canary_after_s / _LOOKS

    @property
    def stores(self) -> bool | None:
        """Whether the stream stores what is published; None while nobody knows."""
        if self.trouble is not None:
            return False
        return True if self._looked and self.warning is None else None

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self._look()
            await asyncio.sleep(self._look_every_s)

    async def _look(self) -> None:
        asked_s = time.time()
        try:
            info = await api_request(self._client, api_stream_info(STATUS_STREAM), timeout_s=self._look_every_s)
        except RelayError as error:
            if isinstance(error, JetStreamError) and error.err_code == STREAM_NOT_FOUND:
                self._tell(None)  # the lanes' consumers report it
            else:
                self.warning = f"{_UNSEEN}: {error}"
            return
        told_at_s = dt.datetime.fromisoformat(info["ts"]).timestamp()
        self._clock.told(told_at_s, asked_s, time.time(), monotonic())
        self._tell(info)
        idle = idle_s(info)
        if idle is not None and idle < self._canary_after_s:
            self._know(None)
        elif CANARY_SUBJECT not in info["config"]["subjects"]:
            self.warning = f"{_UNSEEN}: the stream does not take {CANARY_SUBJECT}; run `relay provision`"
        else:
            await self._try()

    def _tell(self, info: Mapping[str, Any] | None) -> None:
        if self._on_stream is not None:
            self._on_stream(info)

    async def _try(self) -> None:
        """Publish a canary."""
        try:
            await publish_confirmed(self._client, CANARY_SUBJECT, b"", timeout_s=self._look_every_s)
        except RelayError as error:
            if (refusal := not_permitted(self._client, CANARY_SUBJECT)) is not None:
                self.warning = f"{_UNSEEN}: {refusal}"
            else:
                self._know(_in_words(error))
        else:
            self._know(None)

    def _know(self, trouble: str | None) -> None:
        self.warning = None
        self._looked = True
        if trouble is not None and trouble != self.trouble:
            _log.error(trouble)
        elif trouble is None and self.trouble is not None:
            _log.info(f"stream {STATUS_STREAM} stores what is published again")
        self.trouble = trouble


def _in_words(error: RelayError) -> str:
    remedy = ""
    if isinstance(error, PublishUnconfirmed):
        remedy = (
            "; if its disk was full or failed, nats-server stores nothing in this stream until it is restarted, even "
            "with room again: look for 'write error' in its log and on its /healthz, make room, and restart it"
        )
    return f"stream {STATUS_STREAM} stores nothing, so producers get errors: {error}{remedy}"
