"""The NATS micro service `job-status`: every worker runs it, and NATS gives each request to one of them.

nats-py's Service is used only to announce it to tools that look for services. It would handle the requests of an
endpoint one after another; here each request has a task, up to a limit.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from typing import Final

import nats.errors
from nats.aio.subscription import Subscription
from nats.micro.request import ERROR_CODE_HEADER, ERROR_HEADER
from nats.micro.service import EndpointInfo, EndpointStats, Service, ServiceConfig, ServiceInfo, ServiceStats

from relay.contract.errors import BrokerUnavailable, RelayError
from relay.contract.subjects import HISTORY_SUBJECTS, QUERY_SUBJECTS, STATUS_SERVICE
from relay.contract.text import one_line
from relay.nats.frames import FrameClient, publication
from relay.nats.jetstream import Requester
from relay.nats.pipeline import Pipeline, pipelined
from relay.observability.logs import get_logger
from relay.query.answers import BAD_REQUEST, Answers, QueryError
from relay.timing.room import Room

_log = get_logger(__name__)

Answer = Callable[[str, bytes], Awaitable[bytes]]
"""Makes the reply to a request about a job. Raises QueryError or RelayError if there is none."""

_TOO_MANY_REQUESTS: Final = 429
_INTERNAL_ERROR: Final = 500
_UNAVAILABLE: Final = 503
_SEMANTIC_VERSION: Final = re.compile(r"\d+\.\d+\.\d+")
_DESCRIPTION: Final = "The status of jobs, and how far it got on its way to the Facilitator."
_MOST_ERROR_CHARS: Final = 500
_MOST_REQUEST_BYTES: Final = 4096
"""Of a request, of which up to 1,000 may wait. The longest that says something has some 60."""
_LARGE_BYTES: Final = 64 * 1024
"""A reply of this size or more counts as under way until the server has it."""
_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class EndpointLimits:
    """How many requests are answered at a time, how many more may wait, and how long one may take, wait included.

    While it is made, an answer may need memory for `messages` of the largest size (`max_payload`). So many answers are
    made at a time that this is within `memory_bytes`, or one, if one needs more.
    """

    concurrent: int
    waiting: int
    timeout_s: float
    messages: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """The limits of both endpoints, and how long a worker that stops still answers."""

    query: EndpointLimits = EndpointLimits(
        concurrent=32, waiting=1000, timeout_s=2.0, messages=4, memory_bytes=128 * _MIB
    )
    """Four: the answer with the update, the update, the reply and what is sent."""
    history: EndpointLimits = EndpointLimits(
        concurrent=4, waiting=250, timeout_s=5.0, messages=8, memory_bytes=64 * _MIB
    )
    """A history takes many reads one after another. Few are made at a time, so that they do not slow updates down.

    Eight: as for a query, with twice as many updates, of which each is read twice."""
    last_requests_s: float = 0.5
    """How long a worker that stops waits for requests that were sent to it before."""
    last_answers_s: float = 0.5
    """How long a worker that stops waits for answers that it has begun."""


_USUAL_LIMITS: Final = ServiceLimits()


class Endpoint:
    """Answers the requests on one subject, and counts them."""

    def __init__(
        self, name: str, subject: str, answer: Answer, limits: EndpointLimits, client: FrameClient, *, room: Room
    ) -> None:
        self.name = name
        self.subject = subject
        self._answer = answer
        self._limits = limits
        self._client = client
        self._slots = asyncio.Semaphore(limits.concurrent)
        self._room = room
        self._tasks: set[asyncio.Task[None]] = set()
        self._requests = 0
        self._errors = 0
        self._last_error = ""
        self._busy_ns = 0

    def take(self, subject: bytes, reply: bytes, _headers: bytes, request: bytes) -> None:
        """Start to answer a request, or refuse it if there are too many."""
        self._requests += 1
        if not reply:
            return  # no answer is wanted
        if len(request) > _MOST_REQUEST_BYTES:
            reason = f"the request has {len(request)} bytes, and at most {_MOST_REQUEST_BYTES} are read"
            self._refuse(reply, BAD_REQUEST, reason)
            return
        if len(self._tasks) == self._limits.concurrent + self._limits.waiting:
            reason = f"{len(self._tasks)} requests are under way in this worker: ask again, and fewer at a time"
            self._refuse(reply, _TOO_MANY_REQUESTS, reason)
            return
        task = asyncio.create_task(self._serve(subject.decode(errors="replace"), reply, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self, timeout_s: float) -> None:
        """Wait at most `timeout_s` for the answers that were begun, then cancel the rest; so does a cancellation."""
        try:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=timeout_s)
        finally:
            for task in self._tasks:
                task.cancel()

    def info(self) -> EndpointInfo:
        return EndpointInfo(self.name, self.subject, STATUS_SERVICE)

    def stats(self) -> EndpointStats:
        return EndpointStats(
            name=self.name,
            subject=self.subject,
            queue_group=STATUS_SERVICE,
            num_requests=self._requests,
            num_errors=self._errors,
            last_error=self._last_error,
            processing_time=self._busy_ns,
            average_processing_time=self._busy_ns // max(1, self._requests),
        )

    async def _serve(self, subject: str, reply: bytes, request: bytes) -> None:
        began_ns = time.perf_counter_ns()
        job = subject.split(".", 2)[2]
        try:
            async with AsyncExitStack() as held:
                async with asyncio.timeout(self._limits.timeout_s):
                    await held.enter_async_context(self._slots)
                    await held.enter_async_context(self._room.held(self._limits.messages * self._client.max_payload))
                    answer = await self._answer(job, request)
                await self._send(reply, answer)
        except QueryError as error:
            self._refuse(reply, error.code, error.reason)
        except TimeoutError:
            reason = f"there was no answer within {self._limits.timeout_s:g} s: ask again, or for less"
            self._refuse(reply, _UNAVAILABLE, reason)
        except RelayError as error:
            cause = error.cause if isinstance(error, BrokerUnavailable) else str(error)
            self._refuse(reply, _UNAVAILABLE, f"NATS cannot tell now ({cause}): ask again")
        except Exception:  # noqa: BLE001 - a bug of ours
            # A bug here must not end a worker that relays updates, and clients must not see internals.
            _log.exception("a status request failed", subject=subject)
            self._refuse(reply, _INTERNAL_ERROR, "the relay failed over this request; its log says why")
        finally:
            self._busy_ns += time.perf_counter_ns() - began_ns

    async def _send(self, reply: bytes, answer: bytes) -> None:
        self._respond(reply, answer)
        if len(answer) >= _LARGE_BYTES:
            # Otherwise answers would pile up in the client's buffer while the connection is slow.
            with suppress(nats.errors.Error, TimeoutError):
                async with asyncio.timeout(self._limits.timeout_s):
                    await self._client.flush()

    def _refuse(self, reply: bytes, code: int, reason: str) -> None:
        self._errors += 1
        self._last_error = f"{code}:{reason}"
        # The value of a header is one line of ASCII.
        text = one_line(reason[:_MOST_ERROR_CHARS]).encode("ascii", "backslashreplace").decode("ascii")
        self._respond(reply, b"", {ERROR_HEADER: text, ERROR_CODE_HEADER: str(code)})

    def _respond(self, reply: bytes, answer: bytes, headers: Mapping[str, str] | None = None) -> None:
        with suppress(nats.errors.Error):  # without a connection the client gets no answer, and asks again
            self._client.write(publication(reply, answer, headers=headers))


class StatusService:
    """Serves `job.query.*` and `job.history.*`.

    Args:
        make_answers: makes the Answers, which send their own requests through the given client.
        worker: the worker's id, shown by `nats micro info`.
        version: the relay's version.
        on_serving: called when the service has subscribed.
    """

    def __init__(
        self,
        client: FrameClient,
        make_answers: Callable[[Requester], Answers],
        *,
        worker: str,
        version: str,
        on_serving: Callable[[], None],
        limits: ServiceLimits = _USUAL_LIMITS,
    ) -> None:
        self._client = client
        self._make_answers = make_answers
        self._worker = worker
        self._version = version
        self._on_serving = on_serving
        self._limits = limits
        self._rooms = [Room(each.memory_bytes) for each in (limits.query, limits.history)]

    @property
    def held_bytes(self) -> int:
        """The most memory that the answers being made may need."""
        return sum(room.held_bytes for room in self._rooms)

    async def run(self) -> None:
        """Answer until cancelled; then finish the answers that were begun, within about a second."""
        # These errors mean that the client is closed, because the relay ends.
        with suppress(nats.errors.Error):
            async with pipelined(self._client) as pipeline:
                await self._serve(pipeline)

    async def _serve(self, pipeline: Pipeline) -> None:
        answers = self._make_answers(pipeline)
        limits, (query_room, history_room) = self._limits, self._rooms
        query = Endpoint("query", QUERY_SUBJECTS, answers.latest, limits.query, self._client, room=query_room)
        history = Endpoint(
            "history", HISTORY_SUBJECTS, answers.history, limits.history, self._client, room=history_room
        )
        service = _Announcement(self._client, self._config(), (query, history))
        subscriptions: list[Subscription] = []
        try:
            for endpoint in (query, history):
                listening = self._client.listen(endpoint.subject, endpoint.take, queue=STATUS_SERVICE)
                subscriptions.append(await listening)
            await self._begin(service)
            self._on_serving()
            await asyncio.Event().wait()
        finally:
            if self._client.is_connected:  # otherwise no request can come
                await _unsubscribe(service, subscriptions, self._limits.last_requests_s)
            await asyncio.gather(*(each.finish(self._limits.last_answers_s) for each in (query, history)))

    async def _begin(self, service: Service) -> None:
        # These errors mean that NATS is away. The client subscribes after its reconnect.
        with suppress(nats.errors.Error):
            await service.start()  # when it returns, the server knows of all subscriptions

    def _config(self) -> ServiceConfig:
        release = _SEMANTIC_VERSION.match(self._version)
        return ServiceConfig(
            name=STATUS_SERVICE,
            version=release[0] if release else "0.0.0",
            description=_DESCRIPTION,
            metadata={"worker": self._worker},
        )


class _Announcement(Service):
    """Announces endpoints that nats-py does not run. This is possible only by overriding methods of its Service."""

    def __init__(self, client: FrameClient, config: ServiceConfig, endpoints: Sequence[Endpoint]) -> None:
        super().__init__(client, config)
        self._served = endpoints

    def info(self) -> ServiceInfo:
        return replace(super().info(), endpoints=[endpoint.info() for endpoint in self._served])

    def stats(self) -> ServiceStats:
        return replace(super().stats(), endpoints=[endpoint.stats() for endpoint in self._served])


async def _unsubscribe(service: Service, subscriptions: Sequence[Subscription], timeout_s: float) -> None:
    """End the subscriptions. Requests that were sent before are still taken if they arrive within `timeout_s`."""
    with suppress(nats.errors.Error, TimeoutError):
        async with asyncio.timeout(timeout_s):
            await service.stop()
            await asyncio.gather(*(subscription.drain() for subscription in subscriptions))
