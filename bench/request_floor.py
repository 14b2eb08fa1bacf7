"""The rate of requests that nats-server can serve one connection: the floor of `relay dlq replay`.

It sends what a replay sends, encoded beforehand, and only counts the answers.
"""

import asyncio
import json
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from relay.contract.subjects import DLQ_STREAM, STATUS_STREAM, api_message_delete
from relay.nats.frames import publication

_PUBLISHED, _REMOVED = b"_INBOX.floor.published", b"_INBOX.floor.removed"
_CONNECT = b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nSUB _INBOX.floor.* 1\r\n'
_REQUESTS_TO_REMOVE = 2


@dataclass(slots=True)
class _Answers:
    """Counts answers in a stream of bytes."""

    published: int = 0
    removed: int = 0
    _tail: bytes = b""

    def feed(self, chunk: bytes) -> None:
        text, _, self._tail = (self._tail + chunk).rpartition(b"\r\n")
        self.published += text.count(b"MSG " + _PUBLISHED)
        self.removed += text.count(b"MSG " + _REMOVED)


def request(subject: str, body: dict[str, int | bool]) -> bytes:
    return publication(subject.encode(), json.dumps(body).encode(), _REMOVED)


def publish(subject: str, body: bytes, headers: dict[str, str]) -> bytes:
    return publication(subject.encode(), body, _PUBLISHED, headers)


def removal(source: int, letter: int) -> bytes:
    """The two requests that remove a dead letter with its source."""
    return b"".join(
        request(api_message_delete(stream), {"seq": sequence, "no_erase": True})
        for stream, sequence in ((STATUS_STREAM, source), (DLQ_STREAM, letter))
    )


async def measure(url: str, work: list[tuple[bytes, bytes]], window: int) -> float:
    """Seconds until all is done: `window` publishes at a time, each followed by its removals after its PubAck."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=1 << 22)
    await reader.readline()
    writer.write(_CONNECT)
    answers, published, removed = _Answers(), 0, 0
    began = time.perf_counter()
    while answers.removed < len(work) * _REQUESTS_TO_REMOVE:
        publishes = [publish for publish, _ in work[published : answers.removed // _REQUESTS_TO_REMOVE + window]]
        removals = [removal for _, removal in work[removed : answers.published]]
        published, removed = published + len(publishes), answers.published
        writer.write(b"".join(publishes + removals))
        chunk = await reader.read(1 << 20)
        if not chunk:
            raise SystemExit("nats-server closed the connection")
        answers.feed(chunk)
    took_s = time.perf_counter() - began
    writer.close()
    await writer.wait_closed()
    return took_s
