"""The Facilitator in virtual time: the rules and faults of the simulator in relay/local, and all ways to disconnect."""

import json
import math
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Protocol

from bittensor_wallet import Keypair

from relay.local.faults import (
    DROP_AFTER_STORING,
    DROP_BEFORE_STORING,
    INSERTS_FAIL,
    INTEGRITY_ERRORS,
    NO_FAULT,
    UNTIL_LIFTED,
    Fault,
    refuse,
    stall,
)
from relay.local.ledger import DROPPED, Answer, Authentication, Conversation, Ledger, Message, StatusUpdate, parse
from simulation.blame import Line
from simulation.book import Book
from simulation.clock import Clock
from simulation.network import Pipe
from simulation.schedule import Publish, Temper

_HOTKEY = Keypair.create_from_uri("//Alice")
_VALIDATOR = _HOTKEY.public_key.hex()
AUTHENTICATION = json.dumps(
    {
        "message_type": "V0AuthenticationRequest",
        "public_key": _VALIDATOR,
        "signature": "0x" + _HOTKEY.sign(_HOTKEY.public_key).hex(),
    }
)
PUSH = '{"message_type":"V2JobRequest","type":"job.new","uuid":"123"}'
_FAULTS = {
    Temper.REFUSED: (refuse("missing"), math.inf),
    Temper.FLAKY: (refuse("job.confused"), 2),
    Temper.POISON: (DROP_BEFORE_STORING, math.inf),
    Temper.DROPS: (DROP_BEFORE_STORING, 1),
    Temper.DROPS_STORED: (DROP_AFTER_STORING, math.inf),
    Temper.MUTE: (stall(), 1),
}
"""For each temper, the fault of its updates, and how often it happens."""
_SERVICE_S = 0.004
_PUSHES = 0.05
"""The share of answers that a push precedes."""


class Socket(Protocol):
    """The relay's end of a connection."""

    def arrived(self, message: str) -> None: ...
    def closed(self, code: int | None) -> None: ...


class Facilitator:
    """What all connections share: the stored rows, and the faults.

    Args:
        sent: called with the worker's name and the update, whenever a worker sends one, controls excepted.
    """

    def __init__(self, clock: Clock, book: Book, rng: random.Random, sent: Callable[[str, Publish], None]) -> None:
        self.away_until_s = self.down_until_s = self.refuses_until_s = self.stalled_until_s = self.confused_until_s = (
            0.0
        )
        self.hangs_up_until_s = 0.0
        self.tried_s: list[float] = []
        """When a worker tried to connect."""
        self.inserts_fail_until_s = 0.0
        self.connections: list[Connection] = []
        self.ledger = Ledger([_VALIDATOR])
        self.clock = clock
        self.book = book
        self.rng = rng
        self.sent = sent
        self._lines: dict[tuple[str, str], Line] = {}
        self._updates: dict[str, Publish] = {}
        self._seen: Counter[str] = Counter()

    def expect(self, update: Publish) -> None:
        """Announce an update; its job is unknown until `known_from_s`."""
        self._updates[update.name] = update
        if update.known_from_s:
            self.ledger.unknown_jobs.add(update.job)
            self.clock.after(update.known_from_s, self.ledger.unknown_jobs.discard, update.job)

    def connect(self, owner: str, url: str, pipes: tuple[Pipe, Pipe], socket: Socket) -> "Connection | None":
        """Open a connection over two pipes, up and down; None if it is refused."""
        line = self._lines.setdefault((owner, url), Line(self.book))
        if self.clock.now < self.away_until_s:
            line.failed()
            return None
        connection = Connection(self, owner, line, pipes, socket)
        self.connections.append(connection)
        if self.clock.now < self.hangs_up_until_s:
            connection.drop(None)
        return connection

    def update_of(self, message: Message | Answer) -> Publish | None:
        """The update in a message; None if there is none."""
        metadata = message.metadata if isinstance(message, StatusUpdate) else None
        return self._updates[metadata.model_extra["name"]] if metadata and metadata.model_extra else None

    def fault_of(self, message: Message | Answer) -> Fault:
        """The fault that is applied to a message."""
        if self.clock.now < self.down_until_s:
            return DROP_BEFORE_STORING
        if (update := self.update_of(message)) is None:
            return NO_FAULT
        if self.clock.now < self.confused_until_s and update.job not in self.ledger.unknown_jobs:
            return INTEGRITY_ERRORS
        self._seen[update.name] += 1
        fault, times = _FAULTS.get(update.temper, (NO_FAULT, 0))
        if fault is DROP_AFTER_STORING and (self.book.has(update) or update.job in self.ledger.unknown_jobs):
            fault = NO_FAULT  # nothing would be stored
        elif self._seen[update.name] > times:
            fault = NO_FAULT
        storing = fault in (NO_FAULT, DROP_AFTER_STORING)
        return INSERTS_FAIL if storing and self.clock.now < self.inserts_fail_until_s else fault

    def answer(self, conversation: Conversation, message: Message | Answer, fault: Fault) -> Answer:
        """The answer to a message; if it stores an update, this is recorded in the book."""
        self.ledger.validators = set() if self.clock.now < self.refuses_until_s else {_VALIDATOR}
        stored = len(self.ledger.rows)
        answer = fault.answer(conversation, message, self.clock.now)
        update = self.update_of(message)
        if update is not None and len(self.ledger.rows) > stored:
            self.book.stored(update)
        return answer


