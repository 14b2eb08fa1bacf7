"""Dead letters on a real server: written as a relay writes them, and read, replayed and purged as operators do."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any

from nats.aio.client import Client
from nats.js.errors import NotFoundError
from update_kit import GivenUpdate

from relay.cli.dlq_purge import remove
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
from relay.dead_letters.replay import Replayer, ReplayResult
from relay.dead_letters.replay_all import ReplaySummary, replay_all
from relay.dead_letters.selection import Selection
from relay.dead_letters.stored import StoredDeadLetter
from relay.dead_letters.writer import DeadLetterWriter
from relay.nats.connection import api_request, publish_confirmed
from relay.nats.frames import FrameClient
from relay.nats.pipeline import pipelined

JOB, OTHER = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"
TIMEOUT_S = 30


# Writing


async def dead_letter(
    client: Client, job: str = JOB, body: bytes = b"{}", reason: Reason = Reason.REFUSED, **headers: str
) -> int:
    """Publish an update and dead-letter it; returns the update's sequence. A header's `-` is given as `_`."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    ack = await publish_confirmed(client, status_subject(job), body, given or None)
    await write_dead_letter(client, job, ack.sequence, body, given, reason=reason)
    return ack.sequence


async def write_dead_letter(
    client: Client,
    job: str,
    sequence: int,
    body: bytes = b"{}",
    headers: dict[str, str] | None = None,
    *,
    reason: Reason = Reason.REFUSED,
    stored_at_s: float = 0.0,
) -> None:
    """Write the dead letter of an update that has this sequence, or is said to have it."""
    update = GivenUpdate(f"job.status.0.{job}", sequence, headers or {}, body, stored_at_s)
    await DeadLetterWriter(client).write(update, DeadLetter(reason, "told"), 5)


# The streams


async def change_stream(client: Client, name: str, **fields: Any) -> None:
    config = (await api_request(client, api_stream_info(name)))["config"]
    await api_request(client, api_stream_update(name), config | fields)


async def recreate_status_stream(client: Client) -> None:
    config = (await api_request(client, api_stream_info(STATUS_STREAM)))["config"]
    await client.jetstream().delete_stream(STATUS_STREAM)
    await api_request(client, api_stream_create(STATUS_STREAM), config)


async def read_all(
    client: FrameClient, selection: Selection | None = None, up_to: int | None = None, **how: Any
) -> list[StoredDeadLetter]:
    last = await stream.last_sequence(client) if up_to is None else up_to
    return [letter async for letter in stream.read(client, selection or Selection(), last, **how)]


async def sequences(
    client: FrameClient, selection: Selection | None = None, up_to: int | None = None, **how: Any
) -> list[int]:
    return [letter.sequence for letter in await read_all(client, selection, up_to, **how)]


async def stored_updates(client: Client, start: int = 1) -> list[tuple[str, bytes, dict[str, str]]]:
    """The updates that the status stream has from a sequence on: job, body and headers of each."""
    info = await api_request(client, api_stream_info(STATUS_STREAM))
    found = []
    for sequence in range(start, info["state"]["last_seq"] + 1):
        with contextlib.suppress(NotFoundError):
            raw = await client.jetstream().get_msg(STATUS_STREAM, sequence)
            found.append((raw.subject.split(".")[3], raw.data or b"", raw.headers or {}))
    return found


async def stored_sequences(client: Client) -> list[int]:
    """Which sequences the status stream has."""
    state = (await api_request(client, api_stream_info(STATUS_STREAM), {"deleted_details": True}))["state"]
    return sorted(set(range(state["first_seq"], state["last_seq"] + 1)) - set(state.get("deleted", [])))


async def updates_published(client: Client, count: int) -> asyncio.Event:
    """Set when so many updates were published from now on."""
    published, counter = asyncio.Event(), itertools.count(1)

    async def watch(_: object) -> None:
        if next(counter) == count:
            published.set()

    await client.subscribe(STATUS_SUBJECTS, cb=watch)
    await client.flush()
    return published


# What an operator does


async def each(*letters: StoredDeadLetter) -> AsyncIterator[StoredDeadLetter]:
    for letter in letters:
        yield letter


async def replay(
    client: FrameClient, letters: AsyncIterator[StoredDeadLetter]
) -> tuple[ReplaySummary, list[ReplayResult]]:
    """What `relay dlq replay` does."""
    summary, results = ReplaySummary(), []
    async with pipelined(client) as pipeline:
        await replay_all(letters, Replayer(pipeline).move, summary=summary, on_result=results.append)
    return summary, results


async def replay_selected(
    client: FrameClient, selection: Selection | None = None
) -> tuple[ReplaySummary, list[ReplayResult]]:
    letters = stream.read(client, selection or Selection(), await stream.last_sequence(client))
    async with contextlib.aclosing(letters):
        return await replay(client, letters)


async def purge_selected(client: FrameClient, selection: Selection | None = None) -> None:
    """What `relay dlq purge` does after asking."""
    await remove(client, selection or Selection(), 2**40)
