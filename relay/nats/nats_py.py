"""Workarounds for nats-py.

Only this module and frames.py use private parts of nats-py, so any new release can break them. Each function says what
goes wrong without it.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any, Final
from urllib.parse import ParseResult, unquote

import nats.errors
from nats.aio.client import Client
from nats.aio.transport import TcpTransport

from relay.nats.refusals import Refusals
from relay.network.dialer import Dialer
from relay.observability.logs import get_logger

_DEFAULT_PORT: Final = 4222
_CLOSE_GRACE_S: Final = 2.0
_FORGOTTEN_AFTER_S: Final = 0.05
_UNREAD_S: Final = 0.1
_CONNECT: Final = b"CONNECT "
_log = get_logger(__name__, guest=True)


class DialedTransport(TcpTransport):
    """nats-py's transport for TCP and TLS, which tries all addresses of a server's name.

    nats-py waits for the first address as long as it waits for a connection, and then starts again with it.

    It also sends CONNECT together with the PING that follows. Of two writes to a server that has hung up, the second
    fails, and then what the server has said before, its reason, is never read.
    """

    def __init__(self, dialer: Dialer) -> None:
        super().__init__()
        self._dialer = dialer
        self._unsent = b""

    def __bool__(self) -> bool:
        return True  # also before the first connection: nats-py would replace it

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: float) -> None:
        assert uri.hostname is not None, "settings and nats-py have seen to it"
        port = uri.port or _DEFAULT_PORT
        connected = await self._dialer.dial(uri.hostname, port, connect_timeout)
        try:
            reader, writer = await asyncio.open_connection(sock=connected, limit=buffer_size)
        except BaseException:
            connected.close()
            raise
        self._bare_io_reader = self._io_reader = reader
        self._bare_io_writer = self._io_writer = writer
        self._unsent = b""

    def write(self, payload: bytes) -> None:
        if payload.startswith(_CONNECT):
            self._unsent = payload
            return
        payload, self._unsent = self._unsent + payload, b""
        super().write(payload)


def bound_closing(client: Client) -> None:
    """Make the client give up on a socket that does not close by itself within _CLOSE_GRACE_S.

    Without it, nats-py's reconnect waits for minutes on a half-open connection with unsent data: in
    `transport.wait_closed`, until the kernel gives up (nats-py issue 671). It reports nothing before that. A client
    keeps one transport object for all its connections, so limiting that one wait is enough. It is not public.
    """
    transport: Any = client._transport  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    if not isinstance(transport, TcpTransport):
        return
    wait_closed = transport.wait_closed

    async def wait_closed_or_abort() -> None:
        try:
            async with asyncio.timeout(_CLOSE_GRACE_S):
                await wait_closed()
        except TimeoutError:
            _log.warning("a NATS socket did not close and was aborted", unclosed_for_s=_CLOSE_GRACE_S)
            abort(client)

    transport.wait_closed = wait_closed_or_abort


def end_quietly(client: Client) -> None:
    """Let an encrypted connection end without a line in the log; call this each time the client has opened one.

    Without it, asyncio and uvloop log "returning true from eof_received() has no effect when using ssl" each time:
    nats-py makes the reader before the encryption, and does not tell it. It is not public.
    """
    transport: Any = client._transport  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    if not isinstance(transport, TcpTransport) or "connect_tls" in vars(transport):  # it lasts for many connections
        return
    connect_tls = transport.connect_tls

    async def connect_tls_and_tell(*arguments: Any, **options: Any) -> None:
        await connect_tls(*arguments, **options)
        writer: Any = transport._io_writer  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        writer._protocol._over_ssl = True  # noqa: SLF001

    transport.connect_tls = connect_tls_and_tell


def in_address(uri: ParseResult) -> dict[str, str | None]:
    """The options of `Client.connect` for user and password, or the token, in an address, percent-decoded."""
    user = unquote(uri.username or "")
    if uri.password is None:
        return {"user": None, "password": None, "token": user}
    return {"user": user, "password": unquote(uri.password), "token": None}


class NotEncrypted(nats.errors.Error):
    """The connection is not encrypted although the settings ask for TLS."""

    def __str__(self) -> str:
        return (
            "the server offers no TLS, so nothing was sent to it: switch TLS on at the server, or, if the network is "
            "trusted, use nats:// without a CA file and a client certificate"
        )


def demand_tls(client: Client, info: dict[str, Any]) -> None:
    """Make the client start TLS after this INFO, which it has just received. Raises NotEncrypted if it offers no TLS.

    Without it, nats-py starts TLS only if the server requires it, whatever the address and the certificates say.
    """
    if _is_encrypted(client):
        return
    if not (info.get("tls_required") or info.get("tls_available")):
        abort(client)
        raise NotEncrypted
    info["tls_required"] = True


def forbid_clear_text(client: Client) -> None:
    """Let the client write only to an encrypted connection; call this each time it has opened a connection.

    Without it, nats-py sends what waits to be written when it is closed in the middle of a reconnect, before TLS.
    """
    transport: Any = client._transport  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    if "write" in vars(transport):  # a transport lasts for many connections
        return

    def only_encrypted(write: Callable[[Any], None]) -> Callable[[Any], None]:
        def write_if_encrypted(payload: Any) -> None:
            if not _is_encrypted(client):
                abort(client)
                raise NotEncrypted
            write(payload)

        return write_if_encrypted

    transport.write, transport.writelines = only_encrypted(transport.write), only_encrypted(transport.writelines)


def _is_encrypted(client: Client) -> bool:
    transport: Any = client._transport  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    # The connection is asked, not the address: a WebSocket client may have followed a redirect.
    connection: Any = getattr(transport, "_io_writer" if isinstance(transport, TcpTransport) else "_ws")
    return connection is not None and connection.get_extra_info("ssl_object") is not None


def abort(client: Client) -> None:
    """Close the client's socket, if it has one, and discard what is not sent yet."""
    transport: Any = client._transport  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    writer: Any = getattr(transport, "_io_writer", None)
    if writer is not None:
        writer.transport.abort()
    elif (session := getattr(transport, "_client", None)) is not None:  # of a WebSocket
        session.detach()  # otherwise aiohttp complains about it, and about the connection, when it is collected
        if transport._ws is not None:  # noqa: SLF001
            transport._ws._response.close()  # noqa: SLF001


