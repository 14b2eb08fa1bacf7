"""Checking addresses and paths that users give. What is wrong with one is said without showing it: it may be secret."""

import errno
import os
from collections.abc import Collection
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import ValidationError

NATS_SCHEMES: Final = ("nats", "tls", "ws", "wss")
_HIGHEST_PORT: Final = 65535


class Unusable(ValueError):  # noqa: N818 - named after what it says of a value
    """What is wrong with a value, in words: a part of a sentence that begins with `it`."""


def nats_address(url: str) -> str:
    """The address of a nats-server, with its scheme in small letters: nats-py knows no other. Raises Unusable."""
    parts = _address(url, NATS_SCHEMES)
    if parts.path not in {"", "/"} and parts.scheme in {"nats", "tls"}:
        raise Unusable("it has a path; a / in a password is written as %2F")
    return url.replace(url.partition(":")[0], parts.scheme, 1)


def facilitator_address(url: str) -> str:
    """The address of the Facilitator, as it was given. Raises Unusable."""
    parts = _address(url, ("ws", "wss"))
    if not parts.path.endswith("/") or parts.path == "/":
        raise Unusable("its path does not end with a slash" if parts.path.strip("/") else "it has no path")
    if parts.fragment:
        raise Unusable("it has a part after #; a # in a password or a path is written as %23")
    if parts.username is not None and parts.password is None:  # for HTTP's Basic authentication, which needs both
        raise Unusable("it has a user without a password")
    for text in (parts.username, parts.password):
        _decoded(text or "")
    return url


def web_address(url: str | None) -> str | None:
    """The address of a page, as it was given. Raises Unusable."""
    if url is not None:
        _address(url, ("http", "https"))
    return url


def parse_proxy(url: str) -> SplitResult:
    """The parts of a proxy's address. Raises Unusable."""
    parts = _address(url, ("http", "https"))
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise Unusable("it has more than a host and a port")
    if (parts.username is None) != (parts.password is None):
        raise Unusable("it has a user without a password")
    return parts


def existing_file(path: Path) -> Path:
    """The path of a file that exists. Raises Unusable."""
    # Not pydantic's FilePath: it raises OSError if the name is too long or the folder may not be read.
    try:
        if path.is_file():
            return path
        exists = path.exists()
    except OSError as error:
        raise Unusable(f"it cannot be read: {os.strerror(error.errno or errno.EIO)}") from error
    raise Unusable("it is no file" if exists else "there is no such file")


def problem_of(error: ValidationError) -> str:
    """What is wrong with the first value that pydantic refused, if a function of this module has refused it."""
    cause = error.errors()[0].get("ctx", {}).get("error")
    return str(cause) if isinstance(cause, Unusable) else ""


def _address(url: str, schemes: Collection[str]) -> SplitResult:
    """The parts of an address whose scheme, host and port can be used."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise Unusable("what is between [ and ] is no IPv6 address") from error
    if parts.scheme not in schemes:
        raise Unusable(f"it begins with none of {', '.join(f'{each}://' for each in schemes)}")
    _check_host(parts.hostname or "")
    try:
        port = parts.port
    except ValueError as error:
        raise Unusable(f"its port is not a number from 1 to {_HIGHEST_PORT}") from error
    if port == 0:
        raise Unusable(f"its port is not a number from 1 to {_HIGHEST_PORT}")
    return parts


def _check_host(host: str) -> None:
    if not host:
        raise Unusable("it has no host")
    if any(char.isspace() or not char.isprintable() for char in host):
        raise Unusable("its host has a blank, or a character that cannot be shown")
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise Unusable("its host has an empty part, one of more than 63 characters, or one that no host has") from error


def _decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeError as error:
        raise Unusable("its user or password, percent-decoded, is not UTF-8") from error
