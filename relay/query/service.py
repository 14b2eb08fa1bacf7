"""The NATS micro service `job-status`: every worker runs it, and NATS gives each request to one of them.

nats-py's service makes it known to those who look for services, and no more: it would await the requests of an endpoint
one after another. Here each is a task of its own, at most so many at a time.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import nats.errors
from nats.aio.subscription import Subscription
from nats.micro.request import ERROR_CODE_HEADER, ERROR_HEADER
from nats.micro.service import EndpointInfo, EndpointStats, Service, ServiceConfig, ServiceInfo, ServiceStats

from relay.contract.errors import BrokerUnavailable, RelayError
from relay.contract.subjects import HISTORY_SUBJECTS, QUERY_SUBJECTS, STATUS_SERVICE
from relay.contract.text import one_line
from relay.nats.connection import Requester
from relay.nats.frames import FrameClient, publication
from relay.nats.pipeline import Pipeline, pipelined
from relay.observability.logs import get_logger
from relay.query.answers import Answers, Refused

_log = get_logger(__name__)

Answer = Callable[[str, bytes], Awaitable[bytes]]
"""Makes the reply for a job and a request; raises Refused or RelayError if there is none."""


_TOO_MANY: Final = 429
_FAULTY: Final = 500
_UNAVAILABLE: Final = 503
_SEMANTIC_VERSION: Final = re.compile(r"\d+\.\d+\.\d+")
_DESCRIPTION: Final = "The status of jobs, and how far it got on its way to the Facilitator."
_MOST_ERROR_CHARS: Final = 500
_LAST_REQUESTS_S: Final = 0.5
_LAST_ANSWERS_S: Final = 0.5


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
    """The requests on one subject."""

    def __init__(self, name: str, subject: str, answer: Answer, limits: Limits, client: FrameClient) -> None:
        self.name = name
        self.subject = subject
        self._answer = answer
        self._limits = limits
        self._client = client
        self._slots = asyncio.Semaphore(limits.side_by_side)
        self._under_way: set[asyncio.Task[None]] = set()
        self._requests = 0
        self._errors = 0
        self._last_error = ""
        self._busy_ns = 0

    def take(self, subject: bytes, reply: bytes, _headers: bytes, request: bytes) -> None:
        """Begin to answer a request."""
        self._requests += 1
        if not reply:
            return  # it was published only
        if len(self._under_way) == self._limits.side_by_side + self._limits.waiting:
            why = f"{len(self._under_way)} requests are under way in this worker: ask again, and fewer at a time"
            self._refuse(reply, _TOO_MANY, why)
            return
        task = asyncio.create_task(self._serve(subject.decode(errors="replace"), reply, request))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def finish(self) -> None:
        """Wait until what was begun is answered, and drop what is not within _LAST_ANSWERS_S."""
        try:
            if self._under_way:
                await asyncio.wait(self._under_way, timeout=_LAST_ANSWERS_S)
        finally:
            for task in self._under_way:
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
            async with asyncio.timeout(self._limits.seconds), self._slots:
                answer = await self._answer(job, request)
        except Refused as refused:
            self._refuse(reply, refused.code, refused.why)
        except TimeoutError:
            why = f"there was no answer within {self._limits.seconds:g} s: ask again, or for less"
            self._refuse(reply, _UNAVAILABLE, why)
        except RelayError as error:
            cause = error.cause if isinstance(error, BrokerUnavailable) else str(error)
            self._refuse(reply, _UNAVAILABLE, f"NATS cannot tell now ({cause}): ask again")
        except Exception:  # noqa: BLE001 - a bug of ours
            # It must not end a worker that relays, and whoever asked must not see our insides.
            _log.exception("a status request failed", subject=subject)
            self._refuse(reply, _FAULTY, "the relay failed over this request; its log says why")
        else:
            self._respond(reply, answer)
        finally:
            self._busy_ns += time.perf_counter_ns() - began_ns

    def _refuse(self, reply: bytes, code: int, why: str) -> None:
        self._errors += 1
        self._last_error = f"{code}:{why}"
        # It travels in a header: one line of ASCII.
        text = one_line(why[:_MOST_ERROR_CHARS]).encode("ascii", "backslashreplace").decode("ascii")
        self._respond(reply, b"", {ERROR_HEADER: text, ERROR_CODE_HEADER: str(code)})

    def _respond(self, reply: bytes, answer: bytes, headers: Mapping[str, str] | None = None) -> None:
        with suppress(nats.errors.Error):  # nobody waits any more
            self._client.write(publication(reply, answer, headers=headers))


class StatusService:
    """Serves `job.query.*` and `job.history.*`.

    Args:
        make_answers: makes them from the client that they are to ask through.
        worker: its id, shown by `nats micro info`.
        version: of the relay.
        on_serving: called when the first request may come.
    """

    def __init__(
        self,
        client: FrameClient,
        make_answers: Callable[[Requester], Answers],
        *,
        worker: str,
        version: str,
        on_serving: Callable[[], None],
    ) -> None:
        self._client = client
        self._make_answers = make_answers
        self._worker = worker
        self._version = version
        self._on_serving = on_serving

    async def run(self) -> None:
        """Answer until cancelled; then finish what was begun, if that does not take long."""
        # What fails here fails because the client was closed for good, which ends the relay.
        with suppress(nats.errors.Error):
            async with pipelined(self._client) as pipeline:
                await self._serve(pipeline)

    async def _serve(self, pipeline: Pipeline) -> None:
        answers = self._make_answers(pipeline)
        query = Endpoint("query", QUERY_SUBJECTS, answers.latest, QUERY_LIMITS, self._client)
        history = Endpoint("history", HISTORY_SUBJECTS, answers.history, HISTORY_LIMITS, self._client)
        service = _Described(self._client, self._config(), (query, history))
        subscriptions: list[Subscription] = []
        try:
            for endpoint in (query, history):
                listening = self._client.listen(endpoint.subject, endpoint.take, queue=STATUS_SERVICE)
                subscriptions.append(await listening)
            await self._begin(service)
            self._on_serving()
            await asyncio.Event().wait()
        finally:
            if self._client.is_connected:  # else nobody waits any more
                await _end(service, subscriptions)
            await asyncio.gather(query.finish(), history.finish())

    async def _begin(self, service: Service) -> None:
        # What fails here fails because NATS is away: the client subscribes as soon as it is back, or ends for good.
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


class _Described(Service):
    """What NATS's own tools ask about; the endpoints are not the client's."""

    def __init__(self, client: FrameClient, config: ServiceConfig, endpoints: Sequence[Endpoint]) -> None:
        super().__init__(client, config)
        self._served = endpoints

    def info(self) -> ServiceInfo:
        return replace(super().info(), endpoints=[endpoint.info() for endpoint in self._served])

    def stats(self) -> ServiceStats:
        return replace(super().stats(), endpoints=[endpoint.stats() for endpoint in self._served])


async def _end(service: Service, subscriptions: Sequence[Subscription]) -> None:
    """Get no more requests, but those that are on their way."""
    with suppress(nats.errors.Error, TimeoutError):
        async with asyncio.timeout(_LAST_REQUESTS_S):
            await service.stop()
            await asyncio.gather(*(subscription.drain() for subscription in subscriptions))
