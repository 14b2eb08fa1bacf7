"""Many requests at a time over one connection, for what is limited by the rate of requests.

The client's own `request` spends more on a request than nats-server does: a random token, a timer and a task of its
own to wait in, and a message with a place in a queue for each answer. Here the answers come to one inbox, each under
the number of its request, and are read many at a time; one timer serves all; and what is asked within five
milliseconds is sent at once, which spares the server, too.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from typing import Any, Final, NamedTuple, cast

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.protocol.parser import AWAITING_CONTROL_LINE

_GATHER_S: Final = 0.005
"""How long a request may wait for others to be sent with."""
_LOOK_EVERY_S: Final = 0.5
"""How often to look for requests that wait for too long."""
_STATUS_HEADER: Final = "Status"
_NO_RESPONDERS: Final = "503"
_LINE_END: Final = re.compile(r"[\r\n]")


class _Answer(NamedTuple):
    """As much of a message as `api_request` and `publish_confirmed` look at."""

    data: bytes


@contextlib.asynccontextmanager
async def pipelined(client: Client) -> AsyncGenerator[Client]:
    """`client`, as far as `api_request` and `publish_confirmed` use it, with a faster `request`."""
    pipeline = _Pipeline(client)
    # No pending limits: beyond them the client drops messages, and whoever asks bounds how much is under way.
    subscription: Subscription = await client.subscribe(  # pyright: ignore[reportUnknownMemberType] - a bare Future
        f"{pipeline.inbox}.*", cb=pipeline.receive, pending_msgs_limit=0, pending_bytes_limit=0
    )
    sending = asyncio.create_task(pipeline.send())
    try:
        with _answers_first(client, pipeline.inbox, pipeline.take):
            yield cast("Client", pipeline)
    finally:
        sending.cancel()
        pipeline.close()
        if not client.is_closed:
            await subscription.unsubscribe()
        if sending.done() and not sending.cancelled():
            sending.result()  # raises what ended it


class _Pipeline:
    """As much of a client as requests take."""

    def __init__(self, client: Client) -> None:
        self.inbox = client.new_inbox()
        self._client = client
        self._last = 0
        self._waiting: dict[int, tuple[asyncio.Future[_Answer], float]] = {}
        self._unsent: list[bytes] = []
        self._asked = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,
        headers: Mapping[str, str] | None = None,
    ) -> asyncio.Future[_Answer]:
        """The answer to a request. Raises as the client's does; a timeout comes up to half a second late."""
        self._last = number = self._last + 1
        answer = self._loop.create_future()
        self._waiting[number] = answer, self._loop.time() + timeout
        if self._timer is None:
            self._timer = self._loop.call_later(_LOOK_EVERY_S, self._look)
        if not self._unsent:
            self._asked.set()
        self._unsent.append(_command(subject, f"{self.inbox}.{number}", payload, headers))
        return answer

    async def send(self) -> None:
        """Send what is asked, until cancelled."""
        # The public `publish` takes one message at a time, and twice as long for each.
        client: Any = self._client
        while True:
            await self._asked.wait()
            await asyncio.sleep(_GATHER_S)
            self._asked.clear()
            unsent, self._unsent = self._unsent, []
            await client._send_command(b"".join(unsent))  # noqa: SLF001
            await client._flush_pending()  # noqa: SLF001

    async def receive(self, message: Msg) -> None:
        number = int(message.subject.rpartition(".")[2])
        if not message.headers or message.headers.get(_STATUS_HEADER) != _NO_RESPONDERS:
            self.take(number, message.data)
        elif (waiting := self._waiting.pop(number, None)) is not None and not waiting[0].done():
            waiting[0].set_exception(nats.errors.NoRespondersError())

    def take(self, number: int, data: bytes) -> None:
        waiting = self._waiting.pop(number, None)
        if waiting is not None and not waiting[0].done():  # else it is too late
            waiting[0].set_result(_Answer(data))

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        for number, (answer, until_s) in list(self._waiting.items()):
            if now >= until_s:
                del self._waiting[number]
                if not answer.done():
                    answer.set_exception(nats.errors.TimeoutError())
        self._timer = self._loop.call_later(_LOOK_EVERY_S, self._look) if self._waiting else None


def _command(subject: str, reply: str, payload: bytes, headers: Mapping[str, str] | None) -> bytes:
    """The lines that publish a message, in NATS's protocol."""
    if not headers:
        return b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), reply.encode(), len(payload), payload)
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if not lines.count("\r") == lines.count("\n") == len(headers):  # a line end within one would begin another header
        lines = "".join([_LINE_END.sub(" ", f"{name}: {value}") + "\r\n" for name, value in headers.items()])
    block = f"NATS/1.0\r\n{lines}\r\n".encode()
    sizes = len(block), len(block) + len(payload)
    return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject.encode(), reply.encode(), *sizes, block, payload)


@contextlib.contextmanager
def _answers_first(client: Client, inbox: str, take: Callable[[int, bytes], None]) -> Generator[None]:
    """Have the answers to `inbox` taken out of what the client reads, before it makes messages of the rest.

    There is no public way to reach it. What does not begin with a whole answer goes the client's way, and comes to
    the subscription.
    """
    inner: Any = client
    parser: Any = inner._ps  # noqa: SLF001
    parse = parser.parse
    answer_head = re.compile(rb"MSG %b\.(\d+) \d+ (\d+)\r\n" % re.escape(inbox.encode())).match

    async def parse_rest(data: bytes) -> None:
        start = 0
        if not parser.buf and parser.state == AWAITING_CONTROL_LINE:
            while (head := answer_head(data, start)) is not None:
                end = head.end() + int(head[2])
                if len(data) < end + 2:
                    break
                take(int(head[1]), data[head.end() : end])
                start = end + 2
        if start < len(data):
            await parse(data[start:])

    parser.parse = parse_rest
    try:
        yield
    finally:
        if parser.parse is parse_rest:
            parser.parse = parse
