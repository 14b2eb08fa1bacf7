import asyncio
import contextlib
import http.client
import json
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from relay.contract.errors import ConfigurationError
from relay.contract.subjects import Reason
from relay.contract.wire import PushKind, Repair
from relay.observability.metrics import Metrics
from relay.service.health import HealthServer, ProbeAnswers, listen

HOST = "127.0.0.1"


class Answers:
    """Of a worker that lacks what `missing` says."""

    def __init__(self, missing: Sequence[str] = (), metrics: Metrics | None = None) -> None:
        self.missing: Sequence[str] | None = missing
        self._metrics = metrics or Metrics(lanes=1)

    def hung(self) -> Sequence[str]:
        return ()

    async def readiness(self) -> dict[str, Any]:
        return {"ready": not self.missing, "missing": list(self.missing)}

    async def exposition(self) -> bytes:
        return self._metrics.render()


@contextlib.asynccontextmanager
async def serving(answers: ProbeAnswers | None = None, **options: float) -> AsyncIterator[HealthServer]:
    server = HealthServer(listen(HOST, 0), answers or Answers(), **options)
    task = asyncio.create_task(server.serve())
    try:
        yield server
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def get(server: HealthServer, path: str, method: str = "GET") -> tuple[int, str, bytes]:
    """Status, content type and body; by a client of the standard library in a thread of its own."""

    def request() -> tuple[int, str, bytes]:
        with contextlib.closing(http.client.HTTPConnection(HOST, server.port, timeout=10)) as connection:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.headers["content-type"], response.read()

    return await asyncio.to_thread(request)


def series(exposition: bytes) -> Iterator[tuple[str, float]]:
    """Every sample as `name{label=value}` and its value."""
    for family in text_string_to_metric_families(exposition.decode()):
        for sample in family.samples:
            labels = ",".join(f"{label}={value}" for label, value in sample.labels.items())
            yield f"{sample.name}{{{labels}}}" if labels else sample.name, sample.value


async def test_livez():
    """The liveness probe answers 200 while the loop runs, ready or not."""
    async with serving(Answers(["no NATS connection"])) as server:
        assert await get(server, "/livez") == (200, "text/plain; charset=utf-8", b"ok\n")


async def test_readyz_follows_readiness():
    """The readiness probe asks anew each time: 503 with what is missing, 200 once nothing is."""
    missing = ["no NATS connection", "no lane is held"]
    async with serving(Answers(missing)) as server:
        status, kind, body = await get(server, "/readyz")
        assert (status, kind) == (503, "application/json")
        assert json.loads(body) == {"ready": False, "missing": ["no NATS connection", "no lane is held"]}
        missing.clear()
        status, _, body = await get(server, "/readyz")
        assert (status, json.loads(body)) == (200, {"ready": True, "missing": []})


async def test_unknown_path():
    """Any other path is 404, and any method but GET and HEAD is 405."""
    async with serving() as server:
        assert (await get(server, "/"))[0] == 404
        assert (await get(server, "/livez", "POST"))[0] == 405
        assert (await get(server, "/livez", "HEAD"))[0] == 200


