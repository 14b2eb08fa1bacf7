"""How long to wait before trying again: exponential, with full jitter."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays that spread evenly between zero and a ceiling which doubles with each attempt up to `max_s`.

    Full jitter, so that workers that lost the same peer at the same moment do not all come back at the same moment.
    """

    initial_s: float
    max_s: float
    random: Callable[[], float]
    """Gives numbers in [0, 1)."""

    def delay_s(self, attempt: int) -> float:
        """Seconds to wait after attempt number `attempt`, the first one being 1."""
        # 2**63 exceeds any ratio of two sensible settings, and keeps the float from overflowing.
        return self.random() * min(self.max_s, self.initial_s * 2.0 ** min(attempt - 1, 63))
