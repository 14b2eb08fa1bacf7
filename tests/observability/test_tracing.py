"""Spans of updates, as a collector receives them by OTLP over HTTP."""

import asyncio
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from relay_kit import ACKED, TERMED, Scene, counters, new_job, update

from relay.contract.errors import ConfigurationError
from relay.contract.settings import TracingSettings
from relay.contract.subjects import Reason
from relay.observability.tracing import Tracing, open_tracing

TIMEOUT_S = 10
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACED = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "rojo=1,congo=2"}
NOT_SAMPLED = {"traceparent": f"00-{TRACE}-{SPAN}-00"}


class Collector:
    """Keeps every span that it receives, with the attributes of its sender."""

    def __init__(self) -> None:
        self.spans: list[tuple[Span, dict[str, Any]]] = []
        self._came = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Export, self.take))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=[0.01]).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = attributes(resource.resource)
            self.spans += [(span, about) for scope in resource.scope_spans for span in scope.spans]
        self._loop.call_soon_threadsafe(self._came.set)

    async def collected(self, count: int) -> list[Span]:
        """Wait until there are `count` spans, and return them."""
        async with asyncio.timeout(TIMEOUT_S):
            while len(self.spans) < count:
                self._came.clear()
                await self._came.wait()
        return [span for span, _ in self.spans]


class _Export(BaseHTTPRequestHandler):
    """Receives one export of spans."""

    def __init__(self, take: Callable[[bytes], None], *args: Any) -> None:
        self._take = take
        super().__init__(*args)

    def do_POST(self) -> None:
        self._take(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Log nothing: it would go to standard error."""


def attributes(of: Any) -> dict[str, Any]:
    """The attributes of a span or a resource."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in of.attributes}


@pytest.fixture
async def collector(monkeypatch) -> AsyncIterator[Collector]:
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        yield collector


@pytest.fixture
def tracing(nats_server, facilitator) -> Callable[..., Scene]:
    """A scene whose relays export spans."""
    return lambda **variables: Scene(nats_server, facilitator, TRACING="otel", **variables)


async def publish(scene: Scene, headers: dict[str, str], **told: Any):
    job = new_job(2)
    return await scene.publish_body(job, update(job, told.pop("status", "accepted")), headers, **told)


async def test_a_tracestate_that_cannot_be_read(tracing, collector, caplog):
    """It is left out of the span, and no line is logged for each such update."""
    async with tracing() as scene, scene.relay():
        await scene.settled(await publish(scene, TRACED | {"tracestate": "no state"}))
        (span,) = await collector.collected(1)
    assert (SPAN, "") == (span.parent_span_id.hex(), span.trace_state)
    assert [] == [record for record in caplog.records if record.name.startswith("opentelemetry")]


async def test_span_of_an_update(tracing, collector):
    """An update's span is a child of its publisher's span, and lasts from its delivery until it is settled."""
    async with tracing() as scene, scene.relay() as relay:
        began_ns = time.time_ns()
        published = await publish(scene, TRACED, status="accepted")
        await scene.settled(published)
        (span,) = await collector.collected(1)
        ended_ns = time.time_ns()
    assert (TRACE, SPAN) == (span.trace_id.hex(), span.parent_span_id.hex())
    assert ("relay job.status", Span.SPAN_KIND_CONSUMER) == (span.name, span.kind)
    assert TRACED["tracestate"] == span.trace_state
    assert began_ns < span.start_time_unix_nano < span.end_time_unix_nano < ended_ns
    assert {
        "messaging.system": "nats",
        "messaging.destination.name": "JOB_STATUS",
        "relay.job.uuid": published.job,
        "relay.status": "accepted",
        "relay.sequence": published.sequence,
        "relay.lane": 2,
        "relay.outcome": "acknowledged",
        "relay.attempts": 0,
        "relay.deliveries": 1,
    } == attributes(span)
    about = collector.spans[0][1]
    assert ("job-status-relay", relay._worker) == (about["service.name"], about["service.instance.id"])


async def test_span_of_a_dead_letter(tracing, collector, facilitator, capsys):
    """A dead letter's span is an error with its reason; its traceparent is passed on, and is in its log lines."""
    async with tracing(MAX_ATTEMPTS="2", LOG_LEVEL="info") as scene, scene.relay():
        job = new_job()
        facilitator.unknown_jobs.add(job)
        failed = await scene.publish_body(job, update(job), TRACED, status="accepted", dead_letter=Reason.JOB_NOT_FOUND)
        assert [TERMED] == await scene.settled(failed)
        (span,) = await collector.collected(1)
        (letter,) = await scene.dead_letters()
    told = attributes(span)
    assert (SPAN, Status.STATUS_CODE_ERROR) == (span.parent_span_id.hex(), span.status.code)
    assert span.status.message == letter.headers["Relay-Error"]
    assert ("dead_lettered", "job_not_found", 2) == tuple(
        told[f"relay.{name}"] for name in ("outcome", "reason", "attempts")
    )
    assert TRACED.items() <= letter.headers.items()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "dead-lettered" in line]
    assert f"traceparent={TRACED['traceparent']}" in line


