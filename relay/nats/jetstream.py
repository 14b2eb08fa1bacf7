"""Requests to JetStream's API, and publishing with PubAcks: what everything else in NATS is built on.

Every error says which server, what it means and what to do; `err_codes.py` has what the server's codes mean.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar
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
from relay.contract.text import redact_url
from relay.nats.err_codes import IN_PROCESS, NO_JETSTREAM, NO_LEADER, REMEDIES, TOO_LARGE
from relay.nats.refusals import Refusals
from relay.nats.server_errors import describe_nats

_OLDEST_SERVER: Final = (2, 11, 0)
"""The first nats-server with per-message TTLs, which the lease bucket needs."""
_ELSEWHERE: Final = (
    "nobody answers {}: there is no such JetStream domain or import, the domain's servers are away, or its leaf nodes"
    " are not connected; check RELAY_NATS_DOMAIN or RELAY_NATS_API_PREFIX"
)


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
        raise BrokerUnavailable(_servers(url), f"{subject}: {describe_nats(error)}") from error


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
        raise PublishUnconfirmed(subject, describe_nats(error)) from error
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
    server, needed = client.connected_server_version, ".".join(map(str, _OLDEST_SERVER))
    try:
        version = (server.major, server.minor, server.patch)
    except ValueError as error:
        raise UnsuitableServer(f"nats-server says that its version is {server}", f"{needed} is needed") from error
    if version < _OLDEST_SERVER:
        found = ".".join(map(str, version))
        raise UnsuitableServer(
            f"nats-server {found}{_at(_servers(client.connected_url))} is too old",
            f"the relay needs {needed} or newer: upgrade the server",
        )
    await api_request(client, api_account_info(), timeout_s=timeout_s)


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
