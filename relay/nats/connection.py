"""A NATS connection: making, watching and closing it; and the two requests that everything else is built on."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar
from urllib.parse import ParseResult

import msgspec
import nats.errors
from nats.aio.client import Client

from relay.contract.errors import (
    BrokerUnavailable,
    JetStreamError,
    NotPermitted,
    PublishUnconfirmed,
    RelayError,
    Unanswered,
    UnsuitableServer,
)
from relay.contract.subjects import api_account_info
from relay.contract.text import describe, redact_url
from relay.nats.credentials import connect_options
from relay.nats.err_codes import IN_PROCESS, NO_JETSTREAM, NO_LEADER, REMEDIES, TOO_LARGE
from relay.nats.frames import FrameClient
from relay.nats.nats_py import abort, bound_closing, cancellable, end_reconnect
from relay.nats.refusals import Refusals
from relay.nats.server_errors import explained
from relay.observability.logs import get_logger

if TYPE_CHECKING:  # see relay/producer/__init__.py
    from relay.contract.settings import NatsSettings

OLDEST_SERVER: Final = (2, 11, 0)
"""The first nats-server with per-message TTLs, which the lease bucket needs."""

_TIMING: Final[dict[str, Any]] = {
    # Seconds. A dead server is noticed after three pings. nats-py's default of 120 s each would stop lanes for minutes.
    "ping_interval": 5,
    "max_outstanding_pings": 2,
    "connect_timeout": 2,
    "reconnect_time_wait": 0.25,
    "max_reconnect_attempts": -1,
}
_ELSEWHERE: Final = (
    "nobody answers {}: there is no such JetStream domain or import, the domain's servers are away, or its leaf nodes"
    " are not connected; check RELAY_NATS_DOMAIN or RELAY_NATS_API_PREFIX"
)
_log = get_logger(__name__, guest=True)


class ErrorAnswer(msgspec.Struct, frozen=True):
    """The error in an answer of JetStream's API."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class _PublishAnswer(msgspec.Struct, frozen=True):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: ErrorAnswer | None = None


_encode_request = msgspec.json.Encoder().encode
_decode_answer = msgspec.json.Decoder(dict[str, Any]).decode
_decode_publish_answer = msgspec.json.Decoder(_PublishAnswer).decode


class PubAck(msgspec.Struct, frozen=True):
    """The server's confirmation that a message is stored: where, and whether it was there before (same message id)."""

    stream: str
    sequence: int
    duplicate: bool


class ApiAnswer(Protocol):
    """What every answer of JetStream's API has."""

    @property
    def error(self) -> ErrorAnswer | None: ...


A = TypeVar("A", bound=ApiAnswer)
T = TypeVar("T")


class Response(Protocol):
    @property
    def data(self) -> bytes: ...


class Requester(Protocol):
    """What requests need of a client."""

    @property
    def is_connected(self) -> bool: ...
    @property
    def connected_url(self) -> ParseResult | None: ...
    @property
    def max_payload(self) -> int: ...

    def new_inbox(self) -> str: ...
    def request(
        self, subject: str, payload: bytes = ..., timeout: float = ..., *, headers: dict[str, str] | None = ...
    ) -> Awaitable[Response]: ...


async def connect(
    settings: "NatsSettings",
    *,
    name: str,
    on_disconnected: Callable[[], None] | None = None,
    on_reconnected: Callable[[], None] | None = None,
) -> FrameClient:
    """Make a connected client, which reconnects for ever until it is ended with `close`. Cancelling is safe.

    Whatever ends the connection is waited out, also an error of the server: credentials may be renewed, an account
    enabled again. `FrameClient.failures` says why the last attempts failed. The callbacks must neither block nor raise.
    `name` shows in the server's list of connections.

    If the settings ask for TLS, nothing is sent to a server that does not offer it, now and at each reconnect.

    Raises BrokerUnavailable if each server was tried once without success, and ConfigurationError for credentials or
    certificates that cannot be used. A server without TLS counts as without success, not as a configuration error: it
    may be about to get its TLS, and what it says before TLS could come from anybody.
    """
    sign_in = partial(connect_options, settings)
    client = FrameClient(sign_in, tls_only=settings.wants_tls, api=settings.api)
    callbacks = _Callbacks(client, settings.servers, on_disconnected, on_reconnected)
    try:
        with cancellable():
            await client.connect(
                servers=list(settings.servers),
                name=name,
                error_cb=callbacks.failed,
                disconnected_cb=callbacks.disconnected,
                reconnected_cb=callbacks.reconnected,
                tls_handshake_first=settings.tls_first,
                **_TIMING,
                **sign_in(),
            )
    except BaseException as error:
        if client.is_connected:
            await close(client)
        else:
            abort(client)
        if isinstance(error, Exception) and not isinstance(error, RelayError):
            raise BrokerUnavailable(callbacks.servers, _describe(error)) from error
        raise
    callbacks.connected = True
    bound_closing(client)
    return client


