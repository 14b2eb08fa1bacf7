"""The client for asyncio programs that ask for the status of jobs."""

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Final, Protocol, Self, TypeVar, Unpack
from uuid import UUID

import msgspec
import nats.errors
from nats.aio.msg import Msg

from relay.client.errors import TEMPORARY, NoAnswer, QueryFailed, WaitTimedOut
from relay.client.follower import JobFollower, follow
from relay.client.questions import ask_latest, ask_page, job_of
from relay.contract.model import JobStatus
from relay.contract.subjects import RECEIPT_SUBJECTS, receipt_subject
from relay.core.backoff import Backoff
from relay.core.receipt import Receipt
from relay.nats.frames import FrameClient
from relay.nats.jetstream import not_permitted
from relay.nats.reconnector import Reconnector
from relay.observability.logs import get_logger
from relay.producer.options import DEFAULT_SERVER, Credentials, time_of_call
from relay.producer.sign_in import from_environment, nats_settings
from relay.query.replies import UpdateProgress, UpdateReply
from relay.timing.waiting import set_within

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

DEFAULT_TIMEOUT_S: Final = 10.0
_TRY_TIMEOUT_S: Final = 6.0
"""How long one try waits for its answer. A worker that hangs never answers; the next try may reach another one."""
_BACKOFF: Final = Backoff(initial_s=0.1, max_s=1.0, random=random.random)
_MOST_RECEIPTS: Final = 10_000
_LOOK_S: Final = 1.0
"""How often a wait for receipts checks whether the connection was closed for good."""
_decode_receipt = msgspec.json.Decoder(Receipt).decode
_log = get_logger(__name__, guest=True)


class _Question(Protocol[R_co]):
    def __call__(self, client: FrameClient, *, timeout_s: float) -> Awaitable[R_co]: ...


