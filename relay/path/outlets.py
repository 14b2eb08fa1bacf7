"""Where updates leave their lanes. The parts that make an update ready to go tell it here."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from relay.core.lane import Lane


@dataclass(slots=True)
class Outlets:
    """The ways out: the connection to the Facilitator, the dead-letter stream, and questions to the stream."""

    send: Callable[[], None]
    """Sends at once all that may be sent."""
    dead_letters: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a lane may have a head for the dead-letter stream."""

    questions: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a lane may have a head about which the stream must be asked."""

    def open(self, lanes: Iterable[Lane]) -> None:
        """Updates of these lanes may be ready: send them, and wake the workers that have work."""
        self.send()
        for lane in lanes:
            self.wake(lane)

    def wake(self, lane: Lane) -> None:
        """Wake the workers that have work in this lane."""
        if lane.dead_letters:
            self.dead_letters.set()
        if lane.questions:
            self.questions.set()
