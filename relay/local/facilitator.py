"""A simulator of the Facilitator. It speaks the real protocol, oddities included, and fails on demand.

The demo and the tests run against it. `ledger` decides how a message is answered, `faults` decides what goes wrong, and
this module has the socket, the order and the clock. `python -m relay.local.facilitator` runs the simulator alone.
"""

import argparse
import asyncio
import json
import signal
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from http import HTTPStatus
from itertools import count
from typing import Any, Final, Self

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.protocol import State

from relay.contract.errors import LocalServerError
from relay.local.faults import (
    DROP_BEFORE_STORING,
    EVERY_MESSAGE,
    INSERTS_FAIL,
    INTEGRITY_ERRORS,
    Fault,
    FaultPlan,
    Injection,
    Moment,
)
from relay.local.ledger import (
    DROPPED,
    INACTIVE,
    Answer,
    Conversation,
    Heartbeat,
    Ledger,
    Message,
    Row,
    StatusUpdate,
    parse,
)

HOST: Final = "127.0.0.1"
PATH: Final = "/ws/v0/"
MAX_FRAME_BYTES: Final = 16 * 2**20
READ_AHEAD: Final = 32
"""How many updates may wait behind the one being handled. With one more the server stops reading."""
_KEPT_FRAMES: Final = 1000
_KEPT_SIZE: Final = 64 * 2**20


class _Session:
    """One open connection."""

    def __init__(self, connection: ServerConnection, conversation: Conversation, deadline: asyncio.Timeout) -> None:
        self.connection = connection
        self.conversation = conversation
        self.deadline = deadline
        """Closes the connection if no heartbeat comes in time."""
        self.task = asyncio.current_task()

    async def end(self, code: int) -> None:
        if code == DROPPED:
            self.connection.transport.abort()
            await self.connection.wait_closed()
        else:
            await self.connection.close(code)


