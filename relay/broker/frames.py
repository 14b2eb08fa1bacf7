r"""What the server sends, cut into frames: each message goes to who took its subscription, or else to the client.

The client's own parser spends more on a message than the server does: a regular expression for each kind of line that
there is, and a buffer that is moved with each piece. And it ends a subject at \v and \f, too, where the server ends
it at a blank, tab or line end only: what follows would be taken for the subscription's id, and the connection would
break, again at each redelivery. There is no public way to reach it.
"""

import contextlib
import re
from collections.abc import Callable, Generator
from typing import Any, Final

from nats.aio.client import Client
from nats.aio.subscription import Subscription

Take = Callable[[bytes, bytes, bytes, bytes], None]
"""Told the subject, the subject to reply to, the block of headers and the body of a message; it must not raise."""

_HEAD: Final = re.compile(rb"(H)?MSG ([^ \t\r\n]+) (\d+) (?:([^ \t\r\n]+) )?(?(1)(\d+) )(\d+)\r\n").match
_LINE_END: Final = b"\r\n"


def read_frames(client: Client) -> None:
    """Have a client read by frames; before it is connected."""
    inner: Any = client
    inner._ps.parse = _Frames(client)  # noqa: SLF001


@contextlib.contextmanager
def taken(client: Client, subscription: Subscription, take: Take) -> Generator[None]:
    """Have the messages of a subscription given to `take`, in their order, as soon as they are read.

    That spares them a message object, a place in a queue, and a task that waits for it.
    """
    inner: Any = client
    takes: dict[bytes, Take] = inner._ps.parse.takes  # noqa: SLF001
    sid = b"%d" % subscription._id  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    takes[sid] = take
    try:
        yield
    finally:
        del takes[sid]


class _Frames:
    """In the place of the parser's `parse`. What is not whole yet is the parser's to keep: a reconnect empties it."""

    def __init__(self, client: Any) -> None:
        self.takes: dict[bytes, Take] = {}
        """By subscription."""
        self._client = client
        self._parser = client._ps  # noqa: SLF001
        self._parse_line = client._ps.parse  # noqa: SLF001
        self._needed = 0
        """How many bytes the frame in the parser's buffer has at least."""

    async def __call__(self, data: bytes) -> None:
        unread: bytearray = self._parser.buf
        if unread:
            unread.extend(data)
            if len(unread) < self._needed:
                return
            data = bytes(unread)
            unread.clear()
        start = 0
        while start < len(data):
            head = _HEAD(data, start)
            end = _end_of_line(data, start) if head is None else head.end() + int(head[6]) + len(_LINE_END)
            if end > len(data):
                self._needed = end - start
                self._parser.buf.extend(data[start:])
                return
            if head is None:
                await self._parse_line(data[start:end])
            else:
                await self._give(data, head, end - len(_LINE_END))
            start = end

    async def _give(self, data: bytes, head: re.Match[bytes], end: int) -> None:
        _, subject, sid, reply, headers_size, _ = head.groups()
        begin = body = head.end()
        headers = b""
        if headers_size:
            body += int(headers_size)
            headers = data[begin:body]
        if (take := self.takes.get(sid)) is not None:
            take(subject, reply or b"", headers, data[body:end])
        else:
            await self._client._process_msg(int(sid), subject, reply or b"", data[body:end], headers)  # noqa: SLF001


def _end_of_line(data: bytes, start: int) -> int:
    """Behind the end of the line; if it is not there yet, one byte more than there is."""
    found = data.find(_LINE_END, start)
    return found + len(_LINE_END) if found >= 0 else len(data) + 1
