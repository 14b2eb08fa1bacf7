"""The NATS micro service `job-status`: every worker runs it, and NATS gives each request to one of them.

The client awaits the requests of an endpoint one after another, so each becomes a task of its own, at most so many
at a time; the service's statistics are therefore kept here.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import nats.errors
from nats.aio.client import Client
from nats.micro.request import Request
from nats.micro.service import EndpointConfig, EndpointStats, Service, ServiceConfig

from relay.errors import BrokerUnavailable, RelayError
from relay.logs import get_logger
from relay.query.answers import Answers, Refused
from relay.subjects import HISTORY_SUBJECTS, QUERY_SUBJECTS, STATUS_SERVICE

_log = get_logger(__name__)

Answer = Callable[[str, bytes], Awaitable[bytes]]

_TOO_MANY: Final = 429
_FAULTY: Final = 500
_UNAVAILABLE: Final = 503
_SEMANTIC_VERSION: Final = re.compile(r"\d+\.\d+\.\d+")
_DESCRIPTION: Final = "The status of jobs, and how far it got on its way to the Facilitator."
_MOST_ERROR_CHARS: Final = 500
_FIRST_PING_S: Final = 2.0
_LAST_ANSWERS_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How many requests are worked on side by side, how many more may wait, and how long one may take in all."""

    side_by_side: int
    waiting: int
    seconds: float


QUERY_LIMITS: Final = Limits(side_by_side=32, waiting=1000, seconds=2.0)
HISTORY_LIMITS: Final = Limits(side_by_side=4, waiting=250, seconds=5.0)
"""A history takes many reads one after another: few at a time, so that they leave the updates their way."""


class Endpoint:
    """The requests on one subject.

    Args:
        answer: makes the reply for a job and a request; raises Refused or RelayError if there is none.
    """

    def __init__(self, answer: Answer, limits: Limits, group: asyncio.TaskGroup) -> None:
        self._answer = answer
        self._limits = limits
        self._group = group
        self._slots = asyncio.Semaphore(limits.side_by_side)
        self._under_way: set[asyncio.Task[None]] = set()
        self._requests = 0
        self._errors = 0
        self._last_error = ""
        self._busy_ns = 0

    async def take(self, request: Request) -> None:
        """Begin to answer a request."""
        self._requests += 1
        if len(self._under_way) == self._limits.side_by_side + self._limits.waiting:
            why = f"{len(self._under_way)} requests are under way in this worker: ask again, and fewer at a time"
            await self._refuse(request, _TOO_MANY, why)
            return
        task = self._group.create_task(self._serve(request))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def finish(self) -> None:
        """Wait until what was begun is answered."""
        if self._under_way:
            await asyncio.wait(self._under_way)

    def describe(self, stats: EndpointStats) -> None:
        """Fill in the statistics; the client's own know nothing of what tasks do."""
        stats.num_requests, stats.num_errors, stats.last_error = self._requests, self._errors, self._last_error
        stats.processing_time = self._busy_ns
        stats.average_processing_time = self._busy_ns // max(1, self._requests)

    async def _serve(self, request: Request) -> None:
        began_ns = time.perf_counter_ns()
        try:
            await self._answer_in_time(request)
        finally:
            self._busy_ns += time.perf_counter_ns() - began_ns

    async def _answer_in_time(self, request: Request) -> None:
        job = request.subject.split(".", 2)[2]
        try:
            async with asyncio.timeout(self._limits.seconds), self._slots:
                reply = await self._answer(job, request.data)
        except Refused as refused:
            await self._refuse(request, refused.code, refused.why)
        except TimeoutError:
            why = f"there was no answer within {self._limits.seconds:g} s: ask again, or for less"
            await self._refuse(request, _UNAVAILABLE, why)
        except RelayError as error:
            cause = error.cause if isinstance(error, BrokerUnavailable) else str(error)
            await self._refuse(request, _UNAVAILABLE, f"NATS cannot tell now ({cause}): ask again")
        except Exception:  # noqa: BLE001 - a bug of ours
            # It must not end a worker that relays, and whoever asked must not see our insides.
            _log.exception("a status request failed", subject=request.subject)
            await self._refuse(request, _FAULTY, "the relay failed over this request; its log says why")
        else:
            await _respond(request.respond(reply))

    async def _refuse(self, request: Request, code: int, why: str) -> None:
        self._errors += 1
        self._last_error = f"{code}:{why}"
        # It travels in a header: one line of ASCII.
        line = "".join(char if char.isprintable() else " " for char in why[:_MOST_ERROR_CHARS])
        text = line.encode("ascii", "backslashreplace").decode("ascii")
        await _respond(request.respond_error(str(code), text))


class StatusService:
    """Serves `job.query.*` and `job.history.*`.

    Args:
        worker: its id, shown by `nats micro info`.
        version: of the relay.
        on_serving: called when the first request may come.
    """

    def __init__(
        self, client: Client, answers: Answers, *, worker: str, version: str, on_serving: Callable[[], None]
    ) -> None:
        self._client = client
        self._answers = answers
        self._worker = worker
        self._version = version
        self._on_serving = on_serving

    async def run(self) -> None:
        """Answer until cancelled; then finish what was begun, if that does not take long."""
        async with asyncio.TaskGroup() as group:
            query = Endpoint(self._answers.latest, QUERY_LIMITS, group)
            history = Endpoint(self._answers.history, HISTORY_LIMITS, group)
            service = self._make({"query": query, "history": history})
            try:
                await self._begin(service, query, history)
                self._on_serving()
                await asyncio.Event().wait()
            finally:
                if self._client.is_connected:  # else nobody waits any more
                    await _end(service, query, history)

    async def _begin(self, service: Service, query: Endpoint, history: Endpoint) -> None:
        # What fails here fails because NATS is away: the client subscribes as soon as it is back, or ends for good.
        with suppress(nats.errors.Error):
            await service.add_endpoint(EndpointConfig("query", query.take, subject=QUERY_SUBJECTS))
            await service.add_endpoint(EndpointConfig("history", history.take, subject=HISTORY_SUBJECTS))
            await service.start()
            # The flush in there overtakes subscriptions that wait in the client; a question does not.
            await self._client.request(f"$SRV.PING.{STATUS_SERVICE}.{service.id}", timeout=_FIRST_PING_S)

    def _make(self, endpoints: dict[str, Endpoint]) -> Service:
        release = _SEMANTIC_VERSION.match(self._version)
        config = ServiceConfig(
            name=STATUS_SERVICE,
            version=release[0] if release else "0.0.0",
            description=_DESCRIPTION,
            metadata={"worker": self._worker},
            queue_group=STATUS_SERVICE,
            stats_handler=lambda stats: endpoints[stats.name].describe(stats),
        )
        return Service(self._client, config)


async def _end(service: Service, *endpoints: Endpoint) -> None:
    with suppress(nats.errors.Error, TimeoutError):
        async with asyncio.timeout(_LAST_ANSWERS_S):
            await service.stop()
            await asyncio.gather(*(endpoint.finish() for endpoint in endpoints))


async def _respond(responding: Awaitable[None]) -> None:
    """Send a reply to whoever still waits for it."""
    # ValueError: the request was a publish that wants no reply.
    with suppress(nats.errors.Error, ValueError):
        await responding
