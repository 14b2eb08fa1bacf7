r"""nats-py's client, changed to read and write whole frames: for the path of an update, and for many requests.

nats-py spends more time on a message than nats-server does. Each incoming message costs a regular expression for every
kind of line, a buffer that is moved, a message object, a place in a queue, and a task that waits for it. Each outgoing
message costs two coroutines and a future. nats-py has no public way to avoid this.

nats-py also ends a subject at \v and \f, where the server ends it only at a blank, tab or line end, and it fails on
subjects that are not UTF-8. Such a message ends its read loop for good. So one producer could stop all deliveries on
the connection until its pings fail, and again with each redelivery.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final, TypeVar

import nats.errors
from nats.aio.client import DEFAULT_FLUSH_TIMEOUT, Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.protocol.parser import PERMISSIONS_ERR, STALE_CONNECTION

from relay.contract.subjects import API, on_api
from relay.nats.arrival_rate import ArrivalRate
from relay.nats.attempts import explain
from relay.nats.headers import parse_headers
from relay.nats.nats_py import (
    DialedTransport,
    abort,
    bytes_unread,
    cancellable,
    demand_tls,
    end_quietly,
    forbid_clear_text,
    in_address,
    require_signed_in,
    sign_in_with,
    subscribe_again,
)
from relay.nats.refusals import TOO_MANY, Refusals
from relay.nats.server_errors import error_in
from relay.network.dialer import Dialer

Take = Callable[[bytes, bytes, bytes, bytes], None]
"""Called with the subject, the reply subject, the block of headers and the body of a message.

Its exceptions are passed to the client's `error_cb`, like those of nats-py's own callbacks."""
TakeBatch = Callable[[list[tuple[bytes, bytes, bytes, bytes]]], None]
"""As Take, with a list of one or more messages."""


T = TypeVar("T")
_HEAD: Final = re.compile(rb"(H)?MSG ([^ \t\r\n]+) (\d+) (?:([^ \t\r\n]+) )?(?(1)(\d+) )(\d+)\r\n").match
_LARGE_BYTES: Final = 64 * 1024
"""Messages of this size or more can fill the server's buffer for this client quickly."""
_LINE_END: Final = b"\r\n"
_PING: Final = b"PING\r\n"
_SUBSCRIBE_AGAIN_S: Final = 5.0
_LINE_ENDS: Final = re.compile(r"[\r\n]")


