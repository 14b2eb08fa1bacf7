"""A WebSocket client that reads and writes in batches: one system call for as many messages as there are.

Framing and handshakes are done by the `websockets` library, in its form without I/O. Its asyncio client does the I/O
message by message; docs/benchmarks.md says what that costs at full load.
"""

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, cast
from urllib.parse import SplitResult, urlsplit

from websockets.client import ClientProtocol
from websockets.frames import Close, CloseCode, Frame, Opcode
from websockets.protocol import State
from websockets.uri import WebSocketURI, parse_uri

from relay.contract.text import escape, redact_url
from relay.facilitator.framing import MASK_BYTES, ShortTexts, framed
from relay.facilitator.handshake_errors import explained, no_answer
from relay.facilitator.tunnel import Tunnel
from relay.network.dialer import Dialer

_TCP_TIMEOUT_S: Final = 2.0
"""For a TCP connection to any address of the name. Short, because only the network and the kernel take part in it, and
while we wait for packets that are dropped we do not notice that the server is back."""
_END_OF_RESPONSE: Final = b"\r\n\r\n"
_UNREAD_BATCH: Final = 256
"""With more messages than this waiting to be received, nothing more is read from the network."""
_UNREAD_BYTES: Final = 1024 * 1024
"""The same for their bytes. So there is at most one more message, of the largest size."""


class ConnectionClosed(Exception):  # noqa: N818 - it is the normal end of every connection
    """The connection is closed or closing. `close` is the close frame, None if there was none.

    `ours`: we have closed it, by ourselves or because the other side has broken the protocol.
    """

    def __init__(self, close: Close | None, *, ours: bool = False) -> None:
        self.close = close
        self.ours = ours
        if close is None:
            told = "dropped without a close frame"
        else:
            reason = escape(close.reason)
            told = f"given up: {reason or close.code}" if ours else f"closed with {close.code} {reason}".rstrip()
        super().__init__(told)


class CannotConnect(Exception):  # noqa: N818 - named for the state it reports
    """No WebSocket was opened; the message says why."""


