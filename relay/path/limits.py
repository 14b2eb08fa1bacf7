"""The settings that the path of an update goes by."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    lane_capacity: int
    """How many updates a lane may have at hand: its consumer's `max_ack_pending`."""
    max_attempts: int
    ack_wait_s: float
