"""How far the clock of NATS is from that of this machine.

Updates carry the time at which NATS stored them, so ages and latencies compare two clocks. If these differ by more than
is usual between synchronised machines, the difference is taken into account.
"""

from typing import Final

_NOTABLE_S: Final = 0.1
"""A smaller difference is not corrected: the estimate is no better than half a round trip."""
_KNOWN_FOR_S: Final = 60.0


class ServerClock:
    """The difference, estimated from answers of the server that say when they were made."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        """How far the clock of NATS is ahead of this one, as it was last seen; negative if it is behind."""
        self.correction_s = 0.0
        """What to add to the time of this machine before it is compared with times of the server."""
        self._error_s = float("inf")
        self._seen_s = 0.0

    @property
    def is_known(self) -> bool:
        """Whether the server has told its time."""
        return self._error_s < float("inf")

    def age_s(self, stored_at_s: float, delivered_s: float, wall_s: float, now_s: float) -> float:
        """How long ago the server stored an update, at `wall_s` by this machine's wall clock.

        It is at least the time since its delivery, on the monotonic clock: small differences are not corrected, and a
        server's clock that was set back has stored it in the future.
        """
        return max(wall_s + self.correction_s - stored_at_s, now_s - delivered_s)

    def told(self, told_at_s: float, asked_s: float, answered_s: float, now_s: float) -> None:
        """The server made an answer at `told_at_s` on its clock, between two moments on this one.

        A worse estimate than the last one counts only if that one is old, or if both cannot be true. `now_s` is on the
        monotonic clock.
        """
        ahead_s, error_s = told_at_s - (asked_s + answered_s) / 2, abs(answered_s - asked_s) / 2
        contradicts = abs(ahead_s - self.ahead_s) > error_s + self._error_s
        if error_s <= self._error_s or contradicts or now_s >= self._seen_s + _KNOWN_FOR_S:
            self.ahead_s, self._error_s, self._seen_s = ahead_s, error_s, now_s
            self.correction_s = ahead_s if abs(ahead_s) >= _NOTABLE_S else 0.0