async def test_metrics_count_what_happened():
    """Every event shows in its series on /metrics, and nothing else moves."""
    metrics = Metrics(lanes=2)
    async with serving(Answers(metrics=metrics)) as server:
        status, kind, body = await get(server, "/metrics")
        assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
        before = dict(series(body))
        metrics.acknowledged(0.003)
        metrics.duplicate(0.004)
        metrics.dead_lettered(Reason.JOB_NOT_FOUND)
        metrics.retried()
        metrics.repaired(Repair.NUL_REPLACED)
        metrics.pushed(PushKind.REQUEST)
        metrics.connection_opened()
        metrics.connection_lost()
        metrics.connection_refused()
        metrics.in_flight(7, 28)
        metrics.at_hand(1, 9)
        metrics.lane_taken(0, "expired")
        metrics.lane_taken(1, "handed_over")
        metrics.lane_left(0, "lost")
        metrics.backlog(1, 11, 2.5)
        metrics.nats_reconnected()
        metrics.traceparent_malformed()
        metrics.state(ready=True, nats=True, facilitator=2)
        metrics.loop_lagged(0.2)
        metrics.sent(0.000_3)
        metrics.answered(0.011)
        after = dict(series((await get(server, "/metrics"))[2]))
    changed = {
        name: value
        for name, value in after.items()
        if value != before[name] and name.startswith("relay_") and "_bucket{" not in name
    }
    assert changed == {
        "relay_updates_total{outcome=acknowledged}": 1,
        "relay_updates_total{outcome=duplicate}": 1,
        "relay_updates_total{outcome=dead_lettered}": 1,
        "relay_dead_letters_total{reason=job_not_found}": 1,
        "relay_retries_total": 1,
        "relay_repairs_total{rule=nul_replaced}": 1,
        "relay_pushes_total{kind=request}": 1,
        "relay_facilitator_connections_total{outcome=opened}": 1,
        "relay_facilitator_connections_total{outcome=lost}": 1,
        "relay_facilitator_connections_total{outcome=refused}": 1,
        "relay_in_flight": 7,
        "relay_window_use_ratio": 0.25,
        "relay_lane_owned{lane=1}": 1,
        "relay_lag{lane=1}": 11,
        "relay_takeovers_total{how=expired}": 1,
        "relay_takeovers_total{how=handed_over}": 1,
        "relay_lanes_left_total{how=lost}": 1,
        "relay_nats_reconnects_total": 1,
        "relay_malformed_traceparents_total": 1,
        "relay_ready": 1,
        "relay_nats_connected": 1,
        "relay_facilitator_connected": 2,
        "relay_event_loop_lag_seconds_count": 1,
        "relay_event_loop_lag_seconds_sum": 0.2,
        "relay_at_hand{lane=1}": 9,
        "relay_oldest_unrelayed_seconds{lane=1}": 2.5,
        "relay_hot_path_seconds_count": 1,
        "relay_hot_path_seconds_sum": 0.000_3,
        "relay_end_to_end_seconds_count": 2,
        "relay_end_to_end_seconds_sum": 0.007,
        "relay_facilitator_round_trip_seconds_count": 1,
        "relay_facilitator_round_trip_seconds_sum": 0.011,
    }


def test_every_series_exists_from_the_start():
    """Each reason, repair and kind has its series before it first happens, so that an increase from 0 is seen."""
    names = {name for name, _ in series(Metrics(lanes=2).render())}
    expected = {
        *(f"relay_updates_total{{outcome={outcome}}}" for outcome in ("acknowledged", "duplicate", "dead_lettered")),
        *(f"relay_dead_letters_total{{reason={reason}}}" for reason in Reason),
        *(f"relay_repairs_total{{rule={rule}}}" for rule in Repair),
        *(f"relay_pushes_total{{kind={kind}}}" for kind in ("request", "cheated", "other")),
        *(f"relay_facilitator_connections_total{{outcome={outcome}}}" for outcome in ("opened", "lost", "refused")),
        *(f"relay_at_hand{{lane={lane}}}" for lane in range(2)),
        *(f"relay_lag{{lane={lane}}}" for lane in range(2)),
        *(f"relay_takeovers_total{{how={how}}}" for how in ("handed_over", "expired", "free")),
        *(f"relay_lanes_left_total{{how={how}}}" for how in ("given_up", "given_up_undrained", "lost")),
        "relay_retries_total",
        "relay_in_flight",
    }
    assert expected - names == set()


@pytest.mark.parametrize("name", ["hot_path", "end_to_end", "facilitator_round_trip", "event_loop_lag"])
def test_buckets(name):
    """Histograms resolve 50 microseconds and reach 60 seconds."""
    prefix = f"relay_{name}_seconds_bucket{{le="
    bounds = [key.removeprefix(prefix)[:-1] for key, _ in series(Metrics(lanes=1).render()) if key.startswith(prefix)]
    assert (bounds[0], bounds[-2], bounds[-1]) == ("5e-05", "60.0", "+Inf")


