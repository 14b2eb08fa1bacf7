"""The updates that wait for their PubAcks: bounded, and those of one job one after another. Without I/O."""

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from relay.nats.jetstream import PubAck

if TYPE_CHECKING:  # see __init__.py
    from relay.contract.model import JobStatusUpdate


@dataclass(slots=True, eq=False)
class PendingUpdate:
    """An update that has no PubAck yet.

    Attributes:
        update: the update itself.
        name: its name in errors and log lines: `completed of job <uuid>`.
        job: the job's UUID.
        subject, body, headers: the message to publish.
        timeout_s: how long the publish may take in total.
        deadline_s: when this time is over, on the event loop's clock.
        pub_ack: a future of the PubAck, or of the error that says why there is none. The caller may cancel it.
        awaited: whether a caller waits for `pub_ack`. If not, a failure is logged.
        size: bytes of the body when it was taken. Headers do not count, because they are small and all about the same.
    """

    update: "JobStatusUpdate"
    name: str
    job: str
    subject: str
    body: bytes
    headers: dict[str, str]
    timeout_s: float
    deadline_s: float
    pub_ack: asyncio.Future[PubAck]
    awaited: bool = False
    size: int = 0


class Outbox:
    """The pending updates of each job, oldest first. Only the first one of a job, its head, is being published.

    When the head fails, the job's later updates leave the outbox with it, so that none of them overtakes it. Updates
    for which there is no room may wait in line, in the order of the calls.

    Args:
        max_updates: how many updates it holds at most, those being published included, those in line not.
        max_bytes: how many bytes their bodies may have in total.
    """

    def __init__(self, max_updates: int, max_bytes: int) -> None:
        self.max_updates = max_updates
        self.max_bytes = max_bytes
        self.bytes = 0
        self._count = 0
        self._jobs: dict[str, deque[PendingUpdate]] = {}
        self._line: dict[PendingUpdate, None] = {}

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[PendingUpdate]:
        """All updates, job by job, each job's oldest first; then those in line."""
        for queue in self._jobs.values():
            yield from queue
        yield from self._line

    def has_room(self, size: int) -> bool:
        """Whether an update of `size` bytes may be added. While others wait in line it may not."""
        return not self._line and self._fits(size)

    def add(self, update: PendingUpdate) -> bool:
        """Add an update; there must be room for it. Returns whether it is its job's head, to be published now."""
        assert self._fits(update.size)
        self._count += 1
        self.bytes += update.size
        queue = self._jobs.setdefault(update.job, deque())
        queue.append(update)
        return len(queue) == 1

    def wait_in_line(self, update: PendingUpdate) -> None:
        """Let an update wait until there is room."""
        self._line[update] = None

    def next_in_line(self) -> PendingUpdate | None:
        """Remove the first update in line, if there is room for it now: it must be added."""
        first = next(iter(self._line), None)
        if first is None or not self._fits(first.size):
            return None
        del self._line[first]
        return first

    def leave_line(self, update: PendingUpdate) -> bool:
        """Remove an update from the line. Returns whether it was there."""
        if update not in self._line:
            return False
        del self._line[update]
        return True

    def leave_line_too(self, job: str) -> list[PendingUpdate]:
        """Remove the updates of `job` from the line, where one of it has failed. Returns them, oldest first."""
        leaving = [update for update in self._line if update.job == job]
        for update in leaving:
            del self._line[update]
        return leaving

    def published(self, job: str) -> PendingUpdate | None:
        """Remove the head of `job`, which is published. Returns the job's next update, to be published now."""
        queue = self._jobs[job]
        self._remove(queue.popleft())
        if not queue:
            del self._jobs[job]
            return None
        return queue[0]

    def failed(self, job: str) -> list[PendingUpdate]:
        """Remove the head of `job`, which failed, and the later updates of the job. Returns those, oldest first."""
        queue = self._jobs.pop(job)
        for update in queue:
            self._remove(update)
        return [*list(queue)[1:], *self.leave_line_too(job)]

    def _fits(self, size: int) -> bool:
        return self._count < self.max_updates and self.bytes + size <= self.max_bytes

    def _remove(self, update: PendingUpdate) -> None:
        self._count -= 1
        self.bytes -= update.size
