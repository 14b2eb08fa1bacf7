"""Where updates leave their lanes. The parts that make an update ready to go tell it here."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from relay.core.lane import Lane


@dataclass(slots=True)
class Outlets:
    """The two ways out: the connection to the Facilitator, and the dead-letter stream."""

    send: Callable[[], None]
    """Sends at once all that may be sent."""
    dead_letters: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a lane may have a head for the dead-letter stream."""

    def open(self, lanes: Iterable[Lane]) -> None:
        """Updates of these lanes may be ready: send them, and wake the dead-letter worker if it has work."""
        self.send()
        if any(lane.dead_letters for lane in lanes):
            self.dead_letters.set()
