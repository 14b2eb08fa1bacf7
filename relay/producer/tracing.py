"""The trace that an update belongs to, as the W3C's `traceparent` header."""

import sys
from typing import Final

from relay.core.trace import parse_traceparent
from relay.observability.logs import get_logger

TRACEPARENT_HEADER: Final = "traceparent"
_log = get_logger(__name__, guest=True)


def trace_headers(traceparent: str | None) -> dict[str, str]:
    """The header for `traceparent`; for the trace that is active, if that is None; empty without either.

    Never raises: no update is held up for the sake of its trace.
    """
    if traceparent is None:
        traceparent = _active()
    elif parse_traceparent(traceparent) is None:
        _log.warning("a traceparent that is none was left out", traceparent=traceparent[:100])
        return {}
    return {TRACEPARENT_HEADER: traceparent} if traceparent else {}


def _active() -> str | None:
    # A trace can be active only where somebody has imported OpenTelemetry; importing it here would cost all others.
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry.trace import get_current_span  # noqa: PLC0415

    span = get_current_span().get_span_context()
    if not span.is_valid:
        return None
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"
