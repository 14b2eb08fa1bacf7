"""A span for each update, for OpenTelemetry: from its delivery until it is settled, in the trace of its `traceparent`.

OpenTelemetry's own variables say where spans go and which are sampled: `OTEL_EXPORTER_OTLP_ENDPOINT`,
`OTEL_TRACES_SAMPLER` and others. A thread of the SDK exports them. Spans that do not fit into its queue
(`OTEL_BSP_MAX_QUEUE_SIZE`) are dropped, so a collector that is away or slow does not delay updates.
"""

import asyncio
import contextlib
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Final

from relay.contract.errors import ConfigurationError
from relay.contract.settings import TracingSettings
from relay.contract.subjects import STATUS_STREAM
from relay.core.trace import TraceContext, parse_traceparent, traceparent_of, tracestate_of
from relay.core.update import Settled
from relay.core.verdict import Outcome
from relay.observability.logs import get_logger
from relay.timing.clock import monotonic
from relay.timing.waiting import set_within

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

_log = get_logger(__name__)

_LAST_SPANS_S: Final = 3.0
_NS_PER_S: Final = 1_000_000_000
_SPAN_NAME: Final = "relay job.status"
_ONLY: Final = {
    "OTEL_TRACES_EXPORTER": "otlp",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
}
"""Variables of OpenTelemetry for which the relay supports one value only, which is also the default."""


def open_tracing(settings: TracingSettings, *, worker: str, version: str) -> "Tracing | None":
    """Tracing as the settings and OpenTelemetry's variables say, or None if it is off.

    Raises ConfigurationError if the extra `otel` is not installed, or OpenTelemetry's variables cannot be used.
    """
    if settings.backend == "none":
        return None
    for name, only in _ONLY.items():
        if (value := os.environ.get(name, only)) != only:
            raise ConfigurationError(name, value, f"{only}, the one that the relay knows")
    try:
        return Tracing(_provider(worker, version), version)
    except ImportError as error:
        allowed = f"otel needs what the extra brings: pip install 'job-status-relay[otel]' ({error})"
        raise ConfigurationError("RELAY_TRACING", settings.backend, allowed) from error
    except ValueError as error:
        allowed = f"OpenTelemetry refuses what one of the variables OTEL_* says ({error})"
        raise ConfigurationError("RELAY_TRACING", settings.backend, allowed) from error


class Tracing:
    """Makes a span of each settled update: it is a SettlementObserver, see core/ports.py."""

    def __init__(self, provider: "TracerProvider", version: str, *, last_spans_s: float = _LAST_SPANS_S) -> None:
        self._provider = provider
        self._last_spans_s = last_spans_s
        self._tracer = provider.get_tracer("relay", version)
        # It would warn of each update whose producer wrote a `tracestate` that it does not understand, with the text.
        logging.getLogger("opentelemetry.trace.span").setLevel(logging.ERROR)

    def settled(self, settled: Settled) -> None:
        """Make the span of an update that was just settled: its attributes are not known earlier."""
        from opentelemetry.trace import SpanKind, Status, StatusCode  # noqa: PLC0415 - where tracing is on, it is there

        ended_ns = time.time_ns()
        text = traceparent_of(settled.headers)
        span = self._tracer.start_span(
            _SPAN_NAME,
            context=_context(parse_traceparent(text) if text is not None else None, tracestate_of(settled.headers)),
            kind=SpanKind.CONSUMER,
            attributes=_attributes(settled),
            start_time=ended_ns - int((monotonic() - settled.delivered_s) * _NS_PER_S),
        )
        if settled.outcome is Outcome.DEAD_LETTERED:
            span.set_status(Status(StatusCode.ERROR, settled.error or "dead-lettered before"))
        span.end(ended_ns)

    async def close(self) -> None:
        """Export the spans that are left. Gives up after `last_spans_s` seconds and logs that they are lost.

        Cancelling it is safe, but may lose them.
        """
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def export() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop has ended, because the wait was given up
                loop.call_soon_threadsafe(done.set)

        # Not one of the loop's threads: the process cannot end before those do.
        threading.Thread(target=export, name="last spans", daemon=True).start()
        if not await set_within(done, self._last_spans_s):
            _log.warning("the last spans could not be exported in time, and are lost", waited_s=self._last_spans_s)


def _provider(worker: str, version: str) -> "TracerProvider":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - an extra
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    about = {"service.instance.id": worker, "service.version": version}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        about[SERVICE_NAME] = "job-status-relay"
    provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _context(parent: TraceContext | None, state: str | None) -> "Context":
    from opentelemetry import trace  # noqa: PLC0415
    from opentelemetry.context import Context  # noqa: PLC0415
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context  # noqa: PLC0415

    if parent is None:
        return Context()
    span = SpanContext(
        parent.trace_id,
        parent.span_id,
        is_remote=True,
        trace_flags=TraceFlags(parent.flags),
        trace_state=trace.TraceState.from_header([state]) if state else None,
    )
    return set_span_in_context(NonRecordingSpan(span), Context())


def _attributes(settled: Settled) -> dict[str, str | int]:
    told: dict[str, str | int] = {
        "messaging.system": "nats",
        "messaging.destination.name": STATUS_STREAM,
        "relay.job.uuid": settled.job,
        "relay.sequence": settled.sequence,
        "relay.lane": settled.lane,
        "relay.outcome": settled.outcome.value,
        "relay.attempts": settled.attempts,
        "relay.deliveries": settled.deliveries,
    }
    if settled.status is not None:
        told["relay.status"] = settled.status
    if settled.reason is not None:
        told["relay.reason"] = settled.reason.value
    return told
