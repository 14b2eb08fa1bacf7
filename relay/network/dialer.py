"""Opening TCP connections to a host name, which may have several addresses."""

import asyncio
import os
import socket
from typing import Any, Final

from aiohappyeyeballs import start_connection  # pyright: ignore[reportUnknownVariableType]

from relay.timing.waiting import at_most

LOOK_UP_S: Final = 5.0
"""For looking up a name: as long as resolvers commonly wait for a server that is silent."""
NEXT_AFTER_S: Final = 0.25
"""While an address is silent, the next one is tried after so many seconds: the delay that RFC 8305 recommends."""
_AddressInfo = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[Any, ...]]


class Dialer:
    """Opens TCP connections to hosts. All addresses of a host are tried, beginning with another one each time.

    An address that accepts connections may never answer afterwards, which only the caller can notice. So the next call
    begins with the address after the one that was connected to last.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[str, int], tuple[Any, ...]] = {}

    async def dial(self, host: str, port: int, timeout_s: float) -> socket.socket:
        """A connected socket that does not block; the caller closes it. Cancelling it is safe.

        Raises OSError, which says why there is no connection. It is a TimeoutError if the name is not looked up within
        LOOK_UP_S seconds, or if none of its addresses answers within `timeout_s` seconds.
        """
        async with at_most(LOOK_UP_S, f"the name {host} was not looked up"):
            addresses = await _look_up(host, port)
        known = [each[4] for each in addresses]
        last = self._last.get((host, port))
        first = known.index(last) + 1 if last in known else 0
        places = ", ".join(dict.fromkeys(str(each[0]) for each in known))
        async with at_most(timeout_s, f"no TCP connection to {places} port {port}"):
            connected = await _connect(addresses[first:] + addresses[:first])
        try:
            self._last[host, port] = connected.getpeername()
        except OSError:  # the other side has hung up already
            connected.close()
            raise
        return connected


async def _look_up(host: str, port: int) -> list[_AddressInfo]:
    try:
        return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"{host!r} cannot be a host name: {error}") from error


async def _connect(addresses: list[_AddressInfo]) -> socket.socket:
    try:
        return await start_connection(addresses, happy_eyeballs_delay=NEXT_AFTER_S, interleave=1)
    except RuntimeError as error:  # from uvloop
        raise OSError(str(error)) from error
    except OSError as error:
        if error.errno is None:  # the addresses have failed for different reasons, which it lists
            raise
        raise OSError(error.errno, os.strerror(error.errno)) from error
