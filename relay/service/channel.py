"""The private channel between the parent of several workers and one of them: what probes ask, and the answers.

    parent ── one byte, the question ───────────► worker
           ◄─ four bytes of length, the answer ──         answers come in the order of the questions

A pair of sockets, of which the worker inherits one: nothing of it lies in a file system, nobody else can reach it,
and it ends with either of them.
"""

import asyncio
import contextlib
import json
import socket
from collections import deque
from typing import Final

from relay.core.ports import Probed

MISSING: Final = b"?"
"""What keeps updates from flowing; answered with a JSON array of sentences."""
METRICS: Final = b"#"
"""Answered with Prometheus' text format."""
_LENGTH_BYTES: Final = 4
_MOST_UNANSWERED: Final = 16


class ProbeChannel:
    """The worker's end."""

    def __init__(self, ours: socket.socket, probed: Probed) -> None:
        self._socket = ours
        self._probed = probed

    async def serve(self) -> None:
        """Answer until cancelled, or until the parent is gone."""
        reader, writer = await asyncio.open_unix_connection(sock=self._socket)
        try:
            with contextlib.suppress(ConnectionError):
                while question := await reader.read(1):
                    answer = await self._answer(question)
                    writer.write(len(answer).to_bytes(_LENGTH_BYTES) + answer)
                    await writer.drain()
        finally:
            writer.close()

    async def _answer(self, question: bytes) -> bytes:
        if question == METRICS:
            return await self._probed.exposition()
        return json.dumps(self._probed.missing()).encode()


class NoAnswer(Exception):  # noqa: N818 - named for the state it reports
    """The worker did not answer in time; `str()` says so in words."""


class WorkerChannel:
    """The parent's end, for one life of a worker. It answers while it runs."""

    def __init__(self, ours: socket.socket) -> None:
        self._socket = ours
        self._asked: deque[asyncio.Future[bytes]] = deque()
        self._writer: asyncio.StreamWriter | None = None
        self._opened = asyncio.Event()

    async def run(self) -> None:
        """Take in answers until the worker is gone, or until cancelled."""
        reader, self._writer = await asyncio.open_unix_connection(sock=self._socket)
        self._opened.set()
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES))
                    answer = await reader.readexactly(length)
                    waiting = self._asked.popleft()
                    if not waiting.done():  # nobody waits for it any more, but it has its place in the order
                        waiting.set_result(answer)
        finally:
            self._writer.close()
            self._writer = None
            for waiting in self._asked:
                if not waiting.done():
                    waiting.set_exception(NoAnswer("it has ended"))

    async def ask(self, question: bytes, timeout_s: float) -> bytes:
        """The answer to a question. Raises NoAnswer if it has not come after `timeout_s` seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._opened.wait()
                return await self._ask(question)
        except TimeoutError as error:
            raise NoAnswer(f"no answer within {timeout_s:g} s") from error

    def _ask(self, question: bytes) -> asyncio.Future[bytes]:
        if self._writer is None:
            raise NoAnswer("it has ended")
        if len(self._asked) >= _MOST_UNANSWERED:
            raise NoAnswer(f"it has left {_MOST_UNANSWERED} questions unanswered")
        waiting: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked.append(waiting)
        self._writer.write(question)
        return waiting
