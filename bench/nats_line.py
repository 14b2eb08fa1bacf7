"""A NATS connection that only publishes and counts PubAcks: a blocking socket, and a few microseconds for an update.

A client library would do, and cost more than a system under test may have left on a small machine.
"""

import json
import select
import socket
from typing import Final
from urllib.parse import urlsplit

_INBOX: Final = b"_INBOX.bench"
READ_BYTES: Final = 256 * 1024
_HANDSHAKE_S: Final = 5.0
_OPTIONS: Final = {"verbose": False, "pedantic": False, "lang": "python", "version": "0", "name": "bench-publisher"}
_SUBJECT: Final = b"job.status."


class NatsLine:
    """Connected when constructed. Raises OSError if the server cannot be reached or hangs up.

    Args:
        url: `nats://host:port`.
        confirmed: whether each publication asks for a PubAck.
    """

    def __init__(self, url: str, *, confirmed: bool) -> None:
        self.published = 0
        self.acked = 0
        self.refused = 0
        """Publications that the server answered with an error instead of a PubAck."""
        address = urlsplit(url)
        self._socket = socket.create_connection((address.hostname or "", address.port or 0), _HANDSHAKE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reply = _INBOX + b" " if confirmed else b""
        self._confirmed = confirmed
        self._unread = b""
        self._pongs = 0
        self._socket.sendall(b"CONNECT %b\r\nSUB %b 1\r\n" % (json.dumps(_OPTIONS).encode(), _INBOX))
        self.flush(_HANDSHAKE_S)
        self._socket.settimeout(None)

    def close(self) -> None:
        self._socket.close()

    @property
    def outstanding(self) -> int:
        """Publications whose PubAck is not here yet."""
        return self.published - self.acked - self.refused if self._confirmed else 0

    def publication(self, uuid: str, update: bytes) -> bytes:
        """The bytes that publish an update of a job."""
        return b"PUB %b%b %b%d\r\n%b\r\n" % (_SUBJECT, uuid.encode(), self._reply, len(update), update)

    def publish(self, publications: list[bytes]) -> None:
        self._socket.sendall(b"".join(publications))
        self.published += len(publications)

    def read(self, timeout_s: float) -> None:
        """Take in what the server sent; waits for it, but not beyond `timeout_s`."""
        if select.select([self._socket], [], [], max(0.0, timeout_s))[0]:
            self.read_at_hand()

    def read_at_hand(self) -> None:
        """Take in what the server has sent by now. Raises ConnectionError if it hung up."""
        try:
            received = self._socket.recv(READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not received:
            raise ConnectionError("nats-server closed the connection of the publisher")
        self._unread += received
        self._parse()

    def flush(self, timeout_s: float) -> None:
        """Until the server has read all that was sent. Raises TimeoutError if it does not say so in time."""
        before = self._pongs
        self._socket.sendall(b"PING\r\n")
        while self._pongs == before:
            if not select.select([self._socket], [], [], timeout_s)[0]:
                raise TimeoutError(f"nats-server answered no PING within {timeout_s:g} s")
            self.read_at_hand()

    def _parse(self) -> None:
        unread, at = self._unread, 0
        while (end := unread.find(b"\r\n", at)) >= 0:
            line, after = unread[at:end], end + 2
            if line.startswith(b"MSG "):
                after += int(line[line.rindex(b" ") :]) + 2
                if after > len(unread):
                    break
                self._count(unread[end + 2 : after])
            elif line == b"PONG":
                self._pongs += 1
            elif line == b"PING":
                self._socket.sendall(b"PONG\r\n")
            elif line.startswith(b"-ERR"):
                raise ConnectionError(f"nats-server complains of the publisher: {line.decode()}")
            at = after
        self._unread = unread[at:]

    def _count(self, answer: bytes) -> None:
        if b'"error"' in answer:
            self.refused += 1
        else:
            self.acked += 1
