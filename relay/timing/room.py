"""Room for a number of bytes, shared by all that need some at the same time."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator


class Room:
    """Room for `limit_bytes`, given in the order in which it is asked for.

    Whatever needs more than the limit gets all of it, alone: it waits until nothing else is held. So each is given room
    sooner or later, and at most the limit is held, or one that is larger.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def held_bytes(self) -> int:
        """What is held now."""
        return self._held_bytes

    async def take(self, size_bytes: int) -> None:
        """Wait for room and hold it until `release` is called with the same size. If cancelled, nothing is held."""
        if not self._waiting and self._fits(size_bytes):
            self._held_bytes += size_bytes
            return
        given = asyncio.get_running_loop().create_future()
        entry = (size_bytes, given)
        self._waiting.append(entry)
        try:
            await given
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
                self._give()  # those behind it may need less
            elif not given.cancelled():
                self.release(size_bytes)  # it was given just before the cancellation
            raise

    def release(self, size_bytes: int) -> None:
        """Give room back."""
        self._held_bytes -= size_bytes
        self._give()

    @contextlib.asynccontextmanager
    async def held(self, size_bytes: int) -> AsyncGenerator[None]:
        """Hold room inside the block."""
        await self.take(size_bytes)
        try:
            yield
        finally:
            self.release(size_bytes)

    def _fits(self, size_bytes: int) -> bool:
        return not self._held_bytes or self._held_bytes + size_bytes <= self._limit_bytes

    def _give(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size_bytes, given = self._waiting.popleft()
            if not given.cancelled():
                self._held_bytes += size_bytes
                given.set_result(None)
