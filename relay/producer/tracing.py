"""The trace that an update belongs to, as the headers `traceparent` and `tracestate` of W3C Trace Context."""

import sys
from typing import Final

from relay.core.trace import parse_traceparent
from relay.observability.logs import get_logger

TRACEPARENT_HEADER: Final = "traceparent"
TRACESTATE_HEADER: Final = "tracestate"
_log = get_logger(__name__, guest=True)


def trace_headers(traceparent: str | None) -> dict[str, str]:
    """The header for `traceparent`; if that is None, those of the active OpenTelemetry trace. Empty if there is none.

    Never raises. A malformed `traceparent` is logged and left out, because the update must be published all the same.
    """
    if traceparent is None:
        return _active()
    if parse_traceparent(traceparent) is None:
        _log.warning("a malformed traceparent was left out", traceparent=traceparent[:100])
        return {}
    return {TRACEPARENT_HEADER: traceparent}


def _active() -> dict[str, str]:
    # A trace can be active only if the program has imported OpenTelemetry, so other programs need not import it.
    if "opentelemetry.trace" not in sys.modules:
        return {}
    from opentelemetry.trace import get_current_span  # noqa: PLC0415

    span = get_current_span().get_span_context()
    if not span.is_valid:
        return {}
    headers = {TRACEPARENT_HEADER: f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"}
    if span.trace_state:
        headers[TRACESTATE_HEADER] = span.trace_state.to_header()
    return headers
