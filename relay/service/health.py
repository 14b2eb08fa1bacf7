"""Probes and metrics over HTTP, in the event loop that does the work: if it stands still, so do they."""

import asyncio
import errno
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, cast

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from relay.contract.errors import ConfigurationError
from relay.core.ports import Probed
from relay.observability.metrics import CONTENT_TYPE

_MAX_CONNECTIONS: Final = 64
_PATIENCE_S: Final = 10.0
"""How long a connection may take from its first byte to the last of its answer."""
_GRACE_S: Final = 1


class Answers(Protocol):
    """What the probes answer with."""

    def hung(self) -> Sequence[str]:
        """What stands still, in words; empty if nothing does."""
        ...

    async def readiness(self) -> Mapping[str, Any]:
        """The body of `/readyz`: `ready`, a bool, and `missing`, sentences."""
        ...

    async def exposition(self) -> bytes:
        """The metrics, in the form of relay.metrics.CONTENT_TYPE."""
        ...


class OneWorker:
    """The answers of a worker that serves its own probes."""

    def __init__(self, probed: Probed) -> None:
        self._probed = probed

    def hung(self) -> Sequence[str]:
        return ()  # or nobody would call this

    async def readiness(self) -> Mapping[str, Any]:
        missing = list(self._probed.missing())
        return {"ready": not missing, "missing": missing}

    async def exposition(self) -> bytes:
        return await self._probed.exposition()


class HealthServer:
    """Answers `/livez`, `/readyz` and `/metrics`.

    `/livez` is 200 as long as the event loop runs and `answers` names nothing that hangs, else 503. `/readyz` is 200,
    or 503 if it is not `ready`, with the body that `answers` gives.

    Each connection is good for one request, and for 10 seconds; of more than 64 the oldest is closed for the newest.
    So clients that connect and send nothing, or send slowly, keep nobody else from being answered.

    The constructor listens at once (port 0 takes a free one, see `port`), so that a port in use is known before
    anything else starts. Raises ConfigurationError, naming RELAY_HTTP_HOST or RELAY_HTTP_PORT, if it cannot.
    """

    def __init__(self, host: str, port: int, answers: Answers) -> None:
        self._socket = _listen(host, port)
        self.port: int = self._socket.getsockname()[1]
        self._server = uvicorn.Server(
            uvicorn.Config(
                _application(answers),
                http=cast("type[asyncio.Protocol]", _Connections().make_protocol),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                date_header=False,
                server_header=False,
                headers=[("connection", "close")],
                timeout_graceful_shutdown=_GRACE_S,
            )
        )

    def close(self) -> None:
        """Give up the port. Only needed if `serve` is never reached."""
        self._socket.close()

    async def serve(self) -> None:
        """Serve until cancelled; then finish the answers under way, for at most a second, and close the port."""
        # Not uvicorn's own serve(): that takes over the signals of the process, and polls for its end.
        server = self._server
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        server.server_state.default_headers = server.config.encoded_headers
        try:
            await server.startup(sockets=[self._socket])
            await asyncio.get_running_loop().create_future()
        finally:
            await server.shutdown(sockets=[self._socket])


class _Connections:
    """The connections that are open, oldest first: how many and how long is bounded here, because uvicorn does not.

    uvicorn gives up on a client only between two requests, and beyond its own limit it turns away the newest.
    """

    def __init__(self) -> None:
        self._open: dict[asyncio.BaseTransport, asyncio.TimerHandle] = {}

    def make_protocol(self, *args: Any, **kwargs: Any) -> asyncio.Protocol:
        """What uvicorn calls for each connection."""
        return _Connection(H11Protocol(*args, **kwargs), self)

    def opened(self, transport: asyncio.Transport) -> None:
        if len(self._open) >= _MAX_CONNECTIONS:
            oldest = cast("asyncio.Transport", next(iter(self._open)))
            self.closed(oldest)
            oldest.abort()
        self._open[transport] = asyncio.get_running_loop().call_later(_PATIENCE_S, transport.abort)

    def closed(self, transport: asyncio.BaseTransport) -> None:
        if (patience := self._open.pop(transport, None)) is not None:
            patience.cancel()


class _Connection(asyncio.Protocol):
    """One connection: uvicorn's protocol, watched."""

    def __init__(self, inner: H11Protocol, connections: _Connections) -> None:
        self._inner = inner
        self._connections = connections
        self.data_received = inner.data_received
        self.eof_received = inner.eof_received
        self.pause_writing = inner.pause_writing
        self.resume_writing = inner.resume_writing

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connections.opened(cast("asyncio.Transport", transport))
        self._inner.connection_made(cast("asyncio.Transport", transport))

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.closed(self._inner.transport)
        self._inner.connection_lost(exc)


def _application(answers: Answers) -> Starlette:
    # Coroutines although some await nothing: Starlette would run plain functions in threads, which say
    # nothing about the event loop.
    async def livez(_request: Request) -> Response:
        hung = answers.hung()
        return PlainTextResponse("".join(f"{each}\n" for each in hung) or "ok\n", status_code=503 if hung else 200)

    async def readyz(_request: Request) -> Response:
        readiness = await answers.readiness()
        return JSONResponse(readiness, status_code=200 if readiness["ready"] else 503)

    async def metrics(_request: Request) -> Response:
        return Response(await answers.exposition(), headers={"content-type": CONTENT_TYPE})

    return Starlette(routes=[Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (socket.gaierror, UnicodeError) as error:  # the latter for what cannot be a host name at all
        raise _unusable_host(host, str(error)) from error
    except OSError as error:
        cause = os.strerror(error.errno or 0)
        if error.errno not in {errno.EADDRINUSE, errno.EACCES}:
            raise _unusable_host(host, cause) from error
        allowed = f"{cause} on {host}; give a port that is free and open to this user, or 0 for any free one"
        raise ConfigurationError("RELAY_HTTP_PORT", str(port), allowed) from error


def _unusable_host(host: str, cause: str) -> ConfigurationError:
    return ConfigurationError("RELAY_HTTP_HOST", host, f"{cause}; give a host name or address of this machine")
