"""The proxy that the environment names for all programs, as in HTTPS_PROXY."""

import ipaddress
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

_VARIABLES: Final = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
"""The first one that is set counts."""


class UsualProxy(NamedTuple):
    """The variable that names a proxy, and its value."""

    variable: str
    url: str


def usual_proxy(url: str, environ: Mapping[str, str]) -> UsualProxy | None:
    """The proxy to go through to `url`; None if there is none, if NO_PROXY excludes it, or if it is this machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    excluded = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    if _is_local(host) or any(_excludes(entry.strip(), host, parts.port) for entry in excluded.split(",")):
        return None
    found = next((UsualProxy(name, value) for name in _VARIABLES if (value := environ.get(name, "").strip())), None)
    if found is None or "://" in found.url:
        return found
    return UsualProxy(found.variable, f"http://{found.url}")


def _excludes(entry: str, host: str, port: int | None) -> bool:
    """Whether an entry of NO_PROXY, such as `example.org`, `.example.org`, `10.0.0.7:443` or `*`, means this host."""
    if entry == "*":
        return True
    name, _, its_port = entry.rpartition(":") if entry.rpartition(":")[2].isdecimal() else (entry, "", "")
    name = name.strip("[]").removeprefix("*").removeprefix(".").lower()
    return bool(name) and (host == name or host.endswith(f".{name}")) and its_port in {"", str(port)}


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
