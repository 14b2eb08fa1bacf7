"""How many updates to ask the server for, and what the server's status messages mean for the pulls under way.

JetStream answers a pull request with up to `batch` messages and ends it with a status. All requests share an inbox, so
they are counted together. The consumer numbers its deliveries, so what is still on request is the difference of two
numbers: the last delivery that was asked for, and the last one that came (or got lost on the way).

Each request also has a limit of bytes, `max_bytes`. The server counts subject, reply subject, headers and body of each
message. It ends a request, with a status that says how many bytes were left, if the next message does not fit. So a
message that is larger than a whole request would never come: it is requested alone, without a limit (see memory.py).
If a message uses up the limit to the last byte, the server ends the request without a status.
"""

import enum
import math
from dataclasses import dataclass
from typing import Final

from relay.core.memory import LEAST_REQUEST_BYTES, Memory, Share
from relay.core.stall import PullLimit, limit_in

_MISSED_HEARTBEATS: Final = 2
"""After this many missed idle heartbeats in a row, no server serves our pulls any more."""

_SHORTEST_S: Final = 0.5
_LONGEST_S: Final = 30.0

_HEARTBEAT: Final = 100
_REQUEST_ENDED: Final = frozenset({404, 408, 409})
_CONSUMER_GONE: Final = ("consumer deleted", "consumer is push based")
_PULLS_GONE: Final = ("leadership change", "server shutdown")
_TOO_LARGE: Final = "exceeds maxbytes"


class Signal(enum.Enum):
    """What a status message asks of the pull loop."""

    ALIVE = enum.auto()
    """The server is there and has nothing for us."""
    ASK_AGAIN = enum.auto()
    """A request ended: top up."""
    START_OVER = enum.auto()
    """The server forgot our requests: pull again from a fresh inbox."""
    CONSUMER_GONE = enum.auto()
    """The consumer does not exist any more."""


def expiry_s(lease_ttl_s: float, ack_wait_s: float) -> float:
    """How long the server may serve a request, in seconds.

    Not longer than a lease, because the server goes on serving a request after its worker has stopped listening. And
    not much longer than `ack_wait_s`: requests that no server serves any more must be noticed, and made again, while a
    held lane still waits for missing updates (see continuity.py). Otherwise it would be released without them.
    """
    return min(_LONGEST_S, lease_ttl_s, max(_SHORTEST_S, ack_wait_s))


@dataclass(frozen=True, slots=True)
class Request:
    """What to ask the server for: how many updates, and how many bytes of them; None for one of any size."""

    count: int
    max_bytes: int | None


