"""How long and how often the relay waits, where there is no setting for it."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Intervals:
    """In seconds. The relay runs with the defaults; tests shorten them."""

    drain_s: float = 10.0
    """How long a lane that is given up may take to finish what is with the Facilitator."""
    last_pushes_s: float = 5.0
    """How long a relay that is stopping goes on publishing what the Facilitator has pushed."""
    provision_check_s: float = 2.0
    """How often to look whether streams and consumers are in place, until they are."""
    stalled_after_s: float = 10.0
    """How long nothing may be given of what waits in a lane and is asked for, until that is reported."""
    topology_look_s: float = 30.0
    """How often to look whether somebody has changed streams and consumers."""
    canary_after_s: float = 20.0
    """How long the status stream may store nothing until a worker tries whether it can."""
    backlog_look_s: float = 5.0
    """How often to ask the server how far the lanes are."""
    facilitator_ping_s: float = 20.0
    """How often to ping the Facilitator, so that a dead connection is noticed while nothing is sent."""
    dead_letter_retry_s: float = 5.0
    """How long an update waits after its dead letter could not be written."""
    question_retry_s: float = 5.0
    """How long an update waits after the stream could not be asked about it."""
    dead_letter_write_s: float = 5.0
    """How long to wait for the PubAck of a dead letter."""


DEFAULTS: Final = Intervals()