async def close(client: Client, timeout_s: float = 5.0) -> None:
    """Send what is buffered, acknowledgements too, and close. Works in every state, within three times `timeout_s`.

    If the server is away, buffered acknowledgements are lost, and the server redelivers. (`Client.drain` is not used:
    it raises while reconnecting, and the owners of subscriptions decide whether to drain them.)
    """
    if client.is_connected:
        try:
            async with asyncio.timeout(timeout_s):
                await client.flush()
        except (nats.errors.Error, TimeoutError, OSError) as error:
            _log.warning("closing the NATS connection without having sent everything", error=_describe(error))
    try:
        async with asyncio.timeout(timeout_s):
            await end_reconnect(client)
            await client.close()
    except (nats.errors.Error, TimeoutError, OSError, RuntimeError) as error:
        # uvloop raises RuntimeError when nats-py writes to a socket that is closed already.
        _log.warning("a NATS socket did not close and was aborted", error=_describe(error))
        abort(client)


async def api_request(
    client: Requester, subject: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = 5.0
) -> dict[str, Any]:
    """One request to JetStream's API and its answer, both as parsed JSON.

    Raises JetStreamError if the server answers with an error, UnsuitableServer if it runs without JetStream, and
    BrokerUnavailable if it gives no answer. Without an answer, as after a cancellation, the request may have been
    carried out, unless the error is NotPermitted.
    """
    parsed = await _requested(client, subject, body, _decode_answer, timeout_s)
    if "error" in parsed:
        raise _refused(client, _on_wire(client, subject), msgspec.convert(parsed["error"], ErrorAnswer))
    return parsed


async def api_request_as(
    client: Requester,
    subject: str,
    body: Mapping[str, Any],
    decode: Callable[[bytes], A],
    *,
    timeout_s: float = 5.0,
) -> A:
    """As `api_request`, but the answer is what `decode` makes of it: for answers that may be large."""
    answer = await _requested(client, subject, body, decode, timeout_s)
    if answer.error is not None:
        raise _refused(client, _on_wire(client, subject), answer.error)
    return answer


async def _requested(
    client: Requester,
    subject: str,
    body: Mapping[str, Any] | None,
    decode: Callable[[bytes], T],
    timeout_s: float,
) -> T:
    info, subject = _on_wire(client, api_account_info()), _on_wire(client, subject)
    url = client.connected_url  # read now, because it is None after the connection is lost
    if not client.is_connected:
        # nats-py would buffer the request, and the server would carry it out after the caller gave up.
        raise BrokerUnavailable(_servers(url), f"not connected, so {subject} was not sent")
    try:
        answer = await client.request(subject, _encode_request(body) if body else b"", timeout=timeout_s)
        return decode(answer.data)
    except nats.errors.NoRespondersError as error:
        if subject != info and await _has_jetstream(client):
            cause = f"it has JetStream, and nobody answers {subject}, which another account keeps to itself"
            raise NotPermitted(_servers(url), cause) from error
        if info != api_account_info():
            raise BrokerUnavailable(_servers(url), _ELSEWHERE.format(info)) from error
        raise _without_jetstream(_servers(url)) from error
    except TimeoutError as error:
        if (refusal := not_permitted(client, subject)) is not None:
            raise NotPermitted(_servers(url), refusal) from error
        kind = Unanswered if client.is_connected else BrokerUnavailable
        raise kind(_servers(url), f"no answer to {subject} within {timeout_s:g} s") from error
    except (nats.errors.Error, OSError, msgspec.DecodeError) as error:
        raise BrokerUnavailable(_servers(url), f"{subject}: {_describe(error)}") from error