class PullWindow:
    """Keeps between half a batch and a whole batch of updates on request, as long as there is room for them.

    While some are on request, it asks for a quarter of a batch or more: at full load room becomes free update by
    update, and a request for each would cost more than the update itself.

    Args:
        batch: how many updates to have on request at most.
        expires_s: how long the server may serve a request: `expiry_s`.
        share: bounds the bytes; without one they are not bounded.
    """

    def __init__(self, batch: int, expires_s: float, share: Share | None = None) -> None:
        self.share = share or Memory().join()
        self.batch = batch
        self._most_bytes = math.inf
        self._serve_for(expires_s)
        self.delivered_up_to = 0
        """The consumer's number of the latest delivery that came."""
        self.low_at = 0
        """From this delivery on, half a batch or less is on request: it is time to ask for more."""
        self._asked_up_to = 0
        self.goes_alone = False
        """An update of any size is on request, by itself."""
        self.goes_alone_again = False
        """It has come, and the next one is likely to be as large; the pull loop sets it."""
        self._refused_bytes = 0
        self._refused_at = -1
        """After this delivery, the next update is larger than `_refused_bytes`: a request for so many ended for it."""

    @property
    def outstanding(self) -> int:
        """How many updates the server may still send without being asked again."""
        return max(0, self._asked_up_to - self.delivered_up_to)

    @property
    def is_low(self) -> bool:
        """Whether half a batch or less is on request."""
        return self.delivered_up_to >= self.low_at

    def start(self, delivered_up_to: int) -> None:
        """Start: no request is under way, and the consumer has made `delivered_up_to` deliveries so far."""
        self.delivered_up_to = delivered_up_to
        self._refused_at = -1
        self.goes_alone = self.goes_alone_again = False
        self._ask_up_to(delivered_up_to)
        self.share.nothing_on_request()

    def wanted(self, room: int) -> Request | None:
        """What to request now, None for nothing; `room` is how many more updates can be held."""
        if not self.outstanding and self.share.asked_bytes:
            self.share.nothing_on_request()  # lanes that waited for that may request something now, even this one
        outstanding = self.outstanding
        if outstanding > self.batch // 2:
            return None
        count = min(self.batch, room) - outstanding
        if count < (self.batch // 4 if outstanding else 1):
            return None
        share = self.share
        free_bytes = share.free_bytes
        if outstanding and free_bytes < LEAST_REQUEST_BYTES:
            return None
        if share.at_hand_bytes and free_bytes < share.request_bytes // 4 and not outstanding:
            return None
        refused = self._refused_at == self.delivered_up_to
        if free_bytes > (self._refused_bytes if refused else 0) and not self.goes_alone_again:
            return Request(count, int(min(free_bytes, self._most_bytes)))
        return Request(1, None) if not outstanding and share.may_go_alone() else None

    def requested(self, request: Request) -> None:
        """This is on request. Updates that came from a request after it counted as ended do not count."""
        self._ask_up_to(max(self._asked_up_to, self.delivered_up_to) + request.count)
        self.goes_alone, self.goes_alone_again = request.max_bytes is None, False
        if request.max_bytes is None:
            self.share.go_alone()
        else:
            self.share.asked_bytes += request.max_bytes

    def came(self, delivered_up_to: int, size_bytes: int) -> None:
        """Deliveries came, up to this number in the consumer's count, with so many bytes as the server counts them."""
        self.delivered_up_to = delivered_up_to
        self.share.came_bytes += size_bytes
        if self.share.came_bytes >= self.share.asked_bytes:  # of every request that is under way some bytes are left
            self._ask_up_to(delivered_up_to)

    def status(self, code: int, description: str, pending: int | None, pending_bytes: int = 0) -> Signal:
        """Take note of a status message: its code and text, and how many updates and bytes it gives back.

        These are in the headers `Nats-Pending-Messages` and `Nats-Pending-Bytes`; None if the first is missing.
        409 has many causes, so the text decides. An unknown status starts over, which is always safe: at worst it costs
        a round trip.
        """
        text = description.lower()
        if code == _HEARTBEAT:
            return Signal.ALIVE
        if code not in _REQUEST_ENDED or any(known in text for known in _PULLS_GONE):
            return Signal.START_OVER
        if any(known in text for known in _CONSUMER_GONE):
            return Signal.CONSUMER_GONE
        if (limit := limit_in(text)) is not None:
            self._keep_within(limit)
        if pending is None:
            return Signal.START_OVER
        self._ask_up_to(self._asked_up_to - pending)
        self.share.asked_bytes -= pending_bytes
        if _TOO_LARGE in text:
            self._refused_bytes, self._refused_at = pending_bytes, self.delivered_up_to
        if not self.outstanding:
            self.share.nothing_on_request()
        return Signal.ASK_AGAIN

    def _keep_within(self, limit: PullLimit) -> None:
        """Ask for no more than the server allows, from now on."""
        match limit.of:
            case "batch":
                self.batch = min(self.batch, int(limit.most))
            case "expires":
                self._serve_for(min(self.expires_s, limit.most))
            case _:
                self._most_bytes = min(self._most_bytes, limit.most)

    def _serve_for(self, expires_s: float) -> None:
        self.expires_s = expires_s
        self.idle_heartbeat_s = expires_s * 0.4  # the server wants less than half
        self.dead_after_s = self.idle_heartbeat_s * (_MISSED_HEARTBEATS + 0.5)

    def _ask_up_to(self, number: int) -> None:
        self._asked_up_to = number
        self.low_at = number - self.batch // 2
