"""A NATS connection: making, watching and closing it. What is asked over it: jetstream.py."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import nats.errors
from nats.aio.client import Client

from relay.contract.errors import BrokerUnavailable, RelayError
from relay.contract.text import redact_url
from relay.nats.credentials import connect_options
from relay.nats.frames import FrameClient
from relay.nats.nats_py import abort, bound_closing, cancellable, end_reconnect
from relay.nats.server_errors import describe_nats, explained
from relay.observability.logs import get_logger

if TYPE_CHECKING:  # see relay/producer/__init__.py
    from relay.contract.settings import NatsSettings

_TIMING: Final[dict[str, Any]] = {
    # Seconds. A dead server is noticed after three pings. nats-py's default of 120 s each would stop lanes for minutes.
    "ping_interval": 5,
    "max_outstanding_pings": 2,
    "connect_timeout": 2,
    "reconnect_time_wait": 0.25,
    "max_reconnect_attempts": -1,
}
_log = get_logger(__name__, guest=True)


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
            raise BrokerUnavailable(callbacks.servers, describe_nats(error)) from error
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
            _log.warning("closing the NATS connection without having sent everything", error=describe_nats(error))
    try:
        async with asyncio.timeout(timeout_s):
            await end_reconnect(client)
            await client.close()
    except (nats.errors.Error, TimeoutError, OSError, RuntimeError) as error:
        # uvloop raises RuntimeError when nats-py writes to a socket that is closed already.
        _log.warning("a NATS socket did not close and was aborted", error=describe_nats(error))
        abort(client)


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
        problem = describe_nats(error)
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