async def test_ends_promptly_when_cancelled():
    """Cancelled with a client connected and half through its request, it ends within a second and frees the port."""
    loop = asyncio.get_running_loop()
    async with serving() as server:
        reader, writer = await asyncio.open_connection(HOST, server.port)
        writer.write(b"GET /livez HTTP/1.1\r\n")
        await get(server, "/livez")
        began_s = loop.time()
    assert loop.time() - began_s < 1
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    socket.create_server((HOST, server.port)).close()


@pytest.mark.parametrize("turns", [1, 2, 3])
async def test_cancelled_while_starting(turns):
    """Cancelled before it is up, after any number of turns of the loop, it gives the port back too."""
    server = HealthServer(listen(HOST, 0), Answers())
    task = asyncio.create_task(server.serve())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    socket.create_server((HOST, server.port)).close()


def test_never_served():
    """A server that is closed before it serves gives the port back."""
    server = HealthServer(listen(HOST, 0), Answers())
    server.close()
    socket.create_server((HOST, server.port)).close()


async def test_signals_stay_with_the_process():
    """Serving leaves the handlers of SIGINT and SIGTERM as they were."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with serving() as server:
        await get(server, "/livez")
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_port_in_use():
    """A port that something else listens on is refused by name, before anything is served."""
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError) as caught:
            listen(HOST, port)
    assert (caught.value.variable, caught.value.value) == ("RELAY_HTTP_PORT", str(port))
    expected = (
        f"RELAY_HTTP_PORT='{port}' is not allowed: Address already in use on 127.0.0.1; "
        "give a port that is free and open to this user, or 0 for any free one"
    )
    assert str(caught.value) == expected


@pytest.mark.parametrize("host", ["a..b", "relay.invalid", "192.0.2.1"])
def test_host_of_another_machine(host):
    """A host that cannot be, that is unknown, or that is not of this machine is refused by name."""
    with pytest.raises(ConfigurationError) as caught:
        listen(host, 0)
    assert (caught.value.variable, caught.value.value) == ("RELAY_HTTP_HOST", host)
    assert caught.value.allowed.split("; ")[-1] == "give a host name or address of this machine"


async def test_broken_readiness_is_an_error():
    """A readiness check that fails answers 500, and the server lives on."""
    async with serving(Answers(missing=None)) as server:
        assert (await get(server, "/readyz"))[0] == 500
        assert (await get(server, "/livez"))[0] == 200


async def test_idle_connections_starve_nobody():
    """However many clients connect and send nothing, or half a request, the next probe is answered; the oldest go."""
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving())
        clients = [stack.enter_context(socket.socket()) for _ in range(300)]
        for number, client in enumerate(clients):
            client.settimeout(0)
            await loop.sock_connect(client, (HOST, server.port))
            client.send(b"GET /livez HTTP/1.1\r\nhost: " * (number % 2))
        assert (await get(server, "/livez"))[0] == 200
        assert (await get(server, "/metrics"))[0] == 200
        for client in clients[:200]:
            async with asyncio.timeout(5):
                with contextlib.suppress(ConnectionResetError):
                    assert await loop.sock_recv(client, 1) == b""


@pytest.mark.parametrize("sent", [b"", b"GET /livez HTTP/1.1\r\nhost: "])
async def test_slow_request(sent):
    """A client that does not come to the end of its request is hung up on when its time is over, and only then."""
    loop = asyncio.get_running_loop()
    async with serving(timeout_s=0.3) as server:
        began_s = loop.time()
        reader, writer = await asyncio.open_connection(HOST, server.port)
        writer.write(sent)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        assert loop.time() - began_s > 0.25
        writer.close()


async def test_one_request_for_each_connection():
    """The connection is closed after the answer, so that no client has to find out whether it still stands."""
    async with serving() as server:
        reader, writer = await asyncio.open_connection(HOST, server.port)
        writer.write(b"GET /livez HTTP/1.1\r\nhost: relay\r\n\r\n" * 2)
        answer = await reader.read()
        writer.close()
    assert answer.count(b"HTTP/1.1 200 OK") == 1
    assert b"connection: close" in answer
