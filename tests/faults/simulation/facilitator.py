"""The model of the Facilitator: one row per job and status, answers in order, and every way of breaking off."""

import enum
import json
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Protocol

from simulation.blame import Line
from simulation.book import Book
from simulation.clock import Clock
from simulation.network import Pipe
from simulation.schedule import Publish, Temper

AUTHENTICATION = "let me in"
SUCCESS = '{"status":"success","errors":[]}'
PUSH = '{"message_type":"V2JobRequest","type":"job.new","uuid":"123"}'
_SERVICE_S = 0.004
_PUSHES = 0.05
"""How many answers are preceded by a push."""


class _Break(enum.Enum):
    """Answers that are none."""

    DROP = enum.auto()
    MUTE = enum.auto()


class Socket(Protocol):
    """The relay's end of a connection."""

    def arrived(self, message: str) -> None: ...
    def closed(self, code: int | None) -> None: ...


class Facilitator:
    """What all connections share: the rows, and how the Facilitator feels.

    Args:
        sent: called with the worker's name and the update, whenever a worker sends one.
    """

    def __init__(self, clock: Clock, book: Book, rng: random.Random, sent: Callable[[str, Publish], None]) -> None:
        self.away_until_s = self.down_until_s = self.refuses_until_s = self.stalled_until_s = 0.0
        self.connections: list[Connection] = []
        self.clock = clock
        self.book = book
        self.rng = rng
        self.sent = sent
        self._began_s = clock.now
        self._lines: dict[tuple[str, str], Line] = {}
        self._updates: dict[str, Publish] = {}
        self._seen: Counter[str] = Counter()

    @property
    def is_down(self) -> bool:
        return self.clock.now < self.down_until_s

    def expect(self, update: Publish) -> None:
        """This may come."""
        self._updates[update.name] = update

    def connect(self, owner: str, url: str, pipes: tuple[Pipe, Pipe], socket: Socket) -> "Connection | None":
        """A new connection, up and down; None if it is refused."""
        line = self._lines.setdefault((owner, url), Line(self.book))
        if self.clock.now < self.away_until_s:
            line.failed()
            return None
        self.connections.append(Connection(self, owner, line, pipes, socket))
        return self.connections[-1]

    def update_of(self, message: str) -> Publish | None:
        """The update in a message; None if it is something else."""
        content = json.loads(message) if message.startswith("{") else {}
        name = (content.get("metadata") or {}).get("name")
        return self._updates[name] if name else None

    def judge(self, update: Publish) -> str | _Break:
        """The answer to an update that comes in; it is stored if the answer says so."""
        self._seen[update.name] += 1
        times = self._seen[update.name]
        match update.temper:
            case Temper.REFUSED:
                return _error("missing")
            case Temper.POISON:
                return _Break.DROP
            case Temper.FLAKY if times <= 2:
                return _error("job.confused")
            case Temper.DROPS if times == 1:
                return _Break.DROP
            case Temper.MUTE if times == 1:
                return _Break.MUTE
            case _:
                return self._store(update)

    def _store(self, update: Publish) -> str | _Break:
        if self.clock.now - self._began_s < update.known_from_s:
            return _error("job.not_found")
        if self.book.has(update):
            return _error("job.integrity_error")
        self.book.stored(update)
        return _Break.DROP if update.temper is Temper.DROPS_STORED else SUCCESS


