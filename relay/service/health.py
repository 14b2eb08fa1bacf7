"""Probes and metrics over HTTP, answered in the event loop that does the work: if it hangs, they get no answer.

Built on h11, which parses and writes HTTP and leaves the connections to us. A web server would bring routes, middleware
and keep-alive, which are not needed. And uvicorn does not limit the duration of a request, does not prefer the newest
client when it has too many connections, and takes over the signals of the process.
"""

import asyncio
import contextlib
import errno
import json
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any, Final, NamedTuple, Protocol

import h11

from relay.contract.errors import ConfigurationError
from relay.observability.logs import get_logger
from relay.observability.metrics import CONTENT_TYPE

_log = get_logger(__name__)

_MAX_CONNECTIONS: Final = 64
_TIMEOUT_S: Final = 10.0
_GRACE_S: Final = 1.0
_CHUNK_BYTES: Final = 65536
_TEXT: Final = "text/plain; charset=utf-8"
_METHODS: Final = ("GET", "HEAD")
_ALL_INTERFACES: Final = ("0.0.0.0", "::")  # noqa: S104 - only if the setting names one of them
_NO_SUCH_ADDRESS: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
_INVALID: Final = "Invalid HTTP request received."


class ProbeAnswers(Protocol):
    """Gives the answers to probes: those of one worker, or of all workers of a parent. Cancelling it is safe."""

    def hung(self) -> Sequence[str]:
        """What hangs, in words; empty if nothing does."""
        ...

    async def readiness(self) -> Mapping[str, Any]:
        """The body of `/readyz`: `ready`, a bool, and `missing`, sentences; and `warnings`, if there are any."""
        ...

    async def exposition(self) -> bytes:
        """The metrics in Prometheus' text format, of relay.observability.metrics.CONTENT_TYPE."""
        ...


class HealthServer:
    """Answers `/livez`, `/readyz` and `/metrics`.

    `/livez` is 200 as long as the event loop runs and `answers` names nothing that hangs, else 503. `/readyz` is 200,
    or 503 if it is not `ready`, with the body that `answers` gives.

    Each connection carries one request and lasts at most `timeout_s` seconds. Above 64 connections the oldest is
    closed for the newest. So clients that send nothing, or send slowly, do not keep others from being answered.

    Args:
        listeners: sockets that listen, over TCP (see `listen`) or a Unix socket. They are closed when `serve` ends.
    """

    def __init__(
        self, listeners: Sequence[socket.socket], answers: ProbeAnswers, *, timeout_s: float = _TIMEOUT_S
    ) -> None:
        self._listeners = listeners
        self._address = listeners[0].getsockname()
        self._answers = answers
        self._timeout_s = timeout_s
        self._paths = {b"/livez": self._livez, b"/readyz": self._readyz, b"/metrics": self._metrics}
        self._open: dict[asyncio.Task[None], bool] = {}
        """The connections, oldest first, and whether the request has been read."""

    @property
    def port(self) -> int:
        """The TCP port on which it listens, the same for all addresses."""
        return self._address[1]

    def close(self) -> None:
        """Close the listeners. Only needed if `serve` is never reached."""
        for listener in self._listeners:
            listener.close()

    async def serve(self) -> None:
        """Serve until cancelled; then finish the answers under way, for at most a second, and close the listeners."""
        try:
            servers = [await self._server(listener) for listener in self._listeners]
            try:
                for server in servers:
                    await server.start_serving()
                await asyncio.get_running_loop().create_future()
            finally:
                for server in servers:
                    server.close()
                await self._finish()
        finally:
            self.close()

    async def _server(self, listener: socket.socket) -> asyncio.Server:
        start = asyncio.start_unix_server if listener.family == socket.AF_UNIX else asyncio.start_server
        return await start(self._on_connection, sock=listener, backlog=_MAX_CONNECTIONS, start_serving=False)

    async def _finish(self) -> None:
        for connection, answering in self._open.items():
            if not answering:
                connection.cancel()
        if self._open:
            _, late = await asyncio.wait(self._open, timeout=_GRACE_S)
            for connection in late:
                connection.cancel()

    def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= _MAX_CONNECTIONS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.cancel()
        connection = asyncio.create_task(self._converse(reader, writer))
        self._open[connection] = False
        connection.add_done_callback(partial(self._ended, writer))

    def _ended(self, writer: asyncio.StreamWriter, connection: asyncio.Task[None]) -> None:
        self._open.pop(connection, None)
        writer.transport.abort()  # a no-op if the answer was sent and the transport closed

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):  # the client is gone, or its time is over
            async with asyncio.timeout(self._timeout_s):
                writer.write(await self._answer(reader))
                writer.close()
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        http = h11.Connection(h11.SERVER)
        try:
            request = await _read_request(http, reader)
        except h11.RemoteProtocolError:
            _log.warning(_INVALID)
            return _serialized(http, _plain(HTTPStatus.BAD_REQUEST, _INVALID))
        if request is None:
            return b""
        connection = asyncio.current_task()
        assert connection is not None, "_on_connection makes a task for each connection"
        self._open[connection] = True
        return _serialized(http, await self._respond(request), with_body=request.method != b"HEAD")

    async def _respond(self, request: h11.Request) -> "_Response":
        path = request.target.partition(b"?")[0].removesuffix(b"/")
        answer: Callable[[], Awaitable[_Response]] | None = self._paths.get(path)
        if answer is None:
            return _plain(HTTPStatus.NOT_FOUND)
        if request.method.decode() not in _METHODS:
            return _plain(HTTPStatus.METHOD_NOT_ALLOWED)
        try:
            return await answer()
        except Exception:  # noqa: BLE001 - logged; the next probe may be answered
            _log.exception("a probe could not be answered", path=path.decode())
            return _plain(HTTPStatus.INTERNAL_SERVER_ERROR)

    async def _livez(self) -> "_Response":
        hung = self._answers.hung()
        text = "".join(f"{each}\n" for each in hung) or "ok\n"
        return _plain(HTTPStatus.SERVICE_UNAVAILABLE if hung else HTTPStatus.OK, text)

    async def _readyz(self) -> "_Response":
        readiness = await self._answers.readiness()
        status = HTTPStatus.OK if readiness["ready"] else HTTPStatus.SERVICE_UNAVAILABLE
        body = json.dumps(readiness, ensure_ascii=False, separators=(",", ":")).encode()
        return _Response(status, "application/json", body)

    async def _metrics(self) -> "_Response":
        return _Response(HTTPStatus.OK, CONTENT_TYPE, await self._answers.exposition())


