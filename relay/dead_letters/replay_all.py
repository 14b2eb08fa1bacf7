"""Replaying many dead letters: in which order, how fast, and what stops it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from relay.contract.errors import RelayError
from relay.dead_letters.replay import Replayer, ReplayResult
from relay.dead_letters.stored import StoredDeadLetter
from relay.dead_letters.window import for_each
from relay.nats.frames import FrameClient
from relay.nats.pipeline import pipelined


@dataclass(slots=True)
class ReplaySummary:
    """How the replay of many dead letters ended, or how far it is."""

    replayed: int = 0
    already_stored: int = 0
    problems: int = 0
    """How many cannot be replayed."""
    error: RelayError | None = None
    """The error that stopped it; None if there was none."""

    def count(self, result: ReplayResult) -> None:
        if result.problem:
            self.problems += 1
        elif result.already_stored:
            self.already_stored += 1
        else:
            self.replayed += 1


async def replay_with(
    client: FrameClient,
    letters: AsyncIterator[StoredDeadLetter],
    *,
    summary: ReplaySummary,
    on_result: Callable[[ReplayResult], None],
    rate_per_s: float | None = None,
    remove: bool = True,
) -> None:
    """Replay `letters` through `client` as `replay_all` does. `remove`: delete each, and its source, afterwards."""
    async with pipelined(client) as pipeline:
        replayer = Replayer(pipeline)
        replay = replayer.move if remove else replayer.publish
        await replay_all(letters, replay, summary=summary, on_result=on_result, rate_per_s=rate_per_s)


async def replay_all(
    letters: AsyncIterator[StoredDeadLetter],
    replay: Callable[[StoredDeadLetter], Coroutine[Any, Any, ReplayResult]],
    *,
    summary: ReplaySummary,
    on_result: Callable[[ReplayResult], None],
    rate_per_s: float | None = None,
) -> None:
    """Replay `letters`: as many at a time as the window holds, those of one job one after another, in their order.

    After the first error no more are begun, those under way are finished, and `summary` has the error. If this is
    cancelled, those under way are cancelled, and `summary` has what is known.
    """

    async def replay_one(letter: StoredDeadLetter) -> None:
        if summary.error is not None:
            return  # a later dead letter of this job must not overtake the one that failed
        try:
            result = await replay(letter)
        except RelayError as error:
            summary.error = summary.error or error
            return
        summary.count(result)
        on_result(result)

    async with contextlib.aclosing(_until_error(letters, summary, _RateLimit(rate_per_s))) as begun:
        await for_each(begun, replay_one, key=lambda letter: letter.job)


async def _until_error(
    letters: AsyncIterator[StoredDeadLetter], summary: ReplaySummary, rate_limit: "_RateLimit"
) -> AsyncGenerator[StoredDeadLetter]:
    try:
        async for letter in letters:
            await rate_limit.wait()
            if summary.error is not None:
                return
            yield letter
    except RelayError as error:
        summary.error = summary.error or error


class _RateLimit:
    """Allows at most this many a second; None for no limit."""

    def __init__(self, rate_per_s: float | None) -> None:
        self._interval_s = 1 / rate_per_s if rate_per_s else 0.0
        self._next_s = 0.0

    async def wait(self) -> None:
        if not self._interval_s:
            return
        begun_s = time.monotonic()
        if self._next_s > begun_s:
            await asyncio.sleep(self._next_s - begun_s)
        self._next_s = max(begun_s, self._next_s) + self._interval_s
