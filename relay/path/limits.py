"""The settings that the path of an update goes by."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """What bounds each lane."""

    capacity: int
    """How many updates a lane may have at hand: its consumer's `max_ack_pending`."""
    ack_wait_s: float
    """After how long the server delivers an update again that nobody has settled or reported as in progress."""