class FrameClient(Client):
    """nats-py's client with `listen`, `listen_in_batches` and `write`, which never gives up; the rest is as in nats-py.

    Args:
        sign_in: gives the options of `connect` that may change while the client lives: files are read when it is
            called, which is once for each attempt to connect.
        tls_only: send nothing to a server over a connection that is not encrypted.
        api: the prefix of JetStream's API; see `on_wire`.
    """

    def __init__(
        self,
        sign_in: Callable[[], Mapping[str, Any]] = dict[str, Any],
        *,
        tls_only: bool = False,
        api: str = API,
    ) -> None:
        super().__init__()
        self._api = api
        self.failures: dict[str, str] = {}
        """Why the last attempt to connect to each server failed, by `host:port`. Empty while connected."""
        self.dropped_at_bytes: int | None = None
        """The size of the last large message before the last connection was lost, if the same server runs on and gave
        no reason; else None. It probably dropped this client as a slow consumer, which it tells only its own log. Known
        when the connection is made again."""
        self.refusals = Refusals()
        """What the server does not permit on the present connection."""
        self._again: asyncio.TimerHandle | None = None
        self._asking_again: asyncio.Task[None] | None = None
        self._lost_at: tuple[int, str] | None = None
        """When the connection was lost without a reason: that size, and the server's id."""
        self._sign_in = sign_in
        self._tls_only = tls_only
        self._server = ""
        self._greeted = False
        """Whether the server has said its first line, INFO, on this connection."""
        self._in_addresses: dict[str, Mapping[str, str | None]] = {}
        """What addresses say about signing in, by `host:port`."""
        self._dialer = Dialer()
        self._takes: dict[bytes, Take] = {}
        """By subscription."""
        self._take_batches: dict[bytes, TakeBatch] = {}
        """By subscription."""
        self._read_together: dict[bytes, list[tuple[bytes, bytes, bytes, bytes]]] = {}
        """By subscription: the messages that one read of the socket has brought."""
        self._needed = 0
        """The least number of bytes that the incomplete frame in the parser's buffer will have."""
        self._rate = ArrivalRate()
        parser: Any = self._ps
        self._parse_line: Callable[[bytes], Coroutine[Any, Any, None]] = parser.parse
        parser.parse = self._read

    @property
    def asked_for_credentials(self) -> bool:
        """Whether the server checks who connects."""
        return bool(self._server_info.get("auth_required"))

    @property
    def arriving_bytes_per_s(self) -> float | None:
        """How fast large messages have arrived lately, which depends on the network and on us; None if none has."""
        return self._rate.bytes_per_s

    async def listen(self, subject: str, take: Take, *, queue: str = "") -> Subscription:
        """Call `take` with each message on a subject, in order, as soon as it is read, until the subscription ends.

        Draining the subscription also waits for messages that are on their way. If `listen` is cancelled, the
        server may keep the subscription.
        """
        return await self._listen(subject, take, self._takes, queue)

    async def listen_in_batches(self, subject: str, take: TakeBatch) -> Subscription:
        """As `listen`, but call `take` once with all messages that one read of the socket brings."""
        return await self._listen(subject, take, self._take_batches)

    async def _listen(self, subject: str, take: T, takers: dict[bytes, T], queue: str = "") -> Subscription:
        number = b"%d" % (self._sid + 1)
        takers[number] = take  # before the first message can arrive
        try:
            return await self.subscribe(subject, queue=queue)
        except BaseException:
            del takers[number]
            raise

    def on_wire(self, subject: str) -> str:
        """Where what goes to `subject` is sent, with the prefix of JetStream's API that this client uses.

        `request` and `publish` see to it themselves; what is subscribed to or given to `write` is not changed.
        """
        return subject if self._api == API else on_api(self._api, subject)

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,  # noqa: ASYNC109 - the name in nats-py
        old_style: bool = False,  # noqa: FBT001, FBT002 - as in nats-py
        headers: dict[str, Any] | None = None,
    ) -> Msg:
        """nats-py's request, but cancelling it is safe: it then always ends with CancelledError."""
        with cancellable():
            return await super().request(self.on_wire(subject), payload, timeout, old_style, headers)

    async def flush(self, timeout: int = DEFAULT_FLUSH_TIMEOUT) -> None:  # noqa: ASYNC109 - the name in nats-py
        """nats-py's flush; cancelling it is safe, too."""
        with cancellable():
            await super().flush(timeout)

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, Any] | None = None
    ) -> None:
        """nats-py's publish, with the prefix of JetStream's API."""
        await super().publish(self.on_wire(subject), payload, reply, headers)

    async def subscribe(  # pyright: ignore[reportIncompatibleMethodOverride] - all else by name
        self, subject: str, queue: str = "", cb: Callable[[Msg], Awaitable[None]] | None = None, **options: Any
    ) -> Subscription:
        """nats-py's subscribe, with the types that it lacks."""
        return await super().subscribe(subject, queue, cb, **options)  # pyright: ignore[reportUnknownMemberType]

    def write(self, lines: bytes) -> None:
        """Send lines of NATS's protocol (see `publication`), together with all that is written in the same moment.

        While disconnected they are buffered, up to the client's limit, and sent after the reconnect. Raises
        nats.errors.Error if they are neither sent nor buffered.
        """
        if self.is_connected:
            flushes: asyncio.Queue[Any] = self._flush_queue  # pyright: ignore[reportAssignmentType] - it has one now
            if flushes.empty():
                flushes.put_nowait(asyncio.get_running_loop().create_future())
        elif self.is_closed:
            raise nats.errors.ConnectionClosedError
        elif self._pending_data_size + len(lines) > self._max_pending_size:
            raise nats.errors.OutboundBufferLimitError
        self._pending.append(lines)
        self._pending_data_size += len(lines)

    def failed(self, problem: str) -> None:
        """An attempt to connect has failed."""
        self.failures[self._server] = problem

    # --- called by nats-py

    async def _connect_to_server(self, s: Any) -> None:
        self._server = f"{s.uri.hostname}:{s.uri.port}"
        self._take_sign_in(s)
        if s.uri.scheme in {"nats", "tls"} and not isinstance(self._transport, DialedTransport):
            self._transport = DialedTransport(self._dialer)
        await super()._connect_to_server(s)
        end_quietly(self)
        if self._tls_only:
            forbid_clear_text(self)

    async def _process_connect_init(self) -> None:
        self._greeted = False
        self.refusals.forget()
        try:
            sign_in_with(self, self._sign_in())
            await super()._process_connect_init()
            require_signed_in(self)
        except BaseException as error:
            said = await self._said(error)
            abort(self)  # nats-py would leave the socket open
            info = self._server_info if self._greeted else None
            told = said or explain(error, info=info, websocket=self._over_websocket, options=self.options)
            if told is None:
                raise
            raise told from error

    async def _said(self, error: BaseException) -> nats.errors.Error | None:
        """The error that the server gave before it ended the connection, if nats-py did not read as far as that.

        It did not if writing failed first.
        """
        if not isinstance(error, OSError | nats.errors.UnexpectedEOF):
            return None
        said = error_in(await bytes_unread(self))
        return None if said is None else nats.errors.Error(f"nats: {said}")

    def _take_sign_in(self, server: Any) -> None:
        """Keep what the server's address says about signing in, and take it out of the address.

        nats-py would not decode it, knows nothing for servers of the cluster that are not among its addresses, and
        passes it to the library for WebSocket, which has other uses for it.
        """
        address = server.uri.netloc.rpartition("@")[2]
        if server.uri.username is not None:
            self._in_addresses[address] = in_address(server.uri)
            server.uri = server.uri._replace(netloc=address)
        for known in (self._in_addresses.get(address), *self._in_addresses.values()):
            if known is not None:
                self.options.update(known)
                break

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:  # noqa: FBT001, FBT002 - as in nats-py
        self._greeted = True
        if self._tls_only and initial_connection:
            demand_tls(self, info)
        await super()._process_info(info, initial_connection)
        connected = self._current_server
        for server in self._server_pool:  # nats-py takes the servers that this one names for TCP servers
            if server.discovered and connected is not None and self._over_websocket:
                server.uri = server.uri._replace(scheme=connected.uri.scheme)

    @property
    def _over_websocket(self) -> bool:
        return self._current_server is not None and self._current_server.uri.scheme in {"ws", "wss"}

    async def _process_err(self, err_msg: str) -> None:
        """Reconnect after an error with which the server ends the connection.

        nats-py would close the client for good. But most of these errors pass: credentials that expired are renewed, a
        password is put right, an account is enabled again, the server has room for one more connection.
        """
        if PERMISSIONS_ERR in err_msg or TOO_MANY in err_msg:
            await self._refused(err_msg)
            return
        if STALE_CONNECTION in err_msg:
            await super()._process_err(err_msg)
            return
        problem = err_msg.strip("'")
        self._err = nats.errors.Error(f"nats: {problem}")
        await self._process_op_err(self._err)
        await self._error_cb(self._err)

    async def _refused(self, err_msg: str) -> None:
        """The server permits something not, and goes on. It is reported once: updates could bring one at a time."""
        self._err = nats.errors.Error(f"nats: {err_msg.strip(chr(39))}")
        if self.refusals.told(err_msg, time.monotonic()):
            await self._error_cb(self._err)
        if (self.refusals.subscriptions or self.refusals.too_many) and self._again is None:
            self._again = asyncio.get_running_loop().call_later(_SUBSCRIBE_AGAIN_S, self._ask_again)

    def _ask_again(self) -> None:
        self._again = None
        if self.is_connected:
            self._asking_again = asyncio.create_task(subscribe_again(self, self.refusals))

    def know_dropped(self) -> None:
        """Set `dropped_at_bytes`, now that the connection is made again."""
        size, server = self._lost_at or (None, "")
        self.dropped_at_bytes = size if server == self._server_id else None
        self._lost_at = None
        self._needed = 0

    @property
    def _server_id(self) -> str:
        return str(self._server_info.get("server_id"))

    async def _process_op_err(self, e: Exception) -> None:
        without_reason = isinstance(e, nats.errors.UnexpectedEOF | OSError) and not self._server_info.get("ldm")
        if self.is_connected and without_reason and self._needed >= _LARGE_BYTES:
            self._lost_at = self._needed, self._server_id
        said = await self._said(e) if self.is_connected else None
        await super()._process_op_err(said or e)
        if said is not None:
            await self._error_cb(said)

    async def _attempt_reconnect(self) -> None:
        """Reconnect. nats-py's own ends at an exception that it does not expect, and then nobody would reconnect."""
        while True:
            try:
                await super()._attempt_reconnect()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next attempt may succeed
                self._status = Client.RECONNECTING
                await self._error_cb(error)
                await asyncio.sleep(self.options["reconnect_time_wait"])
            else:
                return

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        # nats-py writes a PING before what waits to be written. Then the PONG would not prove that the rest has
        # arrived, and a drain would end too early.
        pongs: list[Any] = self._pongs  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        pongs.append(future or asyncio.get_running_loop().create_future())
        self.write(_PING)

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        for takers in (self._takes, self._take_batches):
            takers.pop(b"%d" % sid, None)
        super()._remove_sub(sid, max_msgs)

    async def _process_headers(self, headers: bytes | None) -> dict[str, str] | None:
        return parse_headers(headers or b"") or None

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Any:
        return super()._build_message(sid, subject.decode(errors="replace").encode(), reply, data, headers)

    async def _read(self, data: bytes) -> None:
        """Replaces the parser's `parse`. Incomplete frames stay in the parser's buffer, which a reconnect empties."""
        unread = self._ps.buf
        if unread:
            self._rate.read(len(data), time.monotonic())
            unread.extend(data)
            if len(unread) < self._needed:
                return
            data = bytes(unread)
            unread.clear()
        start = 0
        head = message = None
        try:
            while start < len(data):
                head = _HEAD(data, start)
                end = _end_of_line(data, start) if head is None else head.end() + int(head[6]) + len(_LINE_END)
                if end > len(data):
                    self._needed = end - start
                    self._ps.buf.extend(data[start:])
                    self._rate.began(time.monotonic())
                    return
                if head is None:
                    await self._take_line(data[start:end])
                else:
                    sid, message = _message(data, head, end - len(_LINE_END))
                    if sid in self._take_batches:
                        self._read_together.setdefault(sid, []).append(message)
                    else:
                        await self._give(sid, message)
                start = end
        finally:
            del data, head, message  # large bodies have been copied out of it, and are decoded next
            if self._read_together:
                await self._give_batches()

    async def _take_line(self, line: bytes) -> None:
        try:
            await self._parse_line(line)
        except (nats.errors.ProtocolError, OSError):
            raise
        except Exception as error:
            # At any other, nats-py's read loop ends, and the connection stays silent until its pings fail.
            await self._error_cb(error)
            raise nats.errors.ProtocolError from error

    async def _process_pong(self) -> None:
        # nats-py fails at the PONG of a flush that was cancelled or took too long.
        pongs: list[asyncio.Future[bool]] = self._pongs  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if pongs and pongs[0].done():
            pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _give(self, sid: bytes, message: tuple[bytes, bytes, bytes, bytes]) -> None:
        if (take := self._takes.get(sid)) is not None:
            try:
                take(*message)
            except Exception as error:  # noqa: BLE001 - neither a bug nor a forged message may end the read loop
                await self._error_cb(error)
        else:
            subject, reply, headers, body = message
            await self._process_msg(int(sid), subject, reply, body, headers)

    async def _give_batches(self) -> None:
        batches, self._read_together = self._read_together, {}
        for sid, messages in batches.items():
            if (take := self._take_batches.get(sid)) is not None:  # the subscription may have ended meanwhile
                try:
                    take(messages)
                except Exception as error:  # noqa: BLE001 - as in `_give`
                    await self._error_cb(error)


