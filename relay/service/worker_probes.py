"""The probes of a parent: it asks its workers over HTTP, and combines their answers on one port.

Each worker runs the same health server as a worker without a parent, on a Unix socket instead of a port; see health.py.
"""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import h11
from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from relay.observability.collectors import Collected, LogMetrics
from relay.service.surroundings import exhausted

_CHUNK_BYTES: Final = 65536


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long the parent waits for a worker, in seconds."""

    readiness_s: float = 1.0
    """For `/readyz`: no longer than the parent's own client waits."""
    metrics_s: float = 3.0
    """For `/metrics`: a worker makes them slowly, to let updates through. Prometheus waits for 10 s."""
    look_every_s: float = 1.0
    """Between two checks that the worker's event loop runs."""
    hung_s: float = 10.0
    """A worker that has not answered for longer counts as hung."""
    start_s: float = 60.0
    """The same before its first answer: opening an encrypted hotkey takes seconds, on a busy machine many of them."""


TIMEOUTS: Final = Timeouts()


class NoAnswer(Exception):  # noqa: N818 - named for the state it reports
    """The worker did not answer; `str()` says why in words."""


@dataclass(slots=True)
class _WorkerProcess:
    """A worker that runs."""

    address: str | bytes
    began_s: float
    answered_s: float | None = None
    """When it last answered; None until it has started."""

    def silent_s(self, now_s: float, timeouts: Timeouts) -> float | None:
        """For how many seconds it has not answered, if that is too long; else None."""
        since_s, allowed_s = self.began_s, timeouts.start_s
        if self.answered_s is not None:
            since_s, allowed_s = self.answered_s, timeouts.hung_s
        return now_s - since_s if now_s - since_s > allowed_s else None


