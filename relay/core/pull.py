"""How many updates to ask the server for, and what the server's status messages mean for the pulls under way.

JetStream answers a pull request with up to `batch` messages and ends it with a status. All requests share an inbox, so
they are counted together. The consumer numbers its deliveries, so what is still on request is the difference of two
numbers: the last delivery that was asked for, and the last one that came (or got lost on the way).
"""

import enum
from typing import Final

_MISSED_HEARTBEATS: Final = 2
"""After this many missed idle heartbeats in a row, no server serves our pulls any more."""

_SHORTEST_S: Final = 0.5
_LONGEST_S: Final = 30.0

_HEARTBEAT: Final = 100
_REQUEST_ENDED: Final = frozenset({404, 408, 409})
_CONSUMER_GONE: Final = ("consumer deleted", "consumer is push based")
_PULLS_GONE: Final = ("leadership change", "server shutdown")


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


class PullWindow:
    """Keeps between half a batch and a whole batch of updates on request, as long as there is room for them.

    While some are on request, it asks for a quarter of a batch or more: at full load room becomes free update by
    update, and a request for each would cost more than the update itself.

    Args:
        batch: how many updates to have on request at most.
        expires_s: how long the server may serve a request: `expiry_s`.
    """

    def __init__(self, batch: int, expires_s: float) -> None:
        self.batch = batch
        self.expires_s = expires_s
        self.idle_heartbeat_s = expires_s * 0.4  # the server wants less than half
        self.dead_after_s = self.idle_heartbeat_s * (_MISSED_HEARTBEATS + 0.5)
        self.delivered_up_to = 0
        """The consumer's number of the latest delivery that came; the pull loop sets it."""
        self.low_at = 0
        """From this delivery on, half a batch or less is on request: it is time to ask for more."""
        self._asked_up_to = 0

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
        self._ask_up_to(delivered_up_to)

    def wanted(self, room: int) -> int:
        """How many updates to request now, 0 for none; `room` is how many more can be held."""
        outstanding = self.outstanding
        if outstanding > self.batch // 2:
            return 0
        count = min(self.batch, room) - outstanding
        least = self.batch // 4 if outstanding else 1
        return count if count >= least else 0

    def requested(self, count: int) -> None:
        """`count` more are on request. Updates that came from a request after it counted as ended do not count."""
        self._ask_up_to(max(self._asked_up_to, self.delivered_up_to) + count)

    def status(self, code: int, description: str, pending: int | None) -> Signal:
        """Take note of a status message: its code, its text, and its `Nats-Pending-Messages` header if there was one.

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
        if pending is None:
            return Signal.START_OVER
        self._ask_up_to(self._asked_up_to - pending)
        return Signal.ASK_AGAIN

    def _ask_up_to(self, number: int) -> None:
        self._asked_up_to = number
        self.low_at = number - self.batch // 2
