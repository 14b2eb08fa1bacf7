"""The headers that users add to the request for a WebSocket."""

import re
from typing import Final

ALLOWED: Final = (
    "headers `Name: value`, separated by semicolons, in printable ASCII, up to 4096 characters in all; each name once,"
    " and none of the connection itself (such as Host, Upgrade, Connection, Sec-WebSocket-..., Content-Length)"
)
_MOST_CHARS: Final = 4096
"""Servers take some 8 KiB of headers, ours and those of proxies included."""
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[ -~]+")
_OWN: Final = frozenset(
    ("host", "upgrade", "connection", "keep-alive", "content-length", "transfer-encoding", "te", "trailer", "expect")
)
_OWN_PREFIXES: Final = ("sec-websocket-", "proxy-")


def parse_upgrade_headers(text: str) -> tuple[tuple[str, str], ...]:
    """The headers in `Name: value; Name: value`, in this order. Raises ValueError if one is not ALLOWED."""
    if len(text) > _MOST_CHARS:
        raise ValueError("too long")
    headers = [_parse(part) for part in text.split(";") if part.strip()]
    if not headers or len({name.lower() for name, _ in headers}) < len(headers):
        raise ValueError("no header, or a name twice")
    return tuple(headers)


def _parse(part: str) -> tuple[str, str]:
    name, _, value = part.partition(":")
    name, value = name.strip(" "), value.strip(" ")
    if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
        raise ValueError("not a header")
    if name.lower() in _OWN or name.lower().startswith(_OWN_PREFIXES):
        raise ValueError("a header of the connection itself")
    return name, value
