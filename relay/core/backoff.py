"""How long to wait before trying again: exponential, with full jitter."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays that spread evenly between zero and a ceiling which doubles with each attempt up to `max_s`.

    Full jitter, so that workers which lost the same peer at the same moment do not come back in step.
    """

    initial_s: float
    max_s: float
    random: Callable[[], float]
    """Gives numbers in [0, 1)."""

    def delay_s(self, attempt: int) -> float:
        """The wait before try number `attempt` + 1; the first attempt is 1."""
        # 2**63 exceeds any ratio of two sensible settings, and keeps the float from overflowing.
        return self.random() * min(self.max_s, self.initial_s * 2.0 ** min(attempt - 1, 63))