@pytest.mark.parametrize(
    ("sampler", "made"),
    [
        ("", ["child", "root"]),
        ("parentbased_always_off", ["child"]),
        ("always_off", []),
        ("always_on", ["child"] * 2 + ["root"]),
    ],
)
async def test_sampling(tracing, collector, monkeypatch, sampler, made):
    """OTEL_TRACES_SAMPLER decides; by default the publisher's decision holds, and without a trace a new one begins."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    async with tracing() as scene:
        async with scene.relay():
            published = [await publish(scene, headers) for headers in (TRACED, NOT_SAMPLED, {})]
            assert [ACKED] * 3 == await scene.settled(*published)
        spans = [span for span, _ in collector.spans]  # the relay has stopped, so it has exported everything
    assert made == sorted("child" if span.parent_span_id else "root" for span in spans)


async def test_malformed_traceparent(tracing, collector):
    """A malformed traceparent is counted and ignored: the update is relayed, and begins a trace of its own."""
    async with tracing() as scene, scene.relay() as relay:
        assert [ACKED] == await scene.settled(await publish(scene, {"traceparent": "00-garbage"}))
        (span,) = await collector.collected(1)
        assert (b"", 1) == (span.parent_span_id, counters(relay)["relay_malformed_traceparents"])
        await scene.settled(await publish(scene, {"Traceparent": TRACED["traceparent"]}))
        assert SPAN == (await collector.collected(2))[1].parent_span_id.hex()
        assert 1 == counters(relay)["relay_malformed_traceparents"]


async def test_collector_away(tracing, monkeypatch, caplog):
    """Without a collector updates are still relayed, and the loss of spans is logged."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.3")  # the limit for retries of an export
    async with tracing() as scene, scene.relay():
        assert [ACKED] == await scene.settled(await publish(scene, TRACED))
    assert "Failed to export" in caplog.text


async def test_collector_that_hangs(capsys):
    """A collector that never answers does not keep the relay from stopping; the relay logs what was lost."""
    answer = threading.Event()
    provider = SimpleNamespace(get_tracer=lambda *_: None, shutdown=answer.wait)
    await Tracing(provider, "1", last_spans_s=0.05).close()
    answer.set()
    assert "the last spans could not be exported in time, and are lost" in capsys.readouterr().out


def test_off_costs_nothing():
    """Without tracing OpenTelemetry is not imported."""
    script = (
        "import sys, relay.cli, relay.service.app; print([each for each in sys.modules if 'opentelemetry' in each])"
    )
    assert "[]\n" == subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert open_tracing(TracingSettings(), worker="w", version="1") is None


def test_extra_is_missing(monkeypatch):
    """If tracing is wanted but not installed, the start ends with a sentence that says what to install."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigurationError) as caught:
        open_tracing(TracingSettings(backend="otel"), worker="w", version="1")
    assert str(caught.value).startswith(
        "RELAY_TRACING='otel' is not allowed: otel needs what the extra brings: pip install 'job-status-relay[otel]' ("
    )


@pytest.mark.parametrize(
    ("name", "value", "variable"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_PROTOCOL"),
        ("OTEL_TRACES_EXPORTER", "zipkin", "OTEL_TRACES_EXPORTER"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1", "RELAY_TRACING"),
    ],
)
def test_variables_that_cannot_be_used(monkeypatch, name, value, variable):
    """If OpenTelemetry's variables ask for something that is not available, the start ends as well."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        open_tracing(TracingSettings(backend="otel"), worker="w", version="1")
    assert variable == caught.value.variable


async def test_attributes_are_documented(tracing, collector):
    """docs/tracing.md has every attribute of a span, and no other."""
    page = (Path(__file__).parents[2] / "docs" / "tracing.md").read_text()
    async with tracing(MAX_ATTEMPTS="1") as scene, scene.relay():
        await scene.settled(await publish(scene, {}, status="no such status", dead_letter=Reason.UNKNOWN_STATUS))
        await scene.settled(await publish(scene, {}))
        spans = await collector.collected(2)
    made = {name for span in spans for name in attributes(span)}
    assert made == set(re.findall(r"^\| `((?:relay|messaging)\.[\w.]+)`", page, flags=re.MULTILINE))
