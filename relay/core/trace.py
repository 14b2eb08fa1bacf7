"""The trace that an update belongs to: the headers `traceparent` and `tracestate` of W3C Trace Context.

`00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01` consists of the version, the id of the trace, the id of the
span that caused the update, and flags (01: sampled). `tracestate` is what the tools of a trace tell each other, such as
`rojo=00f067aa0ba902b7`: it is passed on as it is.
"""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

_NAMES: Final = ("traceparent", "Traceparent")
"""The standard's spelling, and that of clients which capitalize headers as in HTTP."""
_STATE_NAMES: Final = ("tracestate", "Tracestate")
_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?")
_SIMPLEST: Final = "00"
_FORBIDDEN: Final = "ff"


class TraceContext(NamedTuple):
    """The trace and the span in which an update was published."""

    trace_id: int
    span_id: int
    flags: int


def traceparent_of(headers: Mapping[str, str]) -> str | None:
    """The header, unchecked; None if there is none."""
    for name in _NAMES:
        if (text := headers.get(name)) is not None:
            return text
    return None


def parse_traceparent(text: str) -> TraceContext | None:
    """Parse a `traceparent`; None if it is malformed. What later versions add is skipped."""
    match = _TRACEPARENT.fullmatch(text)
    if match is None or match[1] == _FORBIDDEN or (match[5] and match[1] == _SIMPLEST):
        return None
    context = TraceContext(int(match[2], 16), int(match[3], 16), int(match[4], 16))
    return context if context.trace_id and context.span_id else None


def tracestate_of(headers: Mapping[str, str]) -> str | None:
    """The header `tracestate`, unchecked; None if there is none."""
    return next((headers[name] for name in _STATE_NAMES if name in headers), None)


def trace_headers_of(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers to pass on with a message about an update with these: none without a well-formed `traceparent`."""
    found = traced(headers)
    if found and (state := tracestate_of(headers)) is not None:
        found["tracestate"] = state
    return found


def traced(headers: Mapping[str, str]) -> dict[str, str]:
    """The fields for a log line about an update with these headers: `traceparent`, if it is well-formed."""
    text = traceparent_of(headers)
    return {} if text is None or parse_traceparent(text) is None else {"traceparent": text}