class FacilitatorSimulator:
    """A Facilitator on 127.0.0.1, for as long as the `async with` block lasts.

    validators: public keys of the active validators, hex without 0x. With None every connection counts as
        authenticated, as behind a trusted proxy.
    service_time_s: how long each update takes before it is stored; on the real server 0.010 to 0.012.
    heartbeat_limit_s: a connection that sends no heartbeat for this long is closed with 3001.
    ping_interval_s, ping_timeout_s: how often to ping, and how long to wait for the pong before closing with 1011.

    Updates of one connection are handled one after another and answered in order. `on_row`, if set, is called
    with each row when it is stored. Raises LocalServerError if `port` is not available.
    """

    def __init__(
        self,
        validators: Iterable[str] | None = None,
        *,
        service_time_s: float = 0.0,
        heartbeat_limit_s: float = 600.0,
        ping_interval_s: float = 20.0,
        ping_timeout_s: float = 20.0,
        port: int = 0,
    ) -> None:
        self.ledger = Ledger(validators)
        self.service_time_s = service_time_s
        self.heartbeat_limit_s = heartbeat_limit_s
        self.on_row: Callable[[Row], None] | None = None
        self.replies: Counter[str] = Counter()
        """Replies sent: `success`, by type of their first error, or `injected`."""
        self.received: deque[str | bytes] = deque()
        """The latest frames, as they were received: at most 1,000, and few of them if they are large."""
        self._received_size = 0
        self.heartbeats = 0
        self.accepted = 0
        """All connections since the start; `connections` counts the open ones."""
        self.upgrade_headers: list[tuple[str, str]] = []
        """The HTTP headers with which the latest connection was asked for."""
        self._ping_interval_s = ping_interval_s
        self._ping_timeout_s = ping_timeout_s
        self._port = port
        self._ids = count(1)
        self._sessions: list[_Session] = []
        self._plan = FaultPlan()
        self._waiters: list[tuple[Callable[[FacilitatorSimulator], bool], asyncio.Future[None]]] = []
        self._servers: list[Server] = []
        self._reserved: socket.socket | None = None

    def __repr__(self) -> str:
        return (
            f"<FacilitatorSimulator {self.url} connections={self.connections} accepted={self.accepted} "
            f"rows={len(self.rows)} replies={dict(self.replies)} heartbeats={self.heartbeats}>"
        )

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    # What it is and what it has seen.

    @property
    def url(self) -> str:
        return f"ws://{HOST}:{self._port}{PATH}"

    @property
    def connections(self) -> int:
        return sum(session.connection.state is State.OPEN for session in self._sessions)

    @property
    def authenticated(self) -> int:
        """How many of the open connections are authenticated."""
        return sum(session.conversation.authenticated for session in self._sessions)

    @property
    def rows(self) -> list[Row]:
        """All rows in the order in which they were stored."""
        return self.ledger.rows

    @property
    def unknown_jobs(self) -> set[str]:
        """Updates of these UUIDs are answered with `job.not_found`; the set may be changed at any time."""
        return self.ledger.unknown_jobs

    def rows_of(self, uuid: str) -> list[Row]:
        """The rows of one job in the order in which they were stored."""
        return self.ledger.rows_of(uuid)

    def current_status(self, uuid: str) -> str | None:
        """What the Facilitator shows for the job: the status of the last row to arrive."""
        return self.ledger.current_status(uuid)

    async def wait_for(self, condition: "Callable[[FacilitatorSimulator], bool]", timeout_s: float = 15.0) -> None:
        """Wait until `condition(simulator)` holds. It is checked at each change, so a short-lived state is not missed.

        Raises TimeoutError, which shows the simulator's state, after `timeout_s` seconds. Cancelling is safe.
        """
        if condition(self):
            return
        met: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((condition, met))
        try:
            async with asyncio.timeout(timeout_s):
                await met
        except TimeoutError:
            raise TimeoutError(f"not so after {timeout_s} s: {self!r}") from None
        finally:
            self._waiters.remove((condition, met))

    # What it pushes.

    async def push_job_request(self, uuid: str, **fields: Any) -> int:
        """Wait for an authenticated connection, send a V2JobRequest to each, and return how many got it."""
        job: dict[str, Any] = {"message_type": "V2JobRequest", "type": "job.new", "uuid": uuid}
        return await self._push({**job, "docker_image": "busybox:latest", "args": [], "env": {}, **fields})

    async def push_cheated(self, uuid: str) -> int:
        """Wait for an authenticated connection, send a V0JobCheated to each, and return how many got it."""
        return await self._push({"message_type": "V0JobCheated", "type": "job.cheated", "job_uuid": uuid})

    # What goes wrong.

    def inject(
        self,
        fault: Fault,
        *,
        at: Collection[Moment] = (Moment.UPDATE,),
        uuid: str | None = None,
        status: str | None = None,
        nth: int = 1,
        times: int | None = 1,
    ) -> Injection:
        """Apply `fault` to `times` matching moments (None: all), beginning with the `nth` from now; see Injection."""
        return self._plan.add(Injection(fault, at, uuid=uuid, status=status, nth=nth, times=times))

    def database_down(self) -> Injection:
        """Until lifted, drop the connection at each message, also at authentication and heartbeats."""
        return self.inject(DROP_BEFORE_STORING, at=EVERY_MESSAGE, times=None)

    def inserts_fail(self) -> Injection:
        """Until lifted, fail to store anything: each update of a known job drops the connection, repeats as well.

        All else works: the sign-in, heartbeats, pushes. So is the real server while its disk is full.
        """
        return self.inject(INSERTS_FAIL, times=None)

    def integrity_errors(self, seconds: float | None = None) -> Injection:
        """Answer every update with `job.integrity_error` and store nothing: for `seconds`, or until lifted.

        So is the real server while a migration runs, or while its id sequence lies behind.
        """
        injection = self.inject(INTEGRITY_ERRORS, times=None)
        if seconds is not None:
            asyncio.get_running_loop().call_later(seconds, injection.lift)
        return injection

    def cache_down(self) -> Injection:
        """Drop every connection at once, and each new one until lifted."""
        injection = self.inject(DROP_BEFORE_STORING, at=(Moment.CONNECT,), times=None)
        for session in self._sessions:
            session.connection.transport.abort()
        return injection

    async def close_all(self, code: int) -> None:
        """Close every connection with `code`; with DROPPED, drop them without a close frame. New ones are accepted.

        An update that a stall holds meanwhile is stored when the stall ends, and not answered.
        """
        await asyncio.gather(*(session.end(code) for session in self._sessions))
        self._changed()

    async def remove_validator(self, public_key: str) -> None:
        """Make a validator inactive: its connections are closed with 3001, and new ones are refused."""
        if self.ledger.validators is not None:
            self.ledger.validators.discard(public_key)
        theirs = [session for session in self._sessions if session.conversation.public_key == public_key]
        await asyncio.gather(*(session.end(INACTIVE) for session in theirs))

    async def away(self, code: int | None = None) -> None:
        """Refuse new connections until `back`. Close open ones with `code`, drop them (DROPPED) or keep them (None).

        `away(1012)` and then `back()` is a restart; `away(DROPPED)` is a killed worker.
        """
        if self._reserved is not None:
            return
        self._servers[-1].close(close_connections=False)
        self._servers[-1].server.close()
        # Bound but not listening: connections are refused, and no other process can be given the port.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind((HOST, self._port))
        if code is not None:
            await self.close_all(code)

    async def back(self) -> None:
        """Listen again, on the same port."""
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None
            await self._listen()

    async def stop(self) -> None:
        """Stop listening, drop the open connections, and wait until all of them have ended."""
        await self.away()
        if self._reserved is not None:
            self._reserved.close()
        for session in self._sessions:
            session.connection.transport.abort()
            if session.task is not None:
                session.task.cancel()
        await asyncio.gather(*(server.wait_closed() for server in self._servers))

    # How it works.

    async def _listen(self) -> None:
        try:
            server = await serve(
                self._converse,
                HOST,
                self._port,
                process_request=_refuse_other_paths,
                ping_interval=self._ping_interval_s,
                ping_timeout=self._ping_timeout_s,
                max_size=MAX_FRAME_BYTES,
                # The message being handled is not in this queue. Reading stops when the queue is exceeded.
                max_queue=(READ_AHEAD, READ_AHEAD),
            )
        except OSError as problem:
            raise LocalServerError(
                f"the Facilitator simulator cannot listen on {HOST}:{self._port}: {problem}"
            ) from None
        self._port = server.sockets[0].getsockname()[1]
        self._servers.append(server)

    async def _converse(self, connection: ServerConnection) -> None:
        conversation = Conversation(self.ledger, next(self._ids))
        with suppress(ConnectionClosed):
            try:
                async with asyncio.timeout(self.heartbeat_limit_s) as deadline:
                    await self._serve(_Session(connection, conversation, deadline))
            except TimeoutError:
                await connection.close(INACTIVE)

    async def _serve(self, session: _Session) -> None:
        """Handle the messages of one connection one after another, until the connection ends."""
        self._sessions.append(session)
        self.accepted += 1
        if session.connection.request is not None:
            self.upgrade_headers = list(session.connection.request.headers.raw_items())
        self._changed()
        try:
            end_code = self._plan.on_connect().fault.end_code
            while end_code is None:
                frame = await session.connection.recv()
                self._keep(frame)
                end_code = await self._take(session, parse(frame), time.monotonic())
            await session.end(end_code)
        finally:
            self._sessions.remove(session)
            self._changed()

    def _keep(self, frame: str | bytes) -> None:
        self.received.append(frame)
        self._received_size += len(frame)
        while len(self.received) > _KEPT_FRAMES or (self._received_size > _KEPT_SIZE and len(self.received) > 1):
            self._received_size -= len(self.received.popleft())

    async def _take(self, session: _Session, message: Message | Answer, arrived_s: float) -> int | None:
        """Handle one message. Returns the code to end the connection with; None if it stays open."""
        injection = self._plan.on_message(message)
        self._changed()
        fault = injection.fault
        await injection.hold(fault.hold_s)
        if isinstance(message, StatusUpdate) and self.service_time_s > 0:
            await asyncio.sleep(self.service_time_s)
        answer = self._answer(session, message, fault, arrived_s)
        await injection.hold(fault.late_s)
        if answer.reply is not None:
            for _ in range(fault.answers):
                await session.connection.send(answer.reply)
                self.replies[answer.kind] += 1
                self._changed()
        return answer.end_code

    def _answer(self, session: _Session, message: Message | Answer, fault: Fault, arrived_s: float) -> Answer:
        stored = len(self.rows)
        answer = fault.answer(session.conversation, message, arrived_s)
        if fault.store and isinstance(message, Heartbeat) and session.conversation.authenticated:
            self.heartbeats += 1
            session.deadline.reschedule(asyncio.get_running_loop().time() + self.heartbeat_limit_s)
        if self.on_row is not None and len(self.rows) > stored:
            self.on_row(self.rows[-1])
        self._changed()
        return answer

    async def _push(self, message: dict[str, Any]) -> int:
        await self.wait_for(lambda facilitator: facilitator.authenticated > 0)
        text = json.dumps(message)
        sent = 0
        for session in [session for session in self._sessions if session.conversation.authenticated]:
            with suppress(ConnectionClosed):
                await session.connection.send(text)
                sent += 1
        return sent

    def _changed(self) -> None:
        for condition, met in self._waiters:
            if not met.done() and condition(self):
                met.set_result(None)


