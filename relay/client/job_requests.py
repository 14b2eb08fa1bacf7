"""Taking what the Facilitator pushes: job requests, and reports of cheated jobs."""

import asyncio
import json
import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, Self, Unpack

import nats.errors

from relay.client.errors import RequestsUnavailable, RequestUnsettled
from relay.client.pushes import JobRequest
from relay.contract.errors import BrokerUnavailable, ConfigurationError, JetStreamError, NotPermitted, UnsuitableServer
from relay.contract.subjects import REQUEST_STREAM, api_consumer_info, api_durable_create, api_pull
from relay.nats.err_codes import CONSUMER_NOT_FOUND, STREAM_NOT_FOUND
from relay.nats.frames import FrameClient, publication
from relay.nats.jetstream import api_request, not_permitted
from relay.nats.reconnector import Reconnector
from relay.observability.logs import get_logger
from relay.producer.options import DEFAULT_SERVER, Credentials
from relay.producer.sign_in import from_environment, nats_settings
from relay.timing.waiting import set_within

Deliver = Literal["new", "all"]

DEFAULT_DURABLE: Final = "runner"
DEFAULT_ACK_WAIT_S: Final = 60.0
_EXPIRES_S: Final = 20.0
"""How long the server keeps a pull. It is asked again afterwards."""
_LATE_S: Final = 2.0
_PAUSE_S: Final = 1.0
_TIMEOUT_S: Final = 5.0
_NS: Final = 1_000_000_000
_FORBIDDEN: Final = frozenset(". *>/\\\t\r\n")
_log = get_logger(__name__, guest=True)


