"""Dead letters under way: as many at a time as a window holds, those of one job one after another."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable
from typing import Any, Final

from relay.dead_letters.stored import StoredDeadLetter

WINDOW: Final = 1024
"""How many dead letters may be under way at a time."""
WINDOW_BYTES: Final = 8 * 1024 * 1024
"""How many bytes their bodies may have together; one larger than that goes alone.

Each is in memory three times at most: as it was read, in its request, and on its way to the socket.
"""


async def for_each(
    letters: AsyncIterator[StoredDeadLetter],
    work: Callable[[StoredDeadLetter], Coroutine[Any, Any, None]],
    *,
    turn: Callable[[StoredDeadLetter], Hashable],
) -> None:
    """Have `work` done on all letters, side by side; on those of the same `turn` one after another.

    What `work` or reading raises ends it, as in a TaskGroup; what is under way is dropped then.
    """
    async with asyncio.TaskGroup() as group:
        flow = _Flow(group, work, turn)
        async for letter in letters:
            await flow.room_for(letter)
            flow.begin(letter)


class _Flow:
    """What is under way."""

    def __init__(
        self,
        group: asyncio.TaskGroup,
        work: Callable[[StoredDeadLetter], Coroutine[Any, Any, None]],
        turn: Callable[[StoredDeadLetter], Hashable],
    ) -> None:
        self._group = group
        self._work = work
        self._turn = turn
        self._count = self._bytes = 0
        self._waiting: dict[Hashable, deque[StoredDeadLetter]] = {}
        """Those that come after the one of their turn that is worked on."""
        self._left = asyncio.Event()

    async def room_for(self, letter: StoredDeadLetter) -> None:
        while self._count >= WINDOW or (self._count and self._bytes + len(letter.body) > WINDOW_BYTES):
            self._left.clear()
            await self._left.wait()

    def begin(self, letter: StoredDeadLetter) -> None:
        self._count += 1
        self._bytes += len(letter.body)
        turn = self._turn(letter)
        if (waiting := self._waiting.get(turn)) is not None:
            waiting.append(letter)
        else:
            self._waiting[turn] = deque((letter,))
            self._group.create_task(self._take_turns(turn))

    async def _take_turns(self, turn: Hashable) -> None:
        waiting = self._waiting[turn]
        while waiting:
            letter = waiting.popleft()
            await self._work(letter)
            self._count -= 1
            self._bytes -= len(letter.body)
            self._left.set()
        del self._waiting[turn]