def _refuse_other_paths(connection: ServerConnection, request: Request) -> Response | None:
    """Answer 500 to other paths, as the real server does; it does not add a missing trailing slash either."""
    if request.path.partition("?")[0] == PATH:
        return None
    return connection.respond(HTTPStatus.INTERNAL_SERVER_ERROR, f"No route for {request.path}; try {PATH}\n")


def main() -> None:
    """Run one simulator until SIGTERM or SIGINT. Its URL is the one line on standard output."""
    parser = argparse.ArgumentParser(prog="python -m relay.local.facilitator", description=main.__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (default)")
    parser.add_argument("--auth", choices=("hotkey", "none"), default="none", help="default: none")
    parser.add_argument(
        "--validator", action="append", default=[], metavar="HEX", help="an active validator's public key, without 0x"
    )
    options = parser.parse_args()
    if (options.auth == "hotkey") != bool(options.validator):
        parser.error("--auth hotkey and --validator HEX go together: a Facilitator without validators lets nobody in")
    validators = options.validator if options.auth == "hotkey" else None
    try:
        asyncio.run(_run(FacilitatorSimulator(validators, port=options.port)))
    except LocalServerError as problem:
        sys.exit(str(problem))


async def _run(simulator: FacilitatorSimulator) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with simulator:
        sys.stdout.write(f"{simulator.url}\n")
        sys.stdout.flush()
        await stopped.wait()


if __name__ == "__main__":
    main()
