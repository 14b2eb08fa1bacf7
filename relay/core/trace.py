"""The trace that an update belongs to, as the W3C's Trace Context writes it in the header `traceparent`.

In `00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01` stand the version, the trace, the span that caused the
update, and flags (01: sampled).
"""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

_NAMES: Final = ("traceparent", "Traceparent")
"""As the standard writes it, and as clients write it that spell headers as those of HTTP."""
_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?")
_SIMPLEST: Final = "00"
_FORBIDDEN: Final = "ff"


class TraceContext(NamedTuple):
    """Where in which trace an update was published."""

    trace_id: int
    span_id: int
    flags: int


def traceparent_of(headers: Mapping[str, str]) -> str | None:
    """The header as it came, whatever is in it; None without one."""
    for name in _NAMES:
        if (text := headers.get(name)) is not None:
            return text
    return None


def parse_traceparent(text: str) -> TraceContext | None:
    """What a `traceparent` says; None if it is malformed. A later version may say more than we can read."""
    match = _TRACEPARENT.fullmatch(text)
    if match is None or match[1] == _FORBIDDEN or (match[5] and match[1] == _SIMPLEST):
        return None
    context = TraceContext(int(match[2], 16), int(match[3], 16), int(match[4], 16))
    return context if context.trace_id and context.span_id else None


def traced(headers: Mapping[str, str]) -> dict[str, str]:
    """What a log line or a receipt says of the trace of an update with these headers, if its `traceparent` is one."""
    text = traceparent_of(headers)
    return {} if text is None or parse_traceparent(text) is None else {"traceparent": text}
