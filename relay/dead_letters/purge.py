"""Removing dead letters for good: count and export, then remove what was counted, and nothing newer."""

import contextlib
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from relay.contract.errors import RelayError
from relay.contract.subjects import DLQ_STREAM
from relay.dead_letters import stream
from relay.dead_letters.export import to_line
from relay.dead_letters.selection import Selection
from relay.dead_letters.sources import SourceUpdates
from relay.dead_letters.stored import StoredDeadLetter
from relay.dead_letters.window import for_each
from relay.nats.frames import FrameClient
from relay.nats.pipeline import pipelined


@dataclass(slots=True)
class PurgePlan:
    """What there is to remove: how many dead letters by reason, and the sequence of the newest one."""

    reasons: Counter[str] = field(default_factory=Counter[str])
    last_sequence: int = 0
    made_at: str = ""
    """When the stream that was counted was made. One that is made anew counts from 1 again."""


async def counted(client: FrameClient, selection: Selection, plan: PurgePlan) -> AsyncGenerator[StoredDeadLetter]:
    """What is selected now, each when `plan` has counted it."""
    info = await stream.info(client)
    plan.made_at, up_to = info["created"], info["state"]["last_seq"]
    async with contextlib.aclosing(stream.read(client, selection, up_to)) as letters:
        async for letter in letters:
            plan.reasons[letter.reason] += 1
            plan.last_sequence = letter.sequence
            yield letter


async def exported(client: FrameClient, selection: Selection, plan: PurgePlan) -> AsyncGenerator[bytes]:
    """What is selected now as lines of a file, each when `plan` has counted it."""
    async with contextlib.aclosing(counted(client, selection, plan)) as letters:
        async for letter in letters:
            yield to_line(letter)


async def require_same_stream(client: FrameClient, plan: PurgePlan) -> None:
    """Raises RelayError if the dead letters are not those of the stream that was counted."""
    if (await stream.info(client))["created"] != plan.made_at:
        raise RelayError(
            f"{DLQ_STREAM} was deleted and made anew since its dead letters were counted, so other ones may have their "
            "sequences now; nothing was done: begin again with those that are there now"
        )


async def remove(client: FrameClient, selection: Selection, plan: PurgePlan) -> int:
    """Remove what `plan` counted, and nothing newer; returns how many of those were still there.

    Each source is removed before its dead letter, so interrupting this is safe: the next purge completes it. Raises
    RelayError, also if the stream is another one by now.
    """
    await require_same_stream(client, plan)
    removed, up_to = 0, plan.last_sequence
    async with pipelined(client) as pipeline:
        sources = SourceUpdates(pipeline)

        async def remove_one(letter: StoredDeadLetter) -> None:
            nonlocal removed
            await sources.remove(letter)
            if not selection.is_whole_subject:
                was_there = await stream.remove(pipeline, letter.sequence)
                removed += was_there

        async with contextlib.aclosing(stream.read(client, selection, up_to)) as letters:
            await for_each(letters, remove_one, key=lambda letter: letter.sequence)
    return await stream.remove_all(client, selection.subject, up_to) if selection.is_whole_subject else removed