def publication(subject: bytes, payload: bytes, reply: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
    """The lines that publish a message. If it is larger than `max_payload`, the server closes the connection."""
    to = subject + b" " + reply if reply else subject
    if not headers:
        return b"PUB %b %d\r\n%b\r\n" % (to, len(payload), payload)
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if (
        not lines.count("\r") == lines.count("\n") == len(headers)
    ):  # a line end inside a value would begin another header
        lines = "".join([_LINE_ENDS.sub(" ", f"{name}: {value}") + "\r\n" for name, value in headers.items()])
    block = f"NATS/1.0\r\n{lines}\r\n".encode()
    return b"HPUB %b %d %d\r\n%b%b\r\n" % (to, len(block), len(block) + len(payload), block, payload)


def _message(data: bytes, head: re.Match[bytes], end: int) -> tuple[bytes, tuple[bytes, bytes, bytes, bytes]]:
    """The subscription's number, and the message whose body ends at `end`: subject, reply subject, headers, body."""
    _, subject, sid, reply, headers_size, _ = head.groups(b"")
    begin = head.end()
    body = begin + int(headers_size or 0)
    return sid, (subject, reply, data[begin:body], data[body:end])


def _end_of_line(data: bytes, start: int) -> int:
    """The position after the end of the line; `len(data) + 1` if the line is not complete yet."""
    found = data.find(_LINE_END, start)
    return found + len(_LINE_END) if found >= 0 else len(data) + 1