class StatusClient:
    """Asks the relays for the status of jobs, over one connection to NATS, for asyncio programs.

        async with StatusClient("nats://127.0.0.1:4222") as client:
            update = await client.status(job)
            if update.progress is UpdateProgress.ACKNOWLEDGED: ...  # the Facilitator has it

    The first call makes the connection; after a loss it is made again. A call that fails for the moment (NATS is away,
    a worker does not answer, too many questions) asks again until its time is over. A client belongs to the event loop
    of its first call, and is not thread-safe: see SyncStatusClient.

    Args:
        servers: addresses of one NATS cluster: a sequence, or one string with commas between.
        timeout_s: how many seconds a call may take, all its tries included.
        credentials: see Credentials.

    Raises ConfigurationError for an argument that is not allowed.
    """

    def __init__(
        self,
        servers: str | Sequence[str] = DEFAULT_SERVER,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        **credentials: Unpack[Credentials],
    ) -> None:
        self._timeout_s = time_of_call(timeout_s, DEFAULT_TIMEOUT_S)
        self._connection = Reconnector(nats_settings(servers, credentials), name="relay-client")

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str] | None = None, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Self:
        """A client for the NATS of the RELAY_NATS_* variables, which are read as the relay reads them.

        `environ` replaces the process's environment. Raises ConfigurationError for the first of these variables that is
        not allowed.
        """
        servers, credentials = from_environment(environ)
        return cls(servers, timeout_s=timeout_s, **credentials)

    async def status(self, uuid: UUID | str, *, body: bool = False, timeout_s: float | None = None) -> UpdateReply:
        """The job's latest update, and how far it got; with `body`, also the update itself.

        Raises QueryFailed: UnknownJob if no update of the job is stored, NoRelayRunning if nobody answers, InvalidQuery
        if `uuid` is none; after `timeout_s` seconds NoAnswer, TooManyQueries or AnswerUnavailable. Raises
        ConfigurationError for credentials or certificates that cannot be used. Cancelling it is safe.
        """
        return await self._ask(partial(ask_latest, job=job_of(uuid), body=body), timeout_s)

    async def history(
        self, uuid: UUID | str, *, after: int = 0, body: bool = False, timeout_s: float | None = None
    ) -> AsyncGenerator[UpdateReply]:
        """The job's stored updates with a sequence above `after`, oldest first.

        They are read in pages; `timeout_s` is for each page. Raises as `status`. Cancelling it is safe.
        """
        job = job_of(uuid)
        next_after: int | None = after
        while next_after is not None:
            updates, next_after = await self._ask(partial(ask_page, job=job, after=next_after, body=body), timeout_s)
            for update in updates:
                yield update

    async def follow(self, uuid: UUID | str) -> AsyncGenerator[UpdateReply]:
        """Each update of the job when it is stored and again when it is settled, until the job's end is settled.

        It begins with what is stored already, and waits for a job that is not known yet. While NATS or the relays are
        away it waits. Raises InvalidQuery and ConfigurationError. Cancelling it is safe.
        """
        job = job_of(uuid)
        follower = JobFollower(job)
        while not follower.ended:
            client = await self._connection.connected()
            async with contextlib.aclosing(follow(client, job, follower)) as updates:
                async for update in updates:
                    yield update

    async def wait_until(
        self,
        uuid: UUID | str,
        *,
        relayed: JobStatus | str | None = None,
        terminal: bool = False,
        timeout_s: float,
    ) -> UpdateReply:
        """Wait until the job's update with the status `relayed` is settled, or, with `terminal`, the job's last one.

        Returns that update. Its progress is ACKNOWLEDGED if the Facilitator has it, and DEAD_LETTERED if it never will.

        Raises WaitTimedOut after `timeout_s` seconds, ValueError unless one of the two is wanted, and as `follow`.
        Cancelling it is safe.
        """
        if (relayed is None) != terminal:
            raise ValueError("wait for a status with `relayed`, or for the job's end with `terminal=True`")
        latest: UpdateReply | None = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), contextlib.aclosing(self.follow(uuid)) as updates:
                async for update in updates:
                    latest = update
                    settled = update.progress is not UpdateProgress.PENDING
                    if settled and (update.terminal if terminal else update.status == relayed):
                        return update
        raise WaitTimedOut(
            _known_instead(job_of(uuid), "the job's end" if terminal else f"`{relayed}`", timeout_s, latest)
        )

    async def receipts(self, uuid: UUID | str | None = None) -> AsyncGenerator[Receipt]:
        """A receipt for each update, of one job or of all, that is settled from now on; it never ends.

        For watching only: the relays send receipts with RELAY_RECEIPTS=true, and what they send while the connection is
        lost is missed. If more than 10,000 wait to be taken, the oldest are dropped, which is logged.

        Raises InvalidQuery, ConfigurationError, and QueryFailed if the user may not subscribe. Cancelling it is safe.
        """
        subject = RECEIPT_SUBJECTS if uuid is None else receipt_subject(job_of(uuid))
        waiting: deque[bytes] = deque()
        filled = asyncio.Event()

        async def take(message: Msg) -> None:
            if len(waiting) == _MOST_RECEIPTS:
                waiting.popleft()
                _log.warning("receipts come faster than they are taken: the oldest is dropped", subject=subject)
            waiting.append(message.data)
            filled.set()

        while True:
            client = await self._connection.connected()
            subscription = await client.subscribe(subject, cb=take)
            try:
                await _require_permission(client, subject)
                while not client.is_closed:
                    while waiting:
                        if (receipt := _receipt_in(waiting.popleft())) is not None:
                            yield receipt
                    filled.clear()
                    await set_within(filled, _LOOK_S)
            finally:
                with contextlib.suppress(nats.errors.Error):
                    await subscription.unsubscribe()

    async def close(self) -> None:
        """Close the connection, within about 5 seconds. It may be called again, also after a cancellation."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def _ask(self, question: _Question[R], timeout_s: float | None) -> R:
        """Ask until there is an answer, or an error that asking again does not help, or the time is over."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + time_of_call(timeout_s, self._timeout_s)
        told: QueryFailed | None = None
        for tries in count(1):
            try:
                client = await self._connected(deadline_s)
                return await question(client, timeout_s=min(_TRY_TIMEOUT_S, max(0.0, deadline_s - loop.time())))
            except TEMPORARY as error:
                if not isinstance(error, NoAnswer) or told is None:
                    told = error  # what a relay said tells more than that the last try had too little time
                wait_s = _BACKOFF.delay_s(tries)
                if loop.time() + wait_s >= deadline_s:
                    raise told from None
                await asyncio.sleep(wait_s)
        raise AssertionError

    async def _connected(self, deadline_s: float) -> FrameClient:
        try:
            return await self._connection.connected(deadline_s)
        except TimeoutError:
            raise NoAnswer(f"NATS was not asked: {self._connection.problem}") from None


async def _require_permission(client: FrameClient, subject: str) -> None:
    """Raise QueryFailed if the server has refused the subscription."""
    with contextlib.suppress(nats.errors.Error):  # the connection was lost; the client subscribes again
        await client.flush()
    if (refusal := not_permitted(client, subject)) is not None:
        raise QueryFailed(f"the NATS user may not do this: {refusal}")


def _receipt_in(body: bytes) -> Receipt | None:
    """None if something else was published there."""
    try:
        return _decode_receipt(body)
    except (ValueError, RecursionError):
        return None


def _known_instead(job: str, wanted: str, timeout_s: float, latest: UpdateReply | None) -> str:
    if latest is None:
        known = "no relay answered, or no update of it is stored"
    else:
        known = f"the last known update is `{latest.status}` ({latest.progress})"
    return f"{wanted} was not relayed within {timeout_s:g} s; of job {job} {known}"
