"""Opening TCP connections to a host name, which may have several addresses."""

import asyncio
import errno
import os
import socket
from collections.abc import Sequence
from typing import Any, Final

from relay.timing.waiting import at_most

LOOK_UP_S: Final = 5.0
"""For looking up a name: as long as resolvers commonly wait for a server that is silent."""
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
        connected = await _connect(addresses[first:] + addresses[:first], timeout_s)
        try:
            self._last[host, port] = connected.getpeername()
        except OSError:  # the other side has hung up already
            connected.close()
            raise
        return connected


async def _look_up(host: str, port: int) -> list[_AddressInfo]:
    if ":" in host and "%" in host:  # an IPv6 address with a zone, whose % may be written as %25; uvloop loses the zone
        zoned = host.replace("%25", "%", 1)
        return socket.getaddrinfo(zoned, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    try:
        try:
            return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except RuntimeError:  # the program ends, so that no thread can look it up any more; this blocks the event loop
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"{host!r} cannot be a host name: {error}") from error


async def _connect(addresses: list[_AddressInfo], timeout_s: float) -> socket.socket:
    """Try one address after the other, each for its share of the time that is left."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + timeout_s
    problems: list[OSError] = []
    for index, (family, kind, protocol, _, address) in enumerate(addresses):
        tried = socket.socket(family, kind, protocol)
        tried.settimeout(0)  # the event loop waits
        try:
            async with asyncio.timeout((until_s - loop.time()) / (len(addresses) - index)):
                await _connected(tried, address)
        except OSError as error:  # a TimeoutError is one
            tried.close()
            problems.append(error)
        except BaseException:
            tried.close()
            raise
        else:
            return tried
    raise _summed_up(problems, addresses, timeout_s)


async def _connected(tried: socket.socket, address: tuple[Any, ...]) -> None:
    """As `sock_connect` of the event loop, which forgets the zone of an IPv6 address if it is uvloop."""
    if not address[3:] or not address[3]:
        await asyncio.get_running_loop().sock_connect(tried, address)
        return
    if (begun := tried.connect_ex(address)) not in {0, errno.EINPROGRESS}:
        raise OSError(begun, os.strerror(begun))
    writable = asyncio.Event()
    asyncio.get_running_loop().add_writer(tried, writable.set)
    try:
        await writable.wait()
    finally:
        asyncio.get_running_loop().remove_writer(tried)
    if (ended := tried.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)) != 0:
        raise OSError(ended, os.strerror(ended))


def _summed_up(problems: Sequence[OSError], addresses: Sequence[_AddressInfo], timeout_s: float) -> OSError:
    """One error for all addresses. What a server has answered says more than silence."""
    answered = next((each for each in problems if each.errno is not None), None)
    if answered is not None and answered.errno is not None:
        return OSError(answered.errno, os.strerror(answered.errno))
    if not problems:
        return OSError("the name has no address")
    places = ", ".join(dict.fromkeys(str(each[4][0]) for each in addresses))
    return TimeoutError(f"no TCP connection to {places} port {addresses[0][4][1]} within {timeout_s:g} s")
