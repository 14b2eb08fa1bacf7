"""Text that is safe to send and to show, and figures in words.

It is in the lowest room because the settings and the wire format use it, too.
"""

import os
from collections.abc import Mapping
from typing import Final, TextIO
from urllib.parse import urlsplit

_DURATIONS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"))
_SIZES: Final = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_DECIMAL_BELOW_S: Final = 10


def escape(text: str) -> str:
    """`text` with each unprintable character as its escape sequence, so that it cannot control a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def one_line(text: str) -> str:
    """`text` with a space for each unprintable character: one line that any NATS header can hold."""
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)


def ascii_line(text: str, max_chars: int) -> str:
    """`text` as one line of ASCII, with escape sequences for all other characters, cut off at `max_chars`."""
    escaped = text[:max_chars].encode("unicode_escape").decode("ascii")
    return escaped if len(escaped) <= max_chars else escaped[: max_chars - 3] + "..."


def describe(error: BaseException) -> str:
    """The message of an error; its type if it has no message. Of a timeout neither says anything to a reader."""
    if isinstance(error, TimeoutError) and str(error) in {"", "nats: timeout"}:
        return "no answer in time"
    return str(error) or type(error).__name__


def redact_url(url: str) -> str:
    """`url` without the parts that may hold a secret: user, password, query and fragment."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def wants_color(stream: TextIO) -> bool:
    """Whether to write in colours to `stream`: if it is a terminal, unless NO_COLOR or FORCE_COLOR says otherwise."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (stream.isatty() and os.environ.get("TERM") != "dumb")


def format_duration(seconds: float) -> str:
    """A number of seconds, rounded, in one unit: `0.4 s`, `12 s`, `3 min`, `5 d`."""
    for unit_s, unit in _DURATIONS:
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < _DECIMAL_BELOW_S else f"{seconds:.0f} s"


def format_size(count: int) -> str:
    """A number of bytes, rounded, in one unit: `812 B`, `4.2 MiB`."""
    for unit_bytes, unit in _SIZES:
        if count >= unit_bytes:
            return f"{count / unit_bytes:.1f} {unit}"
    return f"{count} B"


def how_many(count: int | str, noun: str) -> str:
    """A number with its noun: `1 byte`, `2 bytes`."""
    return f"{count} {noun}" if str(count) == "1" else f"{count} {noun}s"


def format_counts(by_reason: Mapping[str, int]) -> str:
    """Dead letters by reason, in the order of the mapping: `refused 2, without a reason 1`."""
    return ", ".join(f"{reason or 'without a reason'} {count}" for reason, count in by_reason.items())
