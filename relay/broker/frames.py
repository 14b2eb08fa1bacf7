"""What the server sends, cut into frames: those of some subscriptions are taken, the client gets all others.

The client spends more on a message than nats-server does: a regular expression for each kind of line that there is, a
message object, a place in a queue, and a task that waits for it. Where many come that is most of what reading costs.
There is no public way to reach it.
"""

import contextlib
import re
from collections.abc import Callable, Generator
from typing import Any, Final

from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.protocol.parser import AWAITING_CONTROL_LINE

Take = Callable[[bytes, bytes, bytes, bytes], None]
"""Told the subject, the subject to reply to, the block of headers and the body of a message; it must not raise."""

_HEAD: Final = re.compile(rb"(H)?MSG ([^ \t\r\n]+) (\d+) (?:([^ \t\r\n]+) )?(?(1)(\d+) )(\d+)\r\n").match
_LINE_END: Final = b"\r\n"


@contextlib.contextmanager
def taken(client: Client, subscription: Subscription, take: Take) -> Generator[None]:
    """Have the messages of a subscription given to `take`, in their order, as soon as they are read."""
    inner: Any = client
    parser: Any = inner._ps  # noqa: SLF001
    frames: _Frames = parser.parse if isinstance(parser.parse, _Frames) else _Frames(parser)
    sid = b"%d" % subscription._id  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    frames.takes[sid] = take
    parser.parse = frames
    try:
        yield
    finally:
        del frames.takes[sid]
        if not frames.takes:
            del parser.parse  # it has that of its class again


class _Frames:
    """In the place of the parser's `parse`. What is not whole yet is the parser's to keep: a reconnect empties it."""

    def __init__(self, parser: Any) -> None:
        self.takes: dict[bytes, Take] = {}
        """By subscription."""
        self._parser = parser
        self._parse = parser.parse
        self._needed = 0
        """How many bytes the frame in the parser's buffer has at least."""

    async def __call__(self, data: bytes) -> None:
        parser = self._parser
        if parser.buf and parser.state == AWAITING_CONTROL_LINE:
            parser.buf.extend(data)
            if len(parser.buf) < self._needed:
                return
            data = bytes(parser.buf)
            parser.buf.clear()
        start = 0
        while start < len(data):
            if parser.state != AWAITING_CONTROL_LINE:  # the client has begun this message: it gets the rest of it
                end = start + parser.needed + len(_LINE_END) - len(parser.buf)
                await self._parse(data[start:end])
                start = end
                continue
            head = _HEAD(data, start)
            end = _end_of_line(data, start) if head is None else head.end() + int(head[6]) + len(_LINE_END)
            if end > len(data):
                self._needed = end - start
                parser.buf.extend(data[start:])
                return
            if head is not None and (take := self.takes.get(head[3])) is not None:
                body = head.end() + int(head[5] or 0)
                take(head[2], head[4] or b"", data[head.end() : body], data[body : end - len(_LINE_END)])
            else:
                await self._parse(data[start:end])
            start = end


def _end_of_line(data: bytes, start: int) -> int:
    """Behind the end of the line; if it is not there yet, one byte more than there is."""
    found = data.find(_LINE_END, start)
    return found + len(_LINE_END) if found >= 0 else len(data) + 1
