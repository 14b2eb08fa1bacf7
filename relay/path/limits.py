"""The settings that bound the lanes."""

from dataclasses import dataclass, field

from relay.core.memory import Memory
from relay.core.server_clock import ServerClock


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """What bounds each lane."""

    capacity: int
    """How many updates a lane may have at hand: its consumer's `max_ack_pending`."""
    ack_wait_s: float
    """Seconds until the server redelivers an update that was neither settled nor reported as in progress."""
    memory: Memory
    """The memory for updates of the whole worker."""
    clock: ServerClock = field(default_factory=ServerClock)
    """The clock of NATS, by which updates are stamped."""
