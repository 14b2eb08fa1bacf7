"""Up to where the updates of each lane are settled, kept with its lease for the case that its consumer is deleted.

A lane consumer that is made anew would begin at the first stored update: up to 7 days would be sent again. With the
floor that its owner knew, it begins after that. A floor that is too low costs repeats; one that is too high would lose
updates, so it counts only for the same stream, and only while that stream has so many updates.
"""

import re
from dataclasses import dataclass
from typing import Final, Self

_TEXT: Final = re.compile(r"([0-9]{1,18}) (\S{1,64})")


@dataclass(frozen=True, slots=True)
class Floor:
    """All updates of a lane up to this sequence are settled."""

    sequence: int
    stream_made_at: str
    """When the stream was made (`created`), as the server gives it."""

    @classmethod
    def parse(cls, header: str | None) -> Self | None:
        """From the header of a lease; None if there is none."""
        found = _TEXT.fullmatch(header or "")
        return cls(int(found[1]), found[2]) if found else None

    def is_of(self, stream_made_at: str, last_sequence: int) -> bool:
        """Whether it belongs to the stream that was made then, and has its last update at this sequence."""
        return self.stream_made_at == stream_made_at and self.sequence <= last_sequence

    def __str__(self) -> str:
        return f"{self.sequence} {self.stream_made_at}"


class Floors:
    """The floors of all lanes that this worker knows, as headers of their leases."""

    def __init__(self) -> None:
        self._floors: dict[int, Floor] = {}
        """By lane."""
        self._stream_made_at: str | None = None

    def stream_seen(self, made_at: str, last_sequence: int) -> None:
        """The stream was looked at. Floors of another one, or of one that was restored, are forgotten."""
        self._stream_made_at = made_at
        self._floors = {lane: floor for lane, floor in self._floors.items() if floor.is_of(made_at, last_sequence)}

    def stream_gone(self) -> None:
        """There is no stream now."""
        self._stream_made_at = None
        self._floors.clear()

    def settled(self, lane: int, sequence: int) -> None:
        """The consumer of a lane has this ack floor."""
        if self._stream_made_at is not None:
            self._floors[lane] = Floor(sequence, self._stream_made_at)

    def inherit(self, lane: int, header: str | None) -> None:
        """The lane was taken; its lease had this header. Counts only until its consumer tells more."""
        if lane not in self._floors and (floor := Floor.parse(header)) is not None:
            self._floors[lane] = floor

    def header(self, lane: int) -> str | None:
        """What to write with the lease of a lane; None if nothing is known."""
        floor = self._floors.get(lane)
        return str(floor) if floor is not None else None