async def publish_confirmed(
    client: Requester,
    subject: str,
    payload: bytes,
    headers: dict[str, str] | None = None,
    *,
    timeout_s: float = 5.0,
) -> PubAck:
    """Publish and wait for the stream's PubAck.

    Raises JetStreamError if the server refuses the message (for example the stream is full, or the message is
    TOO_LARGE), and PublishUnconfirmed if there is no PubAck. Without a PubAck, as after a cancellation, the message may
    be stored: publish it again with the same `Nats-Msg-Id`.
    """
    subject = _on_wire(client, subject)
    size = len(payload) + headers_size(headers)
    if size > client.max_payload:
        # The server would close the connection because of this message, and nats-py would close the client for good.
        problem = f"{size} bytes with headers are more than the server's max_payload of {client.max_payload}"
        raise JetStreamError(f"publish on {subject}", 400, TOO_LARGE, problem)
    if not client.is_connected:
        raise PublishUnconfirmed(subject, "there is no connection to NATS; it was not sent")
    try:
        answer = await client.request(subject, payload, timeout=timeout_s, headers=headers)
        ack = _decode_publish_answer(answer.data)
    except nats.errors.NoRespondersError as error:
        cause = "no stream captures this subject, or its servers elect a leader; if it lasts, run `relay provision`"
        raise PublishUnconfirmed(subject, cause) from error
    except TimeoutError as error:
        cause = not_permitted(client, subject) or f"no PubAck within {timeout_s:g} s"
        raise PublishUnconfirmed(subject, cause) from error
    except (nats.errors.Error, OSError, msgspec.DecodeError) as error:
        raise PublishUnconfirmed(subject, _describe(error)) from error
    if ack.error is not None and ack.error.err_code == IN_PROCESS:
        raise PublishUnconfirmed(subject, f"{ack.error.description} (err_code {IN_PROCESS})")
    if ack.error is not None:
        raise _answered(f"publish on {subject}", ack.error)
    if not ack.stream:
        raise PublishUnconfirmed(subject, f"the answer is not a PubAck: {answer.data[:80]!r}")
    return PubAck(ack.stream, ack.seq, ack.duplicate)


async def require_server(client: Client, *, timeout_s: float = 5.0) -> None:
    """Raise UnsuitableServer unless the server that `client` is connected to is new enough and runs JetStream.

    Only that server is asked, not the others of its cluster. Raises BrokerUnavailable as `api_request` does. Cancelling
    is safe.
    """
    server, needed = client.connected_server_version, ".".join(map(str, OLDEST_SERVER))
    try:
        version = (server.major, server.minor, server.patch)
    except ValueError as error:
        raise UnsuitableServer(f"nats-server says that its version is {server}", f"{needed} is needed") from error
    if version < OLDEST_SERVER:
        found = ".".join(map(str, version))
        raise UnsuitableServer(
            f"nats-server {found}{_at(_servers(client.connected_url))} is too old",
            f"the relay needs {needed} or newer: upgrade the server",
        )
    await api_request(client, api_account_info(), timeout_s=timeout_s)


