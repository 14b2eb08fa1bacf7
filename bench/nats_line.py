"""A NATS connection that takes little processor time: a blocking socket, a few microseconds for a message.

A client library could use more processor time than is left for the system under test on a small machine.
"""

import json
import os
import select
import socket
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from relay.nats.frames import publication

READ_BYTES: Final = 256 * 1024
_HANDSHAKE_S: Final = 5.0
_OPTIONS: Final = {
    "verbose": False,
    "pedantic": False,
    "lang": "python",
    "version": "0",
    "name": "bench",
    "headers": True,
    "no_responders": True,
}
_SUBJECT: Final = b"job.status."

Take = Callable[[bytes, bytes], None]
"""Called with the subject and the content (headers if there are any, and body) of a message to the inbox."""


class NatsLine:
    """Connected when constructed. Raises OSError if the server cannot be reached or closes the connection.

    Args:
        url: `nats://host:port`.
    """

    def __init__(self, url: str, take: Take) -> None:
        self.inbox = b"_INBOX.bench-%d" % os.getpid()
        """The subject for answers; subjects below it are received as well."""
        address = urlsplit(url)
        self._socket = socket.create_connection((address.hostname or "", address.port or 0), _HANDSHAKE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._take = take
        self._unread = b""
        self._pongs = 0
        subscriptions = b"SUB %b 1\r\nSUB %b.* 2\r\n" % (self.inbox, self.inbox)
        self.send(b"CONNECT %b\r\n%b" % (json.dumps(_OPTIONS).encode(), subscriptions))
        self.flush(_HANDSHAKE_S)
        self._socket.settimeout(None)

    def close(self) -> None:
        self._socket.close()

    def send(self, lines: bytes) -> None:
        """Send lines of NATS's protocol; see `publication` in relay/nats/frames.py."""
        self._socket.sendall(lines)

    def read(self, timeout_s: float) -> None:
        """Read what the server sends next; waits for it at most `timeout_s`."""
        if select.select([self._socket], [], [], max(0.0, timeout_s))[0]:
            self.read_at_hand()

    def read_at_hand(self) -> None:
        """Read what the server has sent so far. Raises ConnectionError if it closed the connection."""
        try:
            received = self._socket.recv(READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not received:
            raise ConnectionError("nats-server closed the connection of the benchmark")
        self._unread += received
        self._parse()

    def flush(self, timeout_s: float) -> None:
        """Wait until the server has read all that was sent. Raises TimeoutError after `timeout_s`."""
        before = self._pongs
        self.send(b"PING\r\n")
        while self._pongs == before:
            if not select.select([self._socket], [], [], timeout_s)[0]:
                raise TimeoutError(f"nats-server answered no PING within {timeout_s:g} s")
            self.read_at_hand()

    def _parse(self) -> None:
        unread, at = self._unread, 0
        while (end := unread.find(b"\r\n", at)) >= 0:
            line, after = unread[at:end], end + 2
            if line.startswith((b"MSG ", b"HMSG ")):
                after += int(line[line.rindex(b" ") :]) + 2
                if after > len(unread):
                    break
                self._take(line.split(b" ", 2)[1], unread[end + 2 : after - 2])
            elif line == b"PONG":
                self._pongs += 1
            elif line == b"PING":
                self.send(b"PONG\r\n")
            elif line.startswith(b"-ERR"):
                raise ConnectionError(f"nats-server complains of the benchmark: {line.decode()}")
            at = after
        self._unread = unread[at:]


class UpdateLine(NatsLine):
    """Publishes updates of jobs and counts the PubAcks.

    Args:
        url: `nats://host:port`.
        confirmed: whether each publication asks for a PubAck.
    """

    def __init__(self, url: str, *, confirmed: bool) -> None:
        self.published = 0
        self.acked = 0
        self.refused = 0
        """How many publications the server answered with an error instead of a PubAck."""
        self._confirmed = confirmed
        super().__init__(url, self._count)

    @property
    def outstanding(self) -> int:
        """How many publications still wait for their PubAck."""
        return self.published - self.acked - self.refused if self._confirmed else 0

    def update(self, uuid: str, body: bytes) -> bytes:
        """The lines that publish an update of a job."""
        return publication(_SUBJECT + uuid.encode(), body, self.inbox if self._confirmed else b"")

    def publish(self, updates: list[bytes]) -> None:
        self.send(b"".join(updates))
        self.published += len(updates)

    def _count(self, _subject: bytes, answer: bytes) -> None:
        # If no stream captures the subject, nobody answers, and the server says so in headers.
        if b'"error"' in answer or answer.startswith(b"NATS/1.0"):
            self.refused += 1
        else:
            self.acked += 1
