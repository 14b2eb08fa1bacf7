"""What nats-server says just before it ends a connection, what it means, and what to do about it."""

from collections.abc import Mapping
from typing import Final

from relay.contract.text import describe

_TRY_AGAIN: Final = "wait, or raise it"
_CLIENT_PORT: Final = "use the port for clients in RELAY_NATS_URL, which is 4222 unless the server has another one"
_MEANINGS: Final[Mapping[str, tuple[str, str]]] = {
    "maximum connections exceeded": (
        "the server has as many connections as its max_connections allows",
        "raise it, or end some connections (`nats server report connections`)",
    ),
    "maximum account active connections exceeded": (
        "the NATS account has as many connections as its limits allow, or is disabled",
        "raise its limit of connections, or end some (`nats server report connections`)",
    ),
    "connection throttling is active": (
        "clients connect more often than connection_rate_limit of the server's `tls` block allows",
        _TRY_AGAIN,
    ),
    "authentication timeout": (
        "signing in took longer than the `timeout` of the server's `authorization` allows",
        _TRY_AGAIN,
    ),
    "user authentication expired": ("the user's JWT has expired", "issue a new one"),
    "account authentication expired": ("the account's JWT has expired", "have its operator issue a new one"),
    "secure connection - tls required": (
        "the TLS handshake took longer than the `timeout` of the server's `tls` block allows",
        _TRY_AGAIN,
    ),
    "maximum payload violation": (
        "a message was larger than the server's max_payload, which may have been lowered",
        "raise max_payload to what it was",
    ),
    "stale connection": ("the server had no answer to its pings", "look at the load of this machine, and the network"),
    "attempted to connect to route port": ("this is the server's port for its cluster", _CLIENT_PORT),
    "attempted to connect to gateway port": ("this is the server's port for gateways", _CLIENT_PORT),
    "attempted to connect to leaf node port": ("this is the server's port for leaf nodes", _CLIENT_PORT),
}
"""By the beginning of what the server says, in lower case: nats-py gives some of it so."""


def explained(problem: str) -> tuple[str, str]:
    """The problem with what it means, and what to do about it; the problem as it is, and "", if it is none of these."""
    for said, (meaning, remedy) in _MEANINGS.items():
        if problem.lower().startswith(said):
            return f"{problem.rstrip('.')}: {meaning}", remedy
    return problem, ""


def error_in(unread: bytes) -> str | None:
    r"""The text of the first error in lines of NATS's protocol, such as `-ERR 'stale connection'\r\n`; else None."""
    for line in unread.splitlines():
        if line.startswith(b"-ERR"):
            return line.removeprefix(b"-ERR").strip().strip(b"'").decode(errors="replace")
    return None


def describe_nats(error: BaseException) -> str:
    """The message of an error of nats-py, without what nats-py puts around the words of the server."""
    return describe(error).removeprefix("nats: ").strip("'")