@dataclass(slots=True)
class _Callbacks:
    """Logs what nats-py reports, and calls the callbacks of `connect`."""

    client: FrameClient
    urls: Sequence[str]
    on_disconnected: Callable[[], None] | None
    on_reconnected: Callable[[], None] | None
    connected: bool = False
    failures: list[str] = field(default_factory=list[str])
    remedies: list[str] = field(default_factory=list[str])

    @property
    def servers(self) -> list[str]:
        return [redact_url(url) for url in self.urls]

    async def failed(self, error: Exception) -> None:
        problem = _describe(error)
        if isinstance(error, TimeoutError) and not self.client.is_connected:
            problem = f"no answer within {_TIMING['connect_timeout']:g} s"
        problem, remedy = explained(problem)
        told = f"{problem}; {remedy}" if remedy else problem
        if not self.client.is_connected:
            self.client.failed(told)
        if not self.connected:
            self._give_up_after_one_round(problem, remedy, error)
        elif told not in self.failures:
            # During an outage nats-py reports an error four times a second. It is logged once until the reconnect.
            self.failures.append(told)
            _log.warning("NATS trouble", error=told)

    def _give_up_after_one_round(self, problem: str, remedy: str, error: Exception) -> None:
        # Raising from the callback is the only way to end nats-py's first round of attempts. With unlimited attempts it
        # would go on for ever. With a limit it would forget the servers that were away, also for later reconnects.
        self.failures.append(problem)
        self.remedies += [remedy] if remedy else []
        if len(self.failures) >= len(self.urls):
            causes, remedies = ("; ".join(dict.fromkeys(each)) for each in (self.failures, self.remedies))
            raise BrokerUnavailable(self.servers, causes, remedies) from error

    async def disconnected(self) -> None:
        if self.client.is_closed:
            return  # by us
        _log.warning("disconnected from NATS; reconnecting")
        if self.on_disconnected is not None:
            self.on_disconnected()

    async def reconnected(self) -> None:
        self.failures.clear()
        self.client.failures.clear()
        _log.info("connected to NATS again")
        self.client.know_dropped()
        if self.client.dropped_at_bytes is not None:
            _log.warning(
                "nats-server ended the connection among large messages and runs on: probably more than its max_pending"
                " waited for this client (a slow consumer), unless the network did it; its log says which. If it was"
                " that, raise max_pending, or see what is slow here",
                message_bytes=self.client.dropped_at_bytes,
            )
        if self.on_reconnected is not None:
            self.on_reconnected()


def not_permitted(client: Requester, subject: str) -> str | None:
    """What the server said, if it does not permit to publish on `subject`, or to hear the answer to a request."""
    refusals: Refusals | None = getattr(client, "refusals", None)  # nats-py's own client has none
    inbox = client.new_inbox().rpartition(".")[0]
    return refusals.why_unanswered(subject, f"{inbox}.") if refusals is not None else None


def _on_wire(client: Requester, subject: str) -> str:
    on_wire: Callable[[str], str] = getattr(client, "on_wire", str)  # nats-py's own client has none
    return on_wire(subject)


def headers_size(headers: dict[str, str] | None) -> int:
    """How many bytes of `max_payload` the headers of a message take."""
    if not headers:
        return 0
    text = len("".join([*headers, *headers.values()]).encode())
    return len("NATS/1.0\r\n") + text + len(headers) * len(": \r\n") + len("\r\n")


def _refused(client: Requester, subject: str, error: ErrorAnswer) -> RelayError:
    servers = _servers(client.connected_url)
    if error.err_code in NO_JETSTREAM:
        return _without_jetstream(servers)
    if error.err_code == NO_LEADER:
        return BrokerUnavailable(servers, f"{subject}: {error.description}")
    return _answered(subject, error)


def _answered(request: str, error: ErrorAnswer) -> JetStreamError:
    remedy = REMEDIES.get(error.err_code, "")
    return JetStreamError(request, error.code, error.err_code, error.description, remedy)


def _servers(url: ParseResult | None) -> list[str]:
    return [redact_url(url.geturl())] if url else []


def _at(servers: Sequence[str]) -> str:
    return f" at {', '.join(servers)}" if servers else ""


async def _has_jetstream(client: Requester) -> bool:
    """Whether the account's information is answered: then it is not JetStream that is missing, but a permission."""
    try:
        await api_request(client, api_account_info())
    except (BrokerUnavailable, UnsuitableServer, JetStreamError):
        return False
    return True


def _without_jetstream(servers: Sequence[str]) -> UnsuitableServer:
    return UnsuitableServer(
        f"JetStream is not enabled on the nats-server{_at(servers)}, or not for this account",
        "start the server with `nats-server -js` or a `jetstream` block in its configuration, and for this account",
    )


def _describe(error: BaseException) -> str:
    return describe(error).removeprefix("nats: ").strip("'")