class Connection:
    """The Facilitator's end of one connection: it handles one message after another."""

    def __init__(
        self, facilitator: Facilitator, owner: str, line: Line, pipes: tuple[Pipe, Pipe], socket: Socket
    ) -> None:
        self.owner = owner
        self.unanswered: deque[Publish] = deque()
        """What the relay has sent and not seen an answer to."""
        self._facilitator = facilitator
        self._line = line
        self._up, self._down = pipes
        self._socket = socket
        self._known = False
        self._let_in = False
        """The relay knows that it is known."""
        self._busy = False
        self._waiting: deque[str] = deque()

    def send(self, message: str) -> None:
        """The relay sends something."""
        if (update := self._facilitator.update_of(message)) is not None:
            self._note("sends", update.name)
            self.unanswered.append(update)
            self._facilitator.sent(self.owner, update)
        self._up.send(self._receive, message)

    def hang_up(self, code: int) -> None:
        """The relay closes."""
        self._up.send(self.drop, code)

    def vanish(self, after_s: float) -> None:
        """The relay's process is gone; what it sent last may arrive still."""
        self._up.cut(after_s)
        self._down.cut()
        self._end()

    def drop(self, code: int | None) -> None:
        """Break off, with a close frame of `code` or without a word; some of the last answers may be lost by it."""
        if not self._end():
            return
        self._up.cut()
        if code is None and self._facilitator.rng.random() < 0.5:
            self._down.cut()
        clock = self._facilitator.clock
        clock.after(self._facilitator.rng.random() * 0.01, self._closed, code)

    def _closed(self, code: int | None) -> None:
        """The relay sees the end of the connection; what is unanswered then never will be."""
        self._down.cut()
        self._note("loses the connection with", f"{len(self.unanswered)} unanswered ({code})")
        if self._let_in:
            self._line.ended(code, self.unanswered)
        else:
            self._line.failed()
        self._socket.closed(code)

    def _receive(self, message: str) -> None:
        self._waiting.append(message)
        if not self._busy:
            self._busy = True
            self._work()

    def _work(self) -> None:
        facilitator = self._facilitator
        ready_s = max(facilitator.clock.now, facilitator.stalled_until_s)
        if self._waiting:
            service_s = facilitator.rng.expovariate(1 / _SERVICE_S)
            facilitator.clock.at(ready_s + service_s, self._handle)
        else:
            self._busy = False

    def _handle(self) -> None:
        if self not in self._facilitator.connections:
            return
        message = self._waiting.popleft()
        answer = self._answer_to(message)
        match answer:
            case _Break.DROP:
                self.drop(None)
            case _Break.MUTE:
                pass  # and stays busy for ever
            case None:
                self._work()
            case str():
                self._reply(message, answer)
                self._work()

    def _answer_to(self, message: str) -> str | _Break | None:
        if self._facilitator.is_down:
            return _Break.DROP
        if message == AUTHENTICATION:
            self._known = self._facilitator.clock.now >= self._facilitator.refuses_until_s
            return SUCCESS if self._known else _error("auth.validator_not_found")
        assert self._known, "the relay must sign in first"
        update = self._facilitator.update_of(message)
        return None if update is None else self._facilitator.judge(update)

    def _reply(self, message: str, answer: str) -> None:
        if self._facilitator.rng.random() < _PUSHES:
            self._down.send(self._socket.arrived, PUSH)
        self._down.send(self._deliver, self._facilitator.update_of(message), answer)

    def _deliver(self, update: Publish | None, answer: str) -> None:
        """An answer comes to the relay."""
        if update is None:
            self._let_in = answer == SUCCESS
            (self._line.signed_in if self._let_in else self._line.failed)()
        else:
            assert self.unanswered.popleft() is update
            self._line.answered(update)
            error = "" if answer == SUCCESS else json.loads(answer)["errors"][0]["type"]
            if error in ("", "job.integrity_error"):
                self._note("is told that it has", update.name)
            else:
                self._facilitator.book.refused(update, error)
        self._socket.arrived(answer)

    def _end(self) -> bool:
        """Whether it was still there."""
        if self not in self._facilitator.connections:
            return False
        self._facilitator.connections.remove(self)
        return True

    def _note(self, what: str, about: str) -> None:
        self._facilitator.book.note(self.owner, f"{what} {about}")


def _error(kind: str) -> str:
    return json.dumps({"status": "error", "errors": [{"type": kind, "msg": "no"}]})
