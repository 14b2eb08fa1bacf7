"""What waits to be published: bounded, and the updates of one job one after another."""

from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Parcel(Protocol):
    """What an outbox holds."""

    @property
    def job(self) -> str: ...

    @property
    def size(self) -> int:
        """Bytes, for the bound."""
        ...


P = TypeVar("P", bound=Parcel)


class Outbox(Generic[P]):
    """For each job the parcels that are not done with, oldest first: only the head is under way.

    An update that failed must not be overtaken by those behind it, so they leave the outbox with it.

    Args:
        max_parcels: how many it holds at most, those under way included.
        max_bytes: how many bytes these may have in all.
    """

    def __init__(self, max_parcels: int, max_bytes: int) -> None:
        self.max_parcels = max_parcels
        self.max_bytes = max_bytes
        self.bytes = 0
        self._count = 0
        self._jobs: dict[str, deque[P]] = {}

    def __len__(self) -> int:
        return self._count

    def parcels(self) -> Iterator[P]:
        """All that it holds, a job's oldest first."""
        for line in self._jobs.values():
            yield from line

    def has_room(self, size: int) -> bool:
        """Whether a parcel of so many bytes may be added."""
        return self._count < self.max_parcels and self.bytes + size <= self.max_bytes

    def add(self, parcel: P) -> bool:
        """Take `parcel` in; returns whether it is the head of its job, to be published now. There must be room."""
        assert self.has_room(parcel.size)
        self._count += 1
        self.bytes += parcel.size
        line = self._jobs.setdefault(parcel.job, deque())
        line.append(parcel)
        return len(line) == 1

    def done(self, job: str) -> P | None:
        """The head of `job` is published and leaves; returns the next one, to be published now."""
        line = self._jobs[job]
        self._leave(line.popleft())
        if not line:
            del self._jobs[job]
            return None
        return line[0]

    def failed(self, job: str) -> list[P]:
        """The head of `job` failed, and leaves with all those behind it; returns these, oldest first."""
        line = self._jobs.pop(job)
        for parcel in line:
            self._leave(parcel)
        return list(line)[1:]

    def _leave(self, parcel: P) -> None:
        self._count -= 1
        self.bytes -= parcel.size
