"""`relay publish --stdin`: many updates at a time, each job's in their order."""

import asyncio
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from relay.cli.common import complain, tell
from relay.cli.stdin import stdin_lines
from relay.contract.errors import RelayError
from relay.contract.model import JobStatusUpdate
from relay.nats.frames import FrameClient
from relay.nats.jetstream import PubAck
from relay.producer import publish_update

_WINDOW: Final = 256
"""How many lines may wait for a PubAck: their own, or that of an earlier line."""
_MAX_PROBLEMS: Final = 3


@dataclass(frozen=True, slots=True)
class _Outcome:
    """The outcome of one line: where its update is stored, or why it is not."""

    line: int
    stored: str = ""
    problem: str = ""


async def publish_lines(client: FrameClient) -> bool:
    """Publish each line of standard input, and print the outcomes in the order of the lines.

    Returns whether all are published. If it is cancelled, lines whose outcome was not printed may or may not be stored.
    """
    publisher = _LinePublisher(client)
    async with asyncio.TaskGroup() as group:
        reporting = group.create_task(publisher.report())
        await publisher.publish(group)
    return reporting.result()


def stored_at(ack: PubAck) -> str:
    """Where a published update is stored, in words."""
    return f"{ack.stream} sequence {ack.sequence}" + (" (duplicate: it was stored before)" if ack.duplicate else "")


def problems_of(error: ValidationError) -> str:
    """What is wrong with an update, in one line."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    told = [f"{'.'.join(map(str, each['loc'])) or 'the update'}: {each['msg']}" for each in problems[:_MAX_PROBLEMS]]
    more = [f"and {len(problems) - _MAX_PROBLEMS} more"] if len(problems) > _MAX_PROBLEMS else []
    return "; ".join(told + more)


class _LinePublisher:
    """Publishes the updates of different jobs concurrently, and those of one job one after another."""

    def __init__(self, client: FrameClient) -> None:
        self._client = client
        self._window: asyncio.Queue[asyncio.Future[_Outcome] | None] = asyncio.Queue(_WINDOW)
        self._last_of_job: dict[str, asyncio.Task[_Outcome]] = {}

    async def publish(self, group: asyncio.TaskGroup) -> None:
        """Read standard input to its end, and start publishing each line in `group`."""
        number = 0
        async for text in stdin_lines():
            number += 1
            if text.strip():
                await self._window.put(self._begin(group, number, text))
        await self._window.put(None)

    async def report(self) -> bool:
        """Print the outcome of each line; returns whether all are published, and that could be printed.

        If nobody reads it, publishing goes on, and what cannot be published is still told on standard error.
        """
        all_published = True
        while (pending := await self._window.get()) is not None:
            outcome = await pending
            if outcome.problem:
                all_published = False
                complain(f"line {outcome.line}: {outcome.problem}")
            elif not tell(outcome.stored):
                all_published = False
        return all_published

    def _begin(self, group: asyncio.TaskGroup, number: int, text: bytes) -> asyncio.Future[_Outcome]:
        try:
            update = JobStatusUpdate.model_validate_json(text)
        except ValidationError as error:
            refused: asyncio.Future[_Outcome] = asyncio.get_running_loop().create_future()
            refused.set_result(_Outcome(number, problem=problems_of(error)))
            return refused
        task = group.create_task(self._publish_after(self._last_of_job.get(update.uuid), number, update))
        self._last_of_job[update.uuid] = task
        task.add_done_callback(lambda done: self._forget(update.uuid, done))
        return task

    async def _publish_after(
        self, before: "asyncio.Task[_Outcome] | None", number: int, update: JobStatusUpdate
    ) -> _Outcome:
        if before is not None and (earlier := await before).problem:
            why = f"not published, because line {earlier.line} of the same job was not, and must come first"
            return _Outcome(number, problem=why)
        try:
            ack = await publish_update(self._client, update)
        except RelayError as error:
            return _Outcome(number, problem=str(error))
        return _Outcome(number, stored=f"{update.uuid} {update.status}: {stored_at(ack)}")

    def _forget(self, uuid: str, done: asyncio.Task[_Outcome]) -> None:
        """Keep a job's last task only while it runs, or if it failed: its later lines must not be published then."""
        if self._last_of_job.get(uuid) is done and not done.result().problem:
            del self._last_of_job[uuid]
