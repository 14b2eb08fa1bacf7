"""Which requests of a browser are let in: hosts, origins, proxies. Without I/O."""

import ipaddress
from collections.abc import Mapping, Sequence
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from relay.contract.console_settings import ConsoleSettings


def is_known_host(host: str, settings: ConsoleSettings) -> bool:
    """Whether the header Host may be trusted to be ours.

    On loopback a site in the same browser could give its own name the address 127.0.0.1 (DNS rebinding), and then read
    the page as if it were its own. Elsewhere such a name gets no cookie, so nobody is signed in under it.
    """
    if not settings.is_loopback:
        return bool(host)
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_same_origin(origin: str, host: str) -> bool:
    """Whether the header Origin names the site that the header Host names."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and parts.netloc.lower() == host.lower()


def user_of(headers: Mapping[str, str], peer: str, settings: ConsoleSettings) -> str:
    """The user that a trusted proxy names; empty if there is none."""
    if settings.user_header is None or not _is_among(peer, settings.proxies):
        return ""
    return headers.get(settings.user_header.lower(), "")


def _is_among(peer: str, networks: Sequence[str]) -> bool:
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in ipaddress.ip_network(network) for network in networks)


def cookie_of(headers: Mapping[str, str], name: str) -> str:
    """The value of a cookie; empty if there is none."""
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return morsel.value if morsel else ""


def without_prefix(path: str, prefix: str) -> str | None:
    """The path behind the prefix, which a proxy may have removed already; None if it is the prefix without a slash."""
    if prefix and path == prefix:
        return None
    return path.removeprefix(prefix) if prefix and path.startswith(f"{prefix}/") else path
