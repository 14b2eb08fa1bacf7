"""Probes and metrics over HTTP, in the event loop that does the work: if it stands still, so do they."""

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Sequence
from typing import Final

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from relay.errors import ConfigurationError

_MAX_CONNECTIONS: Final = 100
_GRACE_S: Final = 1


class HealthServer:
    """Answers `/livez`, `/readyz` and `/metrics`.

    `/livez` is 200 as long as the event loop runs. `/readyz` is 200, or 503 while `readiness` names anything that is
    missing, with the body `{"ready": bool, "missing": [sentences]}`. `/metrics` is what `render` returns: a body and
    its content type.

    The constructor listens at once (port 0 takes a free one, see `port`), so that a port in use is known before
    anything else starts. Raises ConfigurationError, naming RELAY_HTTP_HOST or RELAY_HTTP_PORT, if it cannot.
    """

    def __init__(
        self,
        host: str,
        port: int,
        readiness: Callable[[], Sequence[str]],
        render: Callable[[], tuple[bytes, str]],
    ) -> None:
        self._socket = _listen(host, port)
        self.port: int = self._socket.getsockname()[1]
        self._server = uvicorn.Server(
            uvicorn.Config(
                _application(readiness, render),
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                date_header=False,
                server_header=False,
                limit_concurrency=_MAX_CONNECTIONS,
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
        try:
            await server.startup(sockets=[self._socket])
            await asyncio.get_running_loop().create_future()
        finally:
            await server.shutdown(sockets=[self._socket])


def _application(
    readiness: Callable[[], Sequence[str]],
    render: Callable[[], tuple[bytes, str]],
) -> Starlette:
    # Coroutines although they await nothing: Starlette would run plain functions in threads, which say
    # nothing about the event loop.
    async def livez(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_request: Request) -> Response:
        missing = list(readiness())
        return JSONResponse({"ready": not missing, "missing": missing}, status_code=503 if missing else 200)

    async def metrics(_request: Request) -> Response:
        body, content_type = render()
        return Response(body, headers={"content-type": content_type})

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