class JobRequests:
    """An async iterator over what the Facilitator pushes, kept for all programs that share a durable.

        async with JobRequests("nats://127.0.0.1:4222") as requests:
            async for request in requests:
                if isinstance(request.message, V2JobRequest): ...  # run the job
                await request.ack()

    One request is given at a time. It comes again, here or in another program of the same durable, unless it is
    acknowledged, or said to be in progress, every `ack_wait_s` seconds: so a request may come more than once. The
    durable outlives the program. It is made if it is missing and the NATS user may do that; users of
    deploy/nats/users.conf may not, so their operator makes it first.

    While NATS is away, and while a durable that was there is not, the iterator waits. It belongs to the event loop in
    which it is first used.

    Args:
        servers: addresses of one NATS cluster: a sequence, or one string with commas between.
        durable: the name of the durable consumer of JOB_REQUESTS. Programs that share the work share the name.
        deliver: where a durable begins that is made now: "new" gives what comes from now on, "all" also what is stored,
            which is up to 7 days old.
        ack_wait_s: of a durable that is made now: after how many seconds an unsettled request comes again.
        credentials: see Credentials.

    Raises ConfigurationError for an argument that is not allowed.
    """

    def __init__(
        self,
        servers: str | Sequence[str] = DEFAULT_SERVER,
        *,
        durable: str = DEFAULT_DURABLE,
        deliver: Deliver = "new",
        ack_wait_s: float = DEFAULT_ACK_WAIT_S,
        **credentials: Unpack[Credentials],
    ) -> None:
        _require_options(durable, deliver, ack_wait_s)
        self._durable = durable
        self._deliver = deliver
        self._ack_wait_s = ack_wait_s
        self._connection = Reconnector(nats_settings(servers, credentials), name="relay-requests")
        self._arrived: deque[JobRequest] = deque()
        self._changed = asyncio.Event()
        """Set when a request has arrived, or a pull has ended."""
        self._inbox = ""
        """Where pulls are answered."""
        self._known = False
        """Whether the server has answered a pull, so that the durable is there, or was."""
        self._missing = False
        """Whether nobody answered the last pull: the durable is missing, or its servers elect a leader."""
        self._pulls = 0
        self._pulled_until_s = -math.inf
        """Until when the server keeps the last pull."""
        self._ended = ""
        """Why the server ended the last pull, if that is worth a word."""

    @classmethod
    def from_environment(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        durable: str = DEFAULT_DURABLE,
        deliver: Deliver = "new",
        ack_wait_s: float = DEFAULT_ACK_WAIT_S,
    ) -> Self:
        """The same for the NATS of the RELAY_NATS_* variables, which are read as the relay reads them.

        `environ` replaces the process's environment. Raises ConfigurationError for the first of these variables that is
        not allowed.
        """
        servers, credentials = from_environment(environ)
        return cls(servers, durable=durable, deliver=deliver, ack_wait_s=ack_wait_s, **credentials)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> JobRequest:
        """Wait for the next request. Cancelling is safe: what has arrived is given by the next call.

        Raises RequestsUnavailable if the stream or the durable is missing and cannot be made, and ConfigurationError
        for credentials or certificates that cannot be used.
        """
        while True:
            client = await self._connection.connected()
            try:
                if self._arrived:
                    return self._arrived.popleft()
                if self._missing:
                    await self._look_for_durable(client)
                await self._pull(client)
            except BrokerUnavailable as error:
                _log.warning("no job requests can be taken now", durable=self._durable, error=str(error))
                await asyncio.sleep(_PAUSE_S)

    async def close(self) -> None:
        """Close the connection, within about 5 seconds. Requests that are not settled come again."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def _look_for_durable(self, client: FrameClient) -> None:
        """Make the durable if it is missing. Raises RequestsUnavailable, and BrokerUnavailable if that may pass."""
        self._missing = False  # the next pull tells
        try:
            await _ensure_durable(client, self._durable, self._config())
        except RequestsUnavailable as error:
            if not self._known:
                raise
            raise BrokerUnavailable([], str(error)) from None

    async def _pull(self, client: FrameClient) -> None:
        """Ask for one request, unless that is done, and wait until something happens."""
        loop = asyncio.get_running_loop()
        if not self._inbox:
            inbox = client.new_inbox()
            await client.listen(f"{inbox}.*", self._take)
            self._inbox = inbox
        self._changed.clear()
        if loop.time() >= self._pulled_until_s:
            body = json.dumps({"batch": 1, "expires": int(_EXPIRES_S * _NS)}).encode()
            pull = client.on_wire(api_pull(REQUEST_STREAM, self._durable))
            self._pulls += 1
            # Each pull has a subject of its own: from another account a second one with the same is not answered.
            answer_to = f"{self._inbox}.{self._pulls}"
            client.write(publication(pull.encode(), body, answer_to.encode()))
            self._pulled_until_s = loop.time() + _EXPIRES_S + _LATE_S
        try:
            async with self._connection.until_lost():
                await set_within(self._changed, max(0.0, self._pulled_until_s - loop.time()))
        except TimeoutError:
            self._pulled_until_s = -math.inf  # the server forgets the pull with the connection
        if self._ended:
            problem, self._ended = self._ended, ""
            raise BrokerUnavailable([], problem)
        if refusal := not_permitted(client, client.on_wire(api_pull(REQUEST_STREAM, self._durable))):
            raise RequestsUnavailable(f"the NATS user may not do this: {refusal}")

    def _take(self, _subject: bytes, reply: bytes, headers: bytes, body: bytes) -> None:
        """Called by the client with each answer to a pull."""
        self._changed.set()
        self._pulled_until_s = -math.inf
        status = headers.partition(b"\r\n")[0].decode(errors="replace").removeprefix("NATS/1.0 ")
        self._missing = not reply and status.startswith("503")
        self._known = self._known or not self._missing
        if reply:
            self._arrived.append(JobRequest(body, reply.decode(), self._settle))
        elif not self._missing and not status.startswith(("404", "408")):  # these two say that nothing came in time
            self._ended = f"the server ended the pull with {status!r}"

    async def _settle(self, reply: str, word: bytes, *, confirmed: bool) -> None:
        problem = "there was no connection to NATS"
        try:
            client = await self._connection.connected(asyncio.get_running_loop().time() + _TIMEOUT_S)
            if not confirmed:
                await client.publish(reply, word)
                return
            await client.request(reply, word, timeout=_TIMEOUT_S)
        except (nats.errors.Error, TimeoutError, OSError) as error:
            problem = str(error) or problem
        else:
            return
        raise RequestUnsettled(problem)

    def _config(self) -> dict[str, Any]:
        return {
            "durable_name": self._durable,
            "deliver_policy": self._deliver,
            "ack_policy": "explicit",
            "ack_wait": int(self._ack_wait_s * _NS),
        }


async def _ensure_durable(client: FrameClient, durable: str, config: Mapping[str, Any]) -> None:
    request = {"stream_name": REQUEST_STREAM, "config": dict(config)}
    try:
        try:
            await api_request(client, api_consumer_info(REQUEST_STREAM, durable))
        except JetStreamError as error:
            if error.err_code != CONSUMER_NOT_FOUND:
                raise
            await api_request(client, api_durable_create(REQUEST_STREAM, durable), request)
    except JetStreamError as error:
        if error.err_code == STREAM_NOT_FOUND:
            raise RequestsUnavailable(f"the stream {REQUEST_STREAM} is missing: run `relay provision`") from None
        raise RequestsUnavailable(str(error)) from None
    except (NotPermitted, UnsuitableServer) as error:
        command = f"nats consumer add {REQUEST_STREAM} {durable} --pull --deliver new --ack explicit --defaults"
        problem = f"{REQUEST_STREAM} seems to have no durable {durable!r}, and this user may neither look nor make it"
        raise RequestsUnavailable(f"{problem}: have the operator make it, `{command}` ({error})") from None


def _require_options(durable: str, deliver: str, ack_wait_s: float) -> None:
    if not durable or _FORBIDDEN & set(durable):
        raise ConfigurationError("durable", durable, "a name without blanks, dots, * and >")
    if deliver not in {"new", "all"}:
        raise ConfigurationError("deliver", deliver, "'new' or 'all'")
    if not ack_wait_s > 0:
        raise ConfigurationError("ack_wait_s", str(ack_wait_s), "a number of seconds above 0")
