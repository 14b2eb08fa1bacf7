"""What nats-py must be made to do.

What reaches behind its public interface is here and in frames.py, and nowhere else: a new release of nats-py can
break these at any time. Each piece says what goes wrong without it.
"""

import asyncio
from typing import Any, Final

from nats.aio.client import Client
from nats.aio.transport import TcpTransport

from relay.observability.logs import get_logger

_CLOSE_GRACE_S: Final = 2.0
_FORGOTTEN_AFTER_S: Final = 0.05
_log = get_logger(__name__, guest=True)


def bound_closing(client: Client) -> None:
    """Make the client give up on a socket that does not close by itself within _CLOSE_GRACE_S.

    On a half-open connection with unsent data nats-py's reconnect waits in `transport.wait_closed` for the kernel to
    give up, which takes minutes (nats-py issue 671), and reports nothing before that. It keeps one transport object
    for life, so bounding that one wait is enough. There is no public way to reach it.
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


def abort(client: Client) -> None:
    """Close the client's socket without sending what is left; nothing if it has none."""
    transport: Any = client._transport  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    if isinstance(transport, TcpTransport) and transport:
        writer: Any = transport._io_writer  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        writer.transport.abort()


async def end_reconnect(client: Client) -> None:
    """Cancel nats-py's reconnect until it has ended; `Client.close` comes after it.

    nats-py cancels it once, and before Python 3.12 `wait_for`, in which it connects, forgets a cancellation that comes
    with the outcome: it would go on for ever, and connect after the close. There is no public way to reach it.
    """
    task: asyncio.Task[None] | None = client._reconnection_task  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    while task is not None and not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_FORGOTTEN_AFTER_S)


def stay_cancelled() -> None:
    """Raise CancelledError if the task is cancelled; to be called after each request of nats-py's own client.

    Before Python 3.12 `wait_for`, in which nats-py waits, forgets a cancellation that comes with the answer.
    """
    if (task := asyncio.current_task()) is not None and task.cancelling():
        raise asyncio.CancelledError
