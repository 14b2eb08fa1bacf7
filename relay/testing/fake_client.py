"""A stand-in for StatusClient: it answers what it was given."""

import contextlib
import datetime as dt
from collections import deque
from collections.abc import AsyncGenerator
from typing import Self
from uuid import UUID

from msgspec import Raw
from msgspec.structs import replace

from relay.client.errors import UnknownJob, WaitTimedOut
from relay.client.questions import job_of
from relay.contract.errors import RelayError
from relay.contract.model import JobStatus, JobStatusUpdate
from relay.query.replies import UpdateProgress, UpdateReply


class FakeStatusClient:
    """Stands in for a StatusClient in tests without NATS: it knows the updates that it was given with `store`."""

    def __init__(self) -> None:
        self._bodies: dict[str, list[tuple[UpdateReply, bytes]]] = {}
        self._failures: deque[RelayError] = deque()
        self._last = 0

    def store(self, update: JobStatusUpdate, progress: UpdateProgress = UpdateProgress.ACKNOWLEDGED) -> None:
        """Know one more update."""
        self._last += 1
        reply = UpdateReply(
            uuid=update.uuid,
            status=update.status,
            terminal=update.status.terminal,
            sequence=self._last,
            published=dt.datetime.now(dt.UTC).isoformat().replace("+00:00", "Z"),
            progress=progress,
        )
        self._bodies.setdefault(update.uuid, []).append((reply, update.to_json()))

    def fail_next(self, error: RelayError) -> None:
        """Let one more call raise this error. These calls add up."""
        self._failures.append(error)

    async def status(self, uuid: UUID | str, *, body: bool = False, timeout_s: float | None = None) -> UpdateReply:
        """As StatusClient.status."""
        del timeout_s
        return self._replies(uuid, body=body)[-1]

    async def history(
        self, uuid: UUID | str, *, after: int = 0, body: bool = False, timeout_s: float | None = None
    ) -> AsyncGenerator[UpdateReply]:
        """As StatusClient.history."""
        del timeout_s
        for reply in self._replies(uuid, body=body):
            if reply.sequence > after:
                yield reply

    async def wait_until(
        self,
        uuid: UUID | str,
        *,
        relayed: JobStatus | str | None = None,
        terminal: bool = False,
        timeout_s: float,
    ) -> UpdateReply:
        """As StatusClient.wait_until, but what is not there yet is a WaitTimedOut at once."""
        if (relayed is None) != terminal:
            raise ValueError("wait for a status with `relayed`, or for the job's end with `terminal=True`")
        known: list[UpdateReply] = []
        with contextlib.suppress(UnknownJob):  # the real one waits for it
            known = self._replies(uuid, body=False)
        for reply in known:
            if reply.progress is not UpdateProgress.PENDING and (
                reply.terminal if terminal else reply.status == relayed
            ):
                return reply
        raise WaitTimedOut(f"it was not relayed within {timeout_s:g} s")

    async def close(self) -> None:
        """As StatusClient.close."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def _replies(self, uuid: UUID | str, *, body: bool) -> list[UpdateReply]:
        if self._failures:
            raise self._failures.popleft()
        job = job_of(uuid)
        if job not in self._bodies:
            raise UnknownJob(f"no update of job {job} is stored")
        return [_with_body(reply, text if body else None) for reply, text in self._bodies[job]]


def _with_body(reply: UpdateReply, text: bytes | None) -> UpdateReply:
    return reply if text is None else replace(reply, body=Raw(text))