def require_signed_in(client: Client) -> None:
    """Raise UnexpectedEOF if the connection was lost as we signed in.

    nats-py takes the end of a connection for the answer to its PING, and goes on as if it were connected.
    """
    if client.is_connected:
        return
    for name in ("_reading_task", "_ping_interval_task", "_flusher_task"):
        task: asyncio.Task[None] | None = getattr(client, name)
        if task is not None:
            task.cancel()
    raise nats.errors.UnexpectedEOF


async def bytes_unread(client: Client) -> bytes:
    """What the server has sent on a broken connection, and nats-py has not read: its reason, perhaps.

    Without it, that is lost when a write fails, because a reader raises the error of the connection first. It is not
    public. Waits for no more than a tenth of a second.
    """
    transport: Any = client._transport  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    if isinstance(transport, TcpTransport):
        reader: Any = transport._io_reader  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        return bytes(reader._buffer) if reader is not None else b""  # noqa: SLF001
    with contextlib.suppress(Exception):  # whatever a library for WebSocket raises about a broken connection
        async with asyncio.timeout(_UNREAD_S):
            return await transport.readline()
    return b""


async def subscribe_again(client: Client, refusals: Refusals) -> None:
    """Ask again for the subscriptions that the server refuses: it may permit them now, after a reload.

    Without it, they are not made before the next connection, because the server forgets them. If it refuses them again,
    `refusals` is told. Cancelling is safe.
    """
    asked_s = time.monotonic()
    subscriptions: dict[int, Any] = client._subs  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    with contextlib.suppress(nats.errors.Error, TimeoutError, OSError):  # the connection is lost
        for subscription in list(subscriptions.values()):
            if refusals.lacks(subscription.subject):  # one that the server has counts once
                await client._send_subscribe(subscription)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        await client.flush()  # the server sends its refusals before its PONG
        refusals.drop_subscriptions(asked_s)


async def end_reconnect(client: Client) -> None:
    """Cancel nats-py's reconnect again and again until it has ended; call this before `Client.close`.

    nats-py cancels it only once. Before Python 3.12, `wait_for`, in which it connects, loses a cancellation that comes
    together with the outcome. Then the reconnect would go on, and connect after the close. It is not public.
    """
    task: asyncio.Task[None] | None = client._reconnection_task  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    while task is not None and not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_FORGOTTEN_AFTER_S)


def sign_in_with(client: Client, options: Mapping[str, Any]) -> None:
    """Make the client sign in, and check servers, with these options of `Client.connect` from now on.

    Without it, nats-py keeps the certificates and the public key of its first connection. It is not public.
    """
    if "tls" in options:
        client.options["tls"] = options["tls"]
    client._user_credentials = options.get("user_credentials")  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    client._nkeys_seed_str = options.get("nkeys_seed_str")  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    if {"user_credentials", "nkeys_seed_str"} & options.keys():
        client._setup_nkeys_connect()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


@contextlib.contextmanager
def cancellable() -> Generator[None]:
    """Raise CancelledError at the end of the block if its task was cancelled meanwhile, whatever else came of it.

    Before Python 3.12, `wait_for`, in which nats-py waits, loses a cancellation that comes together with the answer.
    Cancellations before the block do not count: a task that cleans up after one may still ask the server.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    try:
        yield
    finally:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError
