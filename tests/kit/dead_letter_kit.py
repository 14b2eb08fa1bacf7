"""Dead letters on a real server: written as a relay writes them, and read, replayed and purged as operators do."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Mapping
from typing import Any

from nats.aio.client import Client
from nats.js.errors import NotFoundError
from update_kit import GivenUpdate

from relay.contract.subjects import (
    STATUS_STREAM,
    STATUS_SUBJECTS,
    Reason,
    api_stream_create,
    api_stream_info,
    api_stream_update,
    status_subject,
)
from relay.core.verdict import DeadLetter
from relay.dead_letters import stream
from relay.dead_letters.purge import PurgePlan, counted, remove
from relay.dead_letters.replay import Replayer, ReplayResult
from relay.dead_letters.replay_all import ReplaySummary, replay_all
from relay.dead_letters.selection import Selection
from relay.dead_letters.stored import StoredDeadLetter
from relay.dead_letters.writer import DeadLetterWriter
from relay.nats.frames import FrameClient
from relay.nats.jetstream import PubAck, api_request, publish_confirmed
from relay.nats.messages import get_message
from relay.nats.pipeline import pipelined

JOB, OTHER = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"
EVERYTHING = Selection()


async def change_stream(client: Client, name: str, **fields: Any) -> None:
    config = (await api_request(client, api_stream_info(name)))["config"]
    await api_request(client, api_stream_update(name), config | fields)


async def each(*letters: StoredDeadLetter) -> AsyncIterator[StoredDeadLetter]:
    for letter in letters:
        yield letter


class Dlq:
    """The dead letters and the updates of one provisioned server."""

    def __init__(self, client: FrameClient) -> None:
        self.client = client

    async def publish(self, job: str = JOB, body: bytes = b"", headers: dict[str, str] | None = None) -> PubAck:
        return await publish_confirmed(self.client, status_subject(job), body, headers)

    async def write(self, job: str = JOB, body: bytes = b"{}", reason: Reason = Reason.REFUSED, **headers: str) -> int:
        """Publish an update and dead-letter it; returns the update's sequence. Write a header's `-` as `_`."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        ack = await self.publish(job, body, given or None)
        await self.write_for(job, ack.sequence, body, given, reason=reason)
        return ack.sequence

    async def write_many(self, count: int) -> None:
        """Write dead letters of one job, with the bodies `0`, `1`, ..."""
        for number in range(count):
            await self.write(body=b"%d" % number)

    async def write_for(
        self,
        job: str,
        sequence: int,
        body: bytes = b"{}",
        headers: Mapping[str, str] | None = None,
        *,
        reason: Reason = Reason.REFUSED,
        stored_at_s: float | None = None,
    ) -> None:
        """Write a dead letter whose source has this sequence, whether it exists or not."""
        if stored_at_s is None:
            source = await get_message(self.client, STATUS_STREAM, sequence)
            stored_at_s = source.stored_at_s if source else 0.0
        update = GivenUpdate(f"job.status.0.{job}", sequence, headers or {}, body, stored_at_s)
        await DeadLetterWriter(self.client).write(update, DeadLetter(reason, "told"), 5)

    async def read(
        self, selection: Selection = EVERYTHING, up_to: int | None = None, **how: Any
    ) -> list[StoredDeadLetter]:
        last = await stream.last_sequence(self.client) if up_to is None else up_to
        return [letter async for letter in stream.read(self.client, selection, last, **how)]

    async def sequences(self, selection: Selection = EVERYTHING, up_to: int | None = None, **how: Any) -> list[int]:
        return [letter.sequence for letter in await self.read(selection, up_to, **how)]

    async def updates(self, start: int = 1) -> list[tuple[str, bytes, dict[str, str]]]:
        """The updates in the status stream from a sequence on: job, body and headers of each."""
        info = await api_request(self.client, api_stream_info(STATUS_STREAM))
        found = []
        for sequence in range(start, info["state"]["last_seq"] + 1):
            with contextlib.suppress(NotFoundError):
                raw = await self.client.jetstream().get_msg(STATUS_STREAM, sequence)
                found.append((raw.subject.split(".")[3], raw.data or b"", raw.headers or {}))
        return found

    async def max_size(self) -> int:
        """The size limit of an update with its headers, in bytes."""
        return (await api_request(self.client, api_stream_info(STATUS_STREAM)))["config"]["max_msg_size"]

    async def update_sequences(self) -> list[int]:
        """The sequences in the status stream."""
        info = await api_request(self.client, api_stream_info(STATUS_STREAM), {"deleted_details": True})
        first, last = info["state"]["first_seq"], info["state"]["last_seq"]
        return sorted(set(range(first, last + 1)) - set(info["state"].get("deleted", [])))

    async def recreate_stream(self, name: str = STATUS_STREAM) -> None:
        """Delete the stream and create it again, so that it counts from 1."""
        config = (await api_request(self.client, api_stream_info(name)))["config"]
        await self.client.jetstream().delete_stream(name)
        await api_request(self.client, api_stream_create(name), config)

    async def updates_published(self, count: int) -> asyncio.Event:
        """An event that is set when `count` updates have been published from now on."""
        published, counter = asyncio.Event(), itertools.count(1)

        async def watch(_: object) -> None:
            if next(counter) == count:
                published.set()

        await self.client.subscribe(STATUS_SUBJECTS, cb=watch)
        await self.client.flush()
        return published

    async def replay(self, selection: Selection = EVERYTHING) -> tuple[ReplaySummary, list[ReplayResult]]:
        """Do what `relay dlq replay` does."""
        letters = stream.read(self.client, selection, await stream.last_sequence(self.client))
        async with contextlib.aclosing(letters):
            return await self.replay_these(letters)

    async def replay_these(self, letters: AsyncIterator[StoredDeadLetter]) -> tuple[ReplaySummary, list[ReplayResult]]:
        summary, results = ReplaySummary(), []
        async with pipelined(self.client) as pipeline:
            await replay_all(letters, Replayer(pipeline).move, summary=summary, on_result=results.append)
        return summary, results

    async def purge(self, selection: Selection = EVERYTHING) -> None:
        """Do what `relay dlq purge` does after the confirmation."""
        plan = PurgePlan()
        async with contextlib.aclosing(counted(self.client, selection, plan)) as letters:
            async for _ in letters:
                pass
        await remove(self.client, selection, plan)
