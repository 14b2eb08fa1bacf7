"""A way to the Facilitator through an HTTP proxy: the CONNECT request, before anything of a WebSocket."""

import asyncio
import base64
from typing import Final, cast
from urllib.parse import SplitResult, unquote

from websockets.exceptions import ProxyError
from websockets.http11 import Response
from websockets.streams import StreamReader
from websockets.uri import WebSocketURI

from relay.contract.text import escape

_OK: Final = range(200, 300)
_SHOWN_CHARS: Final = 80


class Tunnel(asyncio.Protocol):
    """The connection to a proxy, until `opened` says that it passes everything on. Then give it another protocol.

    `opened` fails with ProxyError if the proxy refuses, and with OSError if it hangs up.
    """

    def __init__(self, uri: WebSocketURI, proxy: SplitResult) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._uri = uri
        self._proxy = proxy
        self._reader = StreamReader()
        self._parser = Response.parse(
            self._reader.read_line, self._reader.read_exact, self._reader.read_to_eof, proxy=True
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(self._request())

    def data_received(self, data: bytes) -> None:
        if self.opened.done():
            return
        self._reader.feed_data(data)
        try:
            next(self._parser)
        except StopIteration as parsed:
            self._answered(parsed.value)
        except Exception as error:  # noqa: BLE001 - whatever the parser does not understand
            self.opened.set_exception(ProxyError(f"the proxy does not answer with HTTP: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        del exc  # in words it says less
        if not self.opened.done():
            self.opened.set_exception(ConnectionResetError("the proxy hung up without an answer"))

    def _request(self) -> bytes:
        host = f"[{self._uri.host}]" if ":" in self._uri.host else self._uri.host
        lines = [f"CONNECT {host}:{self._uri.port} HTTP/1.1", f"Host: {host}:{self._uri.port}"]
        if self._proxy.username is not None:
            secret = f"{unquote(self._proxy.username)}:{unquote(self._proxy.password or '')}"
            lines.append(f"Proxy-Authorization: Basic {base64.b64encode(secret.encode()).decode()}")
        return "\r\n".join([*lines, "", ""]).encode()

    def _answered(self, response: Response) -> None:
        if response.status_code in _OK:
            self.opened.set_result(None)
            return
        reason = escape(response.reason_phrase)[:_SHOWN_CHARS]
        refused = (
            f"the proxy refuses the way to {self._uri.host}:{self._uri.port}: HTTP {response.status_code} {reason}"
        )
        self.opened.set_exception(ProxyError(refused))