class Connection:
    """The Facilitator's end of one connection: it handles messages one after another."""

    def __init__(
        self, facilitator: Facilitator, owner: str, line: Line, pipes: tuple[Pipe, Pipe], socket: Socket
    ) -> None:
        self.owner = owner
        self.unanswered: deque[Publish] = deque()
        """Updates that the relay has sent and has no answer to."""
        self._facilitator = facilitator
        self._line = line
        self._up, self._down = pipes
        self._socket = socket
        self._conversation = Conversation(facilitator.ledger, 1)
        self._let_in = False
        """Whether the relay has received the answer to its authentication."""
        self._busy = False
        self._waiting: deque[Message | Answer] = deque()

    def send(self, text: str) -> None:
        """The relay sends a message."""
        message = parse(text)
        if (update := self._facilitator.update_of(message)) is not None:
            is_control = self._line.sends(update)
            self._note("sends the control" if is_control else "sends", update.name)
            self.unanswered.append(update)
            if not is_control:
                self._facilitator.sent(self.owner, update)
        self._up.send(self._receive, message)

    def hang_up(self, code: int) -> None:
        """The relay closes the connection."""
        self._up.send(self.drop, code)

    def vanish(self, after_s: float) -> None:
        """The relay's process has died; what it sent last may still arrive."""
        self._up.cut(after_s)
        self._down.cut()
        self._end()

    def drop(self, code: int | None) -> None:
        """Disconnect, with a close frame of `code` (None: without one); some of the last answers may be lost."""
        if not self._end():
            return
        self._up.cut()
        if code is None and self._facilitator.rng.random() < 0.5:
            self._down.cut()
        clock = self._facilitator.clock
        clock.after(self._facilitator.rng.random() * 0.01, self._closed, code)

    def _closed(self, code: int | None) -> None:
        """The relay sees the end of the connection; what is unanswered stays so."""
        self._down.cut()
        self._note("loses the connection with", f"{len(self.unanswered)} unanswered ({code})")
        for update in self.unanswered:
            self._facilitator.book.may_have_arrived(update)
        if self._let_in:
            self._line.ended(code, self.unanswered)
        else:
            self._line.failed()
        self._socket.closed(code)

    def _receive(self, message: Message | Answer) -> None:
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
        fault = self._facilitator.fault_of(message)
        if fault.hold_s == UNTIL_LIFTED:
            return  # and stays busy forever
        authenticated = self._conversation.authenticated or isinstance(message, Authentication)
        assert authenticated or not fault.store, "the relay must sign in first"
        answer = self._facilitator.answer(self._conversation, message, fault)
        if answer.reply is not None:
            self._reply(message, answer.reply)
        if answer.end_code is not None:
            self.drop(None if answer.end_code == DROPPED else answer.end_code)
        else:
            self._work()

    def _reply(self, message: Message | Answer, reply: str) -> None:
        if self._facilitator.rng.random() < _PUSHES:
            self._down.send(self._socket.arrived, PUSH)
        self._down.send(self._deliver, self._facilitator.update_of(message), reply)

    def _deliver(self, update: Publish | None, answer: str) -> None:
        """An answer arrives at the relay."""
        errors = json.loads(answer)["errors"]
        error = errors[0]["type"] if errors else None
        if update is None:
            self._let_in = error is None
            (self._line.signed_in if self._let_in else self._line.failed)()
        else:
            assert self.unanswered.popleft() is update
            self._line.answered(update, error)
            if error == "job.integrity_error" and not self._facilitator.book.has(update):
                self._facilitator.book.confused(update)
            elif error in (None, "job.integrity_error"):
                self._note("is told that it has", update.name)
            else:
                self._facilitator.book.refused(update, error)
        self._socket.arrived(answer)

    def _end(self) -> bool:
        """Remove the connection; returns whether it was still open."""
        if self not in self._facilitator.connections:
            return False
        self._facilitator.connections.remove(self)
        return True

    def _note(self, what: str, about: str) -> None:
        self._facilitator.book.note(self.owner, f"{what} {about}")
