"""Which lane of a connection gives out an update next."""

from collections import deque
from collections.abc import Callable
from operator import attrgetter
from typing import Final

from relay.core.lane import Lane
from relay.core.update import Update

_has_ready: Final[Callable[[Lane], object]] = attrgetter("ready")


class Turns:
    """The lanes of one connection, which take turns, so that a busy lane does not starve the others."""

    def __init__(self) -> None:
        self.lanes: deque[Lane] = deque()
        """Those that take part, in the order of their turns."""

    def add(self, lane: Lane) -> None:
        """From now on it takes part."""
        self.lanes.append(lane)

    def discard(self, lane: Lane) -> None:
        """From now on nothing of it is given out."""
        if lane in self.lanes:
            self.lanes.remove(lane)

    def take(self, room: int, room_bytes: int, now_s: float) -> list[Update]:
        """Up to `room` heads to send now, until they have `room_bytes` or more; they are OUT from now on.

        The last one may exceed `room_bytes`: if it had to wait for room, smaller ones could pass it for ever.
        """
        taken: list[Update] = []
        in_turn = deque(filter(_has_ready, self.lanes))
        while in_turn and len(taken) < room and room_bytes > 0:
            lane = in_turn.popleft()
            if (update := lane.take(now_s)) is not None:
                taken.append(update)
                room_bytes -= update.held_bytes
                in_turn.append(lane)
        if taken:  # the next turn is that of the lane after the last one
            self.lanes.rotate(-1 - self.lanes.index(taken[-1].lane))
        return taken

    def take_dead_letter(self, now_s: float) -> Update | None:
        """The next head for the dead-letter stream; it is OUT from now on. None if there is none."""
        return self._take_in_turn(lambda lane: lane.take_dead_letter(now_s))

    def take_question(self, now_s: float) -> Update | None:
        """The next head about which the stream must be asked; it is OUT from now on. None if there is none."""
        return self._take_in_turn(lambda lane: lane.take_question(now_s))

    def _take_in_turn(self, take: Callable[[Lane], Update | None]) -> Update | None:
        for _ in range(len(self.lanes)):
            self.lanes.rotate(-1)
            if (update := take(self.lanes[0])) is not None:
                return update
        return None

    def wake(self, now_s: float) -> float | None:
        """Free the updates whose wait is over; returns when the next one is due, None if no other waits."""
        return min((due_s for lane in self.lanes if (due_s := lane.wake(now_s)) is not None), default=None)
