"""When a connection to the Facilitator is tried again: soon after the Facilitator is back, and never all at once.

Time is cut into slots, SLOTS_PER_S of them a second. Each slot belongs to one connection of one worker, and the slots
go round: with 3 workers that have 2 connections each, worker 0 has slots 0 and 1 of each round, worker 1 has 2 and 3.
A connection is tried once in each of its slots. So

- all workers together try at most SLOTS_PER_S times in any second, also when all lose the Facilitator at once;
- the wait does not grow: however long the outage was, a connection is tried again within one round. That is n / 20
  seconds for n connections of all workers together, and 0.5 s for 10 of them or fewer.

If the Facilitator drops a connection at a suspect that was sent alone, it is not away: a control has passed on that
connection. All lanes of the connection wait until it is back. So the rounds of such a connection are as short as they
can be without taking slots of others: with one connection in all it has every slot, with two every other one.

Only the first attempt of a worker that starts is made at once: it would cost each single start up to half a second to
spread those of many workers that start together, and each of them does it once.

The slots are counted on the wall clock, because the workers share no other one. If a worker's clock is wrong, its slots
are somebody else's as well, but its waits are no longer, because only the distance to the next slot counts.
"""

import math
from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from relay.core.backoff import Backoff

SLOTS_PER_S: Final = 20
SHORTEST_ROUND: Final = 10
"""In slots."""
_HURRIED_ROUNDS: Final = (1, 2, 5)
"""Divisors of SHORTEST_ROUND, so that slots of different connections stay different ones."""

_MANY: Final = 100


class Place(NamedTuple):
    """Which of all workers this one is, counted from 0."""

    rank: int
    workers: int


def place_of(worker: str, alive: Collection[str]) -> Place:
    """The place of `worker` among those that are alive, itself included. All workers that know the same ones agree."""
    ranked = sorted({worker, *alive})
    return Place(ranked.index(worker), len(ranked))


def any_place(random: Callable[[], float]) -> Place:
    """A place for a worker that does not know the others yet: one of 100. `random` gives numbers in [0, 1).

    If all such workers took the same place, they would all try in the same slots.
    """
    return Place(int(random() * _MANY), _MANY)


class ConnectPace:
    """The waits of one connection.

    Args:
        place: gives this worker's place; asked each time.
        number: which connection of its worker this is, counted from 0.
        connections: how many connections each worker has.
        refusals: the waits after sign-ins that were refused: no outage, so there is no hurry.
    """

    def __init__(self, place: Callable[[], Place], number: int, connections: int, refusals: Backoff) -> None:
        self._place = place
        self._number = number
        self._connections = connections
        self._refusals = refusals
        self._refused = 0
        self._hurried = False
        self._slot: int | None = None
        """The slot of the last attempt."""

    def signed_in(self) -> None:
        """The Facilitator has accepted the sign-in."""
        self._refused = 0

    def refused(self) -> None:
        """The Facilitator has refused the sign-in."""
        self._refused += 1

    def dropped_at_suspect(self) -> None:
        """A control has passed, and then the connection was dropped at the suspect: the Facilitator is not away."""
        self._hurried = True

    def wait_s(self, now_s: float) -> float:
        """How long to wait at `now_s`, on the wall clock, for the next slot of this connection."""
        rank, workers = self._place()
        size = self._round(workers * self._connections)
        self._hurried = False
        mine = rank * self._connections + self._number
        earliest_s = now_s + (self._refusals.delay_s(self._refused) if self._refused else 0.0)
        # It is tried in the middle of a slot: a timer that is early or late by less than half a slot does no harm.
        first = math.ceil(earliest_s * SLOTS_PER_S - 0.5)
        slot = first + (mine - first) % size
        if slot == self._slot:
            slot += size
        self._slot = slot
        return (slot + 0.5) / SLOTS_PER_S - now_s

    def _round(self, connections: int) -> int:
        """How many slots a round has."""
        hurried = (each for each in _HURRIED_ROUNDS if self._hurried and each >= connections)
        return next(hurried, max(SHORTEST_ROUND, connections))