class _Response(NamedTuple):
    status: HTTPStatus
    content_type: str
    body: bytes


def _plain(status: HTTPStatus, text: str | None = None) -> _Response:
    return _Response(status, _TEXT, (text or status.phrase).encode())


async def _read_request(http: h11.Connection, reader: asyncio.StreamReader) -> h11.Request | None:
    """The request without its body, or None if the client sent none. Raises h11.RemoteProtocolError."""
    while (event := http.next_event()) is h11.NEED_DATA:
        http.receive_data(await reader.read(_CHUNK_BYTES))
    return event if isinstance(event, h11.Request) else None


def _serialized(http: h11.Connection, response: _Response, *, with_body: bool = True) -> bytes:
    headers = [("connection", "close"), ("content-length", str(len(response.body)))]
    headers.append(("content-type", response.content_type))
    if response.status is HTTPStatus.METHOD_NOT_ALLOWED:
        headers.append(("allow", ", ".join(_METHODS)))
    head = h11.Response(status_code=response.status, reason=response.status.phrase, headers=headers)
    parts = [head, *([h11.Data(data=response.body)] if with_body else []), h11.EndOfMessage()]
    return b"".join(http.send(part) or b"" for part in parts)


def listen(host: str, port: int, variables: str = "RELAY_HTTP") -> list[socket.socket]:
    """Sockets that listen there, one for each address of the host; port 0 takes a free one, the same for all.

    The address of all interfaces, 0.0.0.0 or ::, stands for those of both families. A family that this system does not
    have is left out, unless no other is left.

    Raises ConfigurationError if it cannot; it names `variables`, with _HOST or _PORT at the end.
    """
    hosts = _ALL_INTERFACES if host in _ALL_INTERFACES else (host,)
    try:
        found = [each for name in hosts for each in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)]
    except (socket.gaierror, UnicodeError) as error:  # the latter for what cannot be a host name at all
        raise _unusable_host(host, str(error), variables) from error
    listeners: list[socket.socket] = []
    missing: OSError | None = None
    for family, address in dict.fromkeys((family, address[0]) for family, _, _, _, address in found):
        try:
            taken = listeners[0].getsockname()[1] if listeners else port
            listeners.append(socket.create_server((str(address), taken), family=family))
        except OSError as error:
            if error.errno not in _NO_SUCH_ADDRESS:
                for listener in listeners:
                    listener.close()
                raise _unusable(host, port, error, variables) from error
            missing = error
    if missing is not None and not listeners:
        raise _unusable(host, port, missing, variables) from missing
    return listeners


def _unusable(host: str, port: int, error: OSError, variables: str) -> ConfigurationError:
    cause = os.strerror(error.errno or 0)
    if error.errno not in {errno.EADDRINUSE, errno.EACCES}:
        return _unusable_host(host, cause, variables)
    allowed = f"{cause} on {host}; give a port that is free and open to this user, or 0 for any free one"
    return ConfigurationError(f"{variables}_PORT", str(port), allowed)


def _unusable_host(host: str, cause: str, variables: str) -> ConfigurationError:
    return ConfigurationError(f"{variables}_HOST", host, f"{cause}; give a host name or address of this machine")
