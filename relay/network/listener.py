"""Listening on a host and port that a setting names."""

import errno
import os
import socket
from collections.abc import Iterable
from typing import Final

from relay.contract.errors import ConfigurationError

_ALL_INTERFACES: Final = ("0.0.0.0", "::")  # noqa: S104 - only if the setting names one of them
_ATTEMPTS: Final = 10
_NO_SUCH_ADDRESS: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


def listen(host: str, port: int, *, prefix: str) -> list[socket.socket]:
    """Sockets that listen there, one for each address of the host; port 0 takes a free one, the same for all.

    The address of all interfaces, 0.0.0.0 or ::, stands for those of both families. A family that this system does not
    have is left out, unless no other is left.

    Raises ConfigurationError if it cannot. It names the setting: `prefix`, such as RELAY_HTTP, with _HOST or _PORT.
    """
    hosts = _ALL_INTERFACES if host in _ALL_INTERFACES else (host,)
    try:
        found = [each for name in hosts for each in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)]
    except (socket.gaierror, UnicodeError) as error:  # the latter for what cannot be a host name at all
        raise _unusable_host(host, str(error), prefix) from error
    addresses = dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found)
    attempts = 1 if port else _ATTEMPTS  # the free port that the first address got can be taken on the next
    while True:
        try:
            return _listeners(addresses, port)
        except OSError as error:
            attempts -= 1
            if not attempts or error.errno != errno.EADDRINUSE:
                raise _unusable(host, port, error, prefix) from error


def _listeners(addresses: Iterable[tuple[int, str]], port: int) -> list[socket.socket]:
    listeners: list[socket.socket] = []
    missing: OSError | None = None
    for family, address in addresses:
        try:
            taken = listeners[0].getsockname()[1] if listeners else port
            listeners.append(socket.create_server((address, taken), family=family))
        except OSError as error:
            if error.errno not in _NO_SUCH_ADDRESS:
                for listener in listeners:
                    listener.close()
                raise
            missing = error
    if missing is not None and not listeners:
        raise missing
    return listeners


def _unusable(host: str, port: int, error: OSError, prefix: str) -> ConfigurationError:
    cause = os.strerror(error.errno or 0)
    if error.errno not in {errno.EADDRINUSE, errno.EACCES}:
        return _unusable_host(host, cause, prefix)
    allowed = f"{cause} on {host}; give a port that is free and open to this user, or 0 for any free one"
    return ConfigurationError(f"{prefix}_PORT", str(port), allowed)


def _unusable_host(host: str, cause: str, prefix: str) -> ConfigurationError:
    return ConfigurationError(f"{prefix}_HOST", host, f"{cause}; give a host name or address of this machine")