class WorkerProbes:
    """The ProbeAnswers of `workers` workers, numbered from 0; see health.py.

    Args:
        clock: the monotonic clock, in seconds.
    """

    def __init__(
        self, workers: int, timeouts: Timeouts = TIMEOUTS, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._timeouts = timeouts
        self._clock = clock
        self._processes: dict[int, _WorkerProcess | None] = dict.fromkeys(range(workers))
        disable_created_metrics()
        self._registry = CollectorRegistry()
        up = Gauge("relay_worker_up", "1 if the worker gave its metrics, else 0.", ["worker"], registry=self._registry)
        restarts = Counter(
            "relay_worker_restarts", "Times that a dead worker was started again.", ["worker"], registry=self._registry
        )
        self._own = CollectorRegistry()
        """What workers have as well."""
        self._own.register(LogMetrics())
        self._up = [up.labels(str(worker)) for worker in self._processes]
        self._restarts = [restarts.labels(str(worker)) for worker in self._processes]

    async def watch(self, worker: int, address: str | bytes) -> None:
        """Check again and again that a worker's event loop runs. Cancel this when the worker's process has ended.

        `address` is that of the Unix socket on which the worker answers.
        """
        process = self._processes[worker] = _WorkerProcess(address, self._clock())
        try:
            while True:
                with contextlib.suppress(NoAnswer):  # what counts is for how long there was none
                    await self._ask(worker, "/livez", self._timeouts.hung_s)
                await asyncio.sleep(self._timeouts.look_every_s)
        finally:
            if self._processes[worker] is process:
                self._processes[worker] = None

    def restarted(self, worker: int) -> None:
        """A worker that died is started again."""
        self._restarts[worker].inc()

    def hung(self) -> Sequence[str]:
        now_s = self._clock()
        running = {worker: process for worker, process in self._processes.items() if process is not None}
        silent = {worker: process.silent_s(now_s, self._timeouts) for worker, process in running.items()}
        return [
            f"worker {worker}: no answer for {silent_s:.0f} s; its event loop stands still"
            for worker, silent_s in silent.items()
            if silent_s is not None
        ]

    async def readiness(self) -> Mapping[str, Any]:
        """As for one worker, but each sentence in `missing` names its worker, and `workers` lists all workers."""
        told = await asyncio.gather(*map(self._readiness, self._processes))
        missing: list[list[str]] = [each["missing"] for each in told]
        warnings = list(dict.fromkeys(warning for each in told for warning in each.get("warnings", ())))
        return {
            "ready": not any(missing),
            "missing": [f"worker {worker}: {each}" for worker, found in enumerate(missing) for each in found],
            "workers": [
                {"worker": worker, "ready": not found, "missing": found} for worker, found in enumerate(missing)
            ],
        } | ({"warnings": warnings} if warnings else {})

    async def exposition(self) -> bytes:
        """The metrics of all workers that answer in time, each series with the label `worker`, and the parent's own."""
        given = await asyncio.gather(*map(self._exposition, self._processes))
        for worker, text in enumerate(given):
            self._up[worker].set(text is not None)
        texts: dict[int | str, str] = {"parent": generate_latest(self._own).decode()}
        texts |= {worker: text for worker, text in enumerate(given) if text is not None}
        # In a thread, because it takes some 10 ms for each worker: other probes must not wait for that.
        return generate_latest(self._registry) + await asyncio.to_thread(merge, texts)

    async def _readiness(self, worker: int) -> dict[str, Any]:
        try:
            return json.loads(await self._ask(worker, "/readyz", self._timeouts.readiness_s))
        except NoAnswer as none:
            return {"missing": [str(none)]}

    async def _exposition(self, worker: int) -> str | None:
        try:
            return (await self._ask(worker, "/metrics", self._timeouts.metrics_s)).decode()
        except NoAnswer:
            return None

    async def _ask(self, worker: int, path: str, timeout_s: float) -> bytes:
        """The body of the worker's answer. Raises NoAnswer if there is none within `timeout_s` seconds."""
        process = self._processes[worker]
        if process is None:
            raise NoAnswer("it is not running; the parent starts it again")
        try:
            async with asyncio.timeout(timeout_s):
                body = await _get(process.address, path)
        except TimeoutError as error:
            raise NoAnswer(f"no answer within {timeout_s:g} s") from error
        except BlockingIOError as error:  # so many connections wait there that the system takes no more
            raise NoAnswer("it has left too many questions unanswered") from error
        except (OSError, h11.RemoteProtocolError) as error:
            raise NoAnswer(exhausted(error) or "it has ended") from error
        process.answered_s = self._clock()
        return body


def merge(expositions: Mapping[int | str, str]) -> bytes:
    """Merge the expositions of several workers, by number or name: each family occurs once, in Prometheus' text format.

    Each series gets the label `worker`.
    """
    merged: dict[str, Metric] = {}
    for worker, text in expositions.items():
        for family in text_string_to_metric_families(text):
            metric = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                metric.samples.append(sample._replace(labels=sample.labels | {"worker": str(worker)}))
    return generate_latest(Collected(merged.values()))


async def _get(address: str | bytes, path: str) -> bytes:
    """The body of the answer to a GET on a Unix socket.

    Raises OSError or h11.RemoteProtocolError if the connection fails or ends, NoAnswer if the worker answers 500.
    """
    connected = socket.socket(socket.AF_UNIX)
    try:
        connected.settimeout(0)
        connected.connect(address)  # a Unix socket connects at once, or fails at once
        reader, writer = await asyncio.open_unix_connection(sock=connected)
    except BaseException:
        connected.close()
        raise
    try:
        http = h11.Connection(h11.CLIENT)
        for part in (h11.Request(method="GET", target=path, headers=[("host", "worker")]), h11.EndOfMessage()):
            writer.write(http.send(part) or b"")
        return await _read_body(http, reader)
    finally:
        writer.transport.abort()


async def _read_body(http: h11.Connection, reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while not isinstance(event := http.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(_CHUNK_BYTES))
        elif isinstance(event, h11.Response) and event.status_code == HTTPStatus.INTERNAL_SERVER_ERROR:
            raise NoAnswer("it could not answer; its log says why")
        elif isinstance(event, h11.Data):
            body += event.data
    return bytes(body)