class WebSocket(asyncio.Protocol):
    """One connection; made by `connect`. It answers pings and close frames by itself."""

    def __init__(self, protocol: ClientProtocol, close_timeout_s: float, on_writable: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self.writable = False
        """Whether more may be sent: the connection is open, and the network keeps up. See `on_writable`."""
        self._protocol = protocol
        self._close_timeout_s = close_timeout_s
        self._on_writable = on_writable
        self._transport: asyncio.Transport | None = None
        self._shaken = loop.create_future()
        self._gone = loop.create_future()
        self.response = b""
        """What has come of the answer to the request for a WebSocket, and what came together with its end."""
        self._short_texts = ShortTexts()
        self._fragments: list[bytes] = []
        self._messages: list[bytes] = []
        self._receiving: asyncio.Future[list[bytes]] | None = None
        self._congested = False
        self._ponged = asyncio.Event()
        self._hang_up: asyncio.TimerHandle | None = None

    def send(self, *texts: bytes) -> None:
        """Write text messages, each as UTF-8, with one call. Raises ConnectionClosed."""
        if self._protocol.state is not State.OPEN:
            raise self._ended()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(framed(texts, os.urandom(MASK_BYTES * len(texts)))))

    def _flush(self) -> None:
        self.writable = self._protocol.state is State.OPEN and not self._congested
        batch = self._protocol.data_to_send()
        if self._transport is None or self._transport.is_closing():
            return
        if batch:
            self._transport.write(b"".join(batch))
            if not batch[-1] and self._transport.can_write_eof():  # the protocol asks for a half-close in this way
                self._transport.write_eof()
        if self._hang_up is None and self._protocol.close_expected():
            self._hang_up = asyncio.get_running_loop().call_later(self._close_timeout_s, self._abort)

    def receive(self) -> asyncio.Future[list[bytes]]:
        """Wait for messages: returns all that have arrived. Raises ConnectionClosed when no more will come.

        For one caller at a time. It is a future, not a coroutine, so that messages go straight to the waiting task.
        Cancelling it is safe: what arrives later is kept for the next call.
        """
        self._receiving = asyncio.get_running_loop().create_future()
        if self._transport is not None:
            self._transport.resume_reading()
        if self._messages or self._transport is None:
            self._hand_over()
        return self._receiving

    async def keep_alive(self, interval_s: float, timeout_s: float) -> None:
        """Ping every `interval_s`; close the connection and return when a pong takes longer than `timeout_s`.

        Cancelling it is safe: the connection stays open.
        """
        while self._protocol.state is State.OPEN:
            await asyncio.sleep(interval_s)
            if self._protocol.state is not State.OPEN:
                return
            self._ponged.clear()
            self._protocol.send_ping(b"")
            self._flush()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._ponged.wait()
            except TimeoutError:
                self._protocol.fail(CloseCode.INTERNAL_ERROR, "keepalive ping timeout")
                self._flush()

    async def close(self, code: int = CloseCode.NORMAL_CLOSURE) -> None:
        """Close, unless it is closing already, and wait until the connection is gone. Cancelling the wait is safe."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(code)
        elif self._protocol.state is State.CONNECTING:
            self._abort()
        self._flush()
        await asyncio.shield(self._gone)

    def _ended(self) -> ConnectionClosed:
        protocol = self._protocol
        received, sent = protocol.close_rcvd, protocol.close_sent
        if sent is None or protocol.close_rcvd_then_sent:
            return ConnectionClosed(received)
        if sent.code == CloseCode.INVALID_DATA:
            # From them, this code would complain about a message of ours.
            not_text = Close(CloseCode.PROTOCOL_ERROR, "the reason in its close frame is not UTF-8")
            return ConnectionClosed(not_text, ours=True)
        return ConnectionClosed(received or sent, ours=True)

    async def shake_hands(self, headers: Sequence[tuple[str, str]]) -> None:
        """Ask for the upgrade to a WebSocket, with these further headers.

        Raises InvalidHandshake if it is refused, OSError if the server hangs up.
        If it is cancelled, abort the connection.
        """
        request = self._protocol.connect()
        for name, value in headers:
            request.headers.pop(name, None)  # such as the authorization that was made of a password in the address
            request.headers[name] = value
        self._protocol.send_request(request)
        self._flush()
        await self._shaken

    # --- what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has the same methods, but another base class

    def data_received(self, data: bytes) -> None:
        opening = not self._shaken.done()
        messages = self._short_texts.cut(data) if self._protocol.state is State.OPEN else None
        if messages is None or self._fragments:
            self._read(data)
        else:
            self._messages += messages
        if opening:
            self.response += data
            self._short_texts.follow(self.response.partition(_END_OF_RESPONSE)[2])
        if self._messages:
            self._hand_over()
            unread = len(self._messages) > _UNREAD_BATCH or sum(map(len, self._messages)) > _UNREAD_BYTES
            if unread and self._transport is not None:
                self._transport.pause_reading()

    def _read(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if not isinstance(event, Frame):
                continue
            if event.opcode is Opcode.TEXT and event.fin and not self._fragments:
                self._messages.append(bytes(event.data))
            else:
                self._take_in(event)
        if not self._shaken.done():
            self._check_handshake()
        self._flush()

    def eof_received(self) -> None:
        """Nothing to add: the transport closes itself, and `connection_lost` follows."""

    def connection_lost(self, exc: Exception | None) -> None:
        del exc  # the close frames say how the conversation ended
        self._protocol.receive_eof()
        self._transport = None
        self.writable = False
        if self._hang_up is not None:
            self._hang_up.cancel()
        if not self._shaken.done():
            refusal = self._protocol.handshake_exc
            self._shaken.set_exception(refusal or ConnectionResetError("it hung up before it was a WebSocket"))
        self._gone.set_result(None)
        self._hand_over()
        self._ponged.set()

    def pause_writing(self) -> None:
        self._congested = True
        self.writable = False

    def resume_writing(self) -> None:
        self._congested = False
        self.writable = self._protocol.state is State.OPEN
        self._on_writable()

    # --- internal steps

    def _hand_over(self) -> None:
        """Give what has arrived to the task that waits in `receive`, if there is one."""
        receiving = self._receiving
        if receiving is None or receiving.done():
            return
        if self._messages:
            receiving.set_result(self._messages)
            self._messages = []
        elif self._gone.done():
            receiving.set_exception(self._ended())

    def _take_in(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            self._fragments.append(bytes(frame.data))
            if frame.fin:
                self._messages.append(b"".join(self._fragments))
                self._fragments.clear()
        elif frame.opcode is Opcode.PONG:
            self._ponged.set()

    def _check_handshake(self) -> None:
        if self._protocol.handshake_exc is not None:
            self._shaken.set_exception(self._protocol.handshake_exc)
        elif self._protocol.state is not State.CONNECTING:  # it may be closing already
            self._shaken.set_result(None)

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


async def connect(
    url: str,
    *,
    dialer: Dialer,
    proxy: str | None = None,
    headers: Sequence[tuple[str, str]] = (),
    max_size: int,
    open_timeout_s: float,
    close_timeout_s: float,
    on_writable: Callable[[], None],
) -> WebSocket:
    """Open a WebSocket. Cancelling it is safe: the connection is dropped.

    Args:
        url: `ws://` or `wss://`; with `wss://` this machine must trust the server's certificate.
        dialer: opens the TCP connections; keep it for the next attempts.
        proxy: `http://` or `https://`, the HTTP proxy to go through; it looks up the server's name.
        headers: names and values of further HTTP headers of the request.
        max_size: the largest message to accept, in bytes; a larger one closes the connection with 1009.
        open_timeout_s: how long the handshakes may take together, after the TCP connection.
        close_timeout_s: how long to wait for the other side to close as well.
        on_writable: called when the network can take more again, after it could not.

    Raises CannotConnect, with the exception of the network, of TLS, or of websockets as its cause.
    """
    stage = _Stage()
    try:
        uri = parse_uri(url)

        def make() -> WebSocket:
            return WebSocket(ClientProtocol(uri, max_size=max_size), close_timeout_s, on_writable)

        if proxy is None:
            connected = await dialer.dial(uri.host, uri.port, _TCP_TIMEOUT_S)
        else:
            connected = await _dial_proxy(dialer, urlsplit(proxy))
        async with asyncio.timeout(open_timeout_s):
            if proxy is None:
                stage.waits_for = "the TLS handshake is not finished"
                transport, websocket = await asyncio.get_running_loop().create_connection(
                    make, sock=connected, ssl=uri.secure or None, server_hostname=uri.host if uri.secure else None
                )
            else:
                transport, websocket = await _through(urlsplit(proxy), connected, uri, make, stage)
            try:
                await websocket.shake_hands(headers)
            except BaseException:
                stage.waits_for = no_answer(websocket.response)
                transport.abort()
                raise
    except TimeoutError as error:
        raise CannotConnect(str(error) or f"after {open_timeout_s:g} s {stage.waits_for} yet") from error
    except Exception as error:
        # Whatever it is, another attempt may succeed, and nothing above knows more about it.
        raise CannotConnect(explained(error, url)) from error
    return websocket


@dataclass(slots=True)
class _Stage:
    """How far an attempt to connect has got."""

    waits_for: str = ""


async def _dial_proxy(dialer: Dialer, proxy: SplitResult) -> socket.socket:
    port = proxy.port or (443 if proxy.scheme == "https" else 80)
    try:
        return await dialer.dial(proxy.hostname or "", port, _TCP_TIMEOUT_S)
    except OSError as error:
        raise OSError(f"the proxy {redact_url(proxy.geturl())} cannot be reached: {error}") from error


async def _through(
    proxy: SplitResult, connected: socket.socket, uri: WebSocketURI, make: Callable[[], WebSocket], stage: _Stage
) -> tuple[asyncio.Transport, WebSocket]:
    """A connection to the server, over a TCP connection to the proxy."""
    loop = asyncio.get_running_loop()
    secure = proxy.scheme == "https"
    stage.waits_for = f"the proxy {redact_url(proxy.geturl())} has not answered"
    transport, tunnel = await loop.create_connection(
        lambda: Tunnel(uri, proxy),
        sock=connected,
        ssl=secure or None,
        server_hostname=proxy.hostname if secure else None,
    )
    try:
        await tunnel.opened
        websocket = make()
        transport.set_protocol(websocket)
        if uri.secure:
            stage.waits_for = "the TLS handshake behind the proxy is not finished"
            context = ssl.create_default_context()
            encrypted = await loop.start_tls(transport, websocket, context, server_hostname=uri.host)
            assert encrypted is not None, "it is None only for a transport that is closing"
            transport = encrypted
        websocket.connection_made(transport)
    except BaseException:
        transport.abort()
        raise
    return transport, websocket
