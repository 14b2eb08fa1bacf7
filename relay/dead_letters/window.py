"""Working on many dead letters at a time: as many as a window holds, those of one job one after another."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable
from typing import Any, Final

from relay.dead_letters.stored import StoredDeadLetter

WINDOW: Final = 1024
"""How many dead letters may be under way at a time."""
WINDOW_BYTES: Final = 8 * 1024 * 1024
"""How many bytes they may have together, headers included. A larger one is worked on alone.

Each is in memory three times at most: as it was read, in its request, and on its way to the socket.
"""

Work = Callable[[StoredDeadLetter], Coroutine[Any, Any, None]]


async def for_each(
    letters: AsyncIterator[StoredDeadLetter],
    work: Work,
    *,
    key: Callable[[StoredDeadLetter], Hashable],
    window: int = WINDOW,
    window_bytes: int = WINDOW_BYTES,
) -> None:
    """Do `work` on all letters: side by side, but one after another and in order if they have the same key.

    If `work` or reading raises, or if this is cancelled, what is under way is cancelled, as in a TaskGroup.
    """
    async with asyncio.TaskGroup() as group:
        in_progress = _Window(group, work, window, window_bytes)
        async for letter in letters:
            await in_progress.wait_for_room(letter)
            in_progress.start(letter, key(letter))


class _Window:
    """The letters under way: those that are worked on, and those that wait for another one with the same key."""

    def __init__(self, group: asyncio.TaskGroup, work: Work, most: int, most_bytes: int) -> None:
        self._group = group
        self._work = work
        self._most = most
        self._most_bytes = most_bytes
        self._count = self._bytes = 0
        self._waiting: dict[Hashable, deque[StoredDeadLetter]] = {}
        """By key: the letters that wait for the one that is worked on."""
        self._finished = asyncio.Event()

    async def wait_for_room(self, letter: StoredDeadLetter) -> None:
        while self._count >= self._most or (self._count and self._bytes + letter.size_bytes > self._most_bytes):
            self._finished.clear()
            await self._finished.wait()

    def start(self, letter: StoredDeadLetter, key: Hashable) -> None:
        self._count += 1
        self._bytes += letter.size_bytes
        if (waiting := self._waiting.get(key)) is not None:
            waiting.append(letter)
        else:
            self._waiting[key] = deque((letter,))
            self._group.create_task(self._work_on(key))

    async def _work_on(self, key: Hashable) -> None:
        waiting = self._waiting[key]
        while waiting:
            letter = waiting.popleft()
            await self._work(letter)
            self._count -= 1
            self._bytes -= letter.size_bytes
            self._finished.set()
        del self._waiting[key]
