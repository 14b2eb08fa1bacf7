"""The model of nats-server: one consumer for each lane, and the dead-letter stream, with their known bad manners.

Redeliveries come before new updates, in the order in which their time ran out, which is not the stream's. Whoever
acknowledges an update ends it, however often it was delivered since. A pull that nobody waits for is served still,
until the server notices.
"""

import base64
import datetime as dt
import json
import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from relay.core.continuity import ConsumerState
from relay.subjects import (
    DLQ_STREAM,
    MSG_ID_HEADER,
    REASON_HEADER,
    SOURCE_SEQUENCE_HEADER,
    api_message_get,
    lane_of,
    stored_subject,
)
from simulation.book import Book
from simulation.clock import Clock
from simulation.network import SILENCE, Wire
from simulation.schedule import Publish

ACK, NAK, IN_PROGRESS, TERM = "+ACK", "-NAK", "+WPI", "+TERM"
HEARTBEAT, TIMEOUT, GONE = 100, 408, 409


@dataclass(frozen=True, slots=True)
class Stored:
    """An update as the stream keeps it."""

    sequence: int
    subject: str
    body: bytes
    stored_at_s: float


class Receiver(Protocol):
    """Where a pull's messages go."""

    owner: str
    wire: Wire
    gone: bool
    """The server was told that nobody listens any more."""

    def deliver(self, stored: Stored, consumer_sequence: int, deliveries: int) -> None: ...
    def status(self, code: int, pending: int) -> None: ...


@dataclass(slots=True)
class _Pull:
    receiver: Receiver
    left: int
    expires_s: float
    over: bool = False


@dataclass(slots=True)
class _Pending:
    stored: Stored
    deliveries: int = 0
    deadline_s: float = math.inf
    waits: bool = False
    """It is to be delivered again."""


class Consumer:
    """One lane's durable consumer."""

    def __init__(self, clock: Clock, book: Book, *, ack_wait_s: float, max_ack_pending: int) -> None:
        self._clock = clock
        self._book = book
        self._ack_wait_s = ack_wait_s
        self._max_ack_pending = max_ack_pending
        self._unseen: deque[Stored] = deque()
        self._pending: dict[int, _Pending] = {}
        self._again: deque[int] = deque()
        self._pulls: deque[_Pull] = deque()
        self._delivered = 0
        self._delivered_count = 0
        self._made_at_s = clock.time()

    @property
    def unsettled(self) -> int:
        return len(self._unseen) + len(self._pending)

    def state(self) -> ConsumerState:
        counts = len(self._pending), self._delivered, self._delivered_count, len(self._unseen)
        return ConsumerState(*counts, made_at_s=self._made_at_s)

    def store(self, stored: Stored) -> None:
        self._unseen.append(stored)
        self._serve()

    def pull(self, receiver: Receiver, batch: int, expires_s: float, heartbeat_s: float) -> None:
        pull = _Pull(receiver, batch, self._clock.now + expires_s)
        self._pulls.append(pull)
        self._clock.after(expires_s, self._expire, pull)
        self._clock.after(heartbeat_s, self._beat, pull, heartbeat_s)
        self._serve()

    def delete(self) -> None:
        """Whoever waits is told, and nothing is delivered any more."""
        for pull in self._pulls:
            if not pull.over and pull.receiver.wire.served:
                pull.receiver.status(GONE, pull.left)
        self._unseen.clear()
        self._pending.clear()
        self._pulls.clear()

    def hear(self, sequence: int, word: str, delay_s: float = 0.0) -> None:
        """What a worker says of a delivery."""
        if (pending := self._pending.get(sequence)) is None:
            return
        self._book.note("JetStream", f"hears {word} of {self._book.name(sequence)}")
        if word == IN_PROGRESS:
            pending.deadline_s = self._clock.now + self._ack_wait_s
        elif word == NAK:
            self._clock.after(delay_s, self._redeliver, pending, pending.deliveries)
        else:
            (self._book.acknowledged if word == ACK else self._book.ended)(sequence)
            del self._pending[sequence]
        self._serve()

    def _serve(self) -> None:
        while (pull := self._next_pull()) is not None and (pending := self._next()) is not None:
            pending.deliveries += 1
            self._delivered_count += 1
            pending.waits = False
            pending.deadline_s = self._clock.now + self._ack_wait_s
            self._clock.at(pending.deadline_s, self._time_out, pending, pending.deliveries)
            pull.left -= 1
            pull.over = pull.left == 0
            self._book.note(
                "JetStream", f"delivers {self._book.name(pending.stored.sequence)} to {pull.receiver.owner}"
            )
            pull.receiver.deliver(pending.stored, self._delivered_count, pending.deliveries)

    def _next_pull(self) -> _Pull | None:
        while self._pulls:
            pull = self._pulls[0]
            if not pull.over and pull.receiver.wire.served and not pull.receiver.gone:
                return pull
            pull.over = True
            self._pulls.popleft()
        return None

    def _next(self) -> _Pending | None:
        while self._again:
            pending = self._pending.get(self._again.popleft())
            if pending is not None and pending.waits:
                return pending
        if not self._unseen or len(self._pending) >= self._max_ack_pending:
            return None
        stored = self._unseen.popleft()
        self._delivered = stored.sequence
        pending = self._pending[stored.sequence] = _Pending(stored)
        return pending

    def _time_out(self, pending: _Pending, deliveries: int) -> None:
        if self._clock.now < pending.deadline_s:
            self._clock.at(pending.deadline_s, self._time_out, pending, deliveries)
        else:
            self._redeliver(pending, deliveries)

    def _redeliver(self, pending: _Pending, deliveries: int) -> None:
        sequence = pending.stored.sequence
        if self._pending.get(sequence) is pending and pending.deliveries == deliveries and not pending.waits:
            pending.waits = True
            self._again.append(sequence)
            self._serve()

    def _expire(self, pull: _Pull) -> None:
        if not pull.over and pull.receiver.wire.served:
            pull.over = True
            pull.receiver.status(TIMEOUT, pull.left)

    def _beat(self, pull: _Pull, every_s: float) -> None:
        if not pull.over and pull.receiver.wire.served and not pull.receiver.gone:
            pull.receiver.status(HEARTBEAT, 0)
            self._clock.after(every_s, self._beat, pull, every_s)


class JetStream:
    """The status stream with its lanes, and the dead-letter stream."""

    def __init__(self, clock: Clock, book: Book, *, lanes: int, ack_wait_s: float, max_ack_pending: int) -> None:
        self._make = partial(Consumer, clock, book, ack_wait_s=ack_wait_s, max_ack_pending=max_ack_pending)
        self.consumers = [self._make() for _ in range(lanes)]
        self.info_away_until_s = self.letters_away_until_s = self.letters_full_until_s = 0.0
        self._clock = clock
        self._book = book
        self._updates: list[list[Stored]] = [[] for _ in range(lanes)]
        self._letters: list[tuple[str, dict[str, str], float]] = []

    def publish(self, update: Publish) -> None:
        """A producer publishes; it gets its PubAck at once."""
        sequence = len(self._book.updates) + 1
        self._book.published(sequence, update)
        lane = lane_of(update.job, len(self.consumers))
        subject = stored_subject(lane, update.job)
        stored = Stored(sequence, subject, update.body, self._clock.time())
        self._updates[lane].append(stored)
        self.consumers[lane].store(stored)

    def make_anew(self) -> None:
        """Delete every consumer and make it again: it begins at the first update that is stored."""
        for lane, consumer in enumerate(self.consumers):
            consumer.delete()
            self.consumers[lane] = self._make()
            for stored in self._updates[lane]:
                self.consumers[lane].store(stored)

    def hear(self, lane: int, *word: Any) -> None:
        """What a worker says of a delivery: whoever has the consumer's name hears it, though it may be a new one."""
        self.consumers[lane].hear(*word)

    def info(self, lane: int) -> Any:
        """A consumer's state; SILENCE for as long as nobody answers."""
        return SILENCE if self._clock.now < self.info_away_until_s else self.consumers[lane].state()

    def request(self, subject: str, payload: bytes, headers: Mapping[str, str]) -> Any:
        """Store a dead letter, or look for one: the answer's bytes."""
        if self._clock.now < self.letters_away_until_s:
            return SILENCE
        get = subject == api_message_get(DLQ_STREAM)
        answer = self._get(json.loads(payload)) if get else self._store(subject, headers)
        return json.dumps(answer).encode()

    def _store(self, subject: str, headers: Mapping[str, str]) -> dict[str, Any]:
        if self._clock.now < self.letters_full_until_s:
            return _error(503, 10077, "maximum messages exceeded")
        ids = [stored[MSG_ID_HEADER] for _, stored, _ in self._letters]
        if headers[MSG_ID_HEADER] in ids:
            return {"stream": DLQ_STREAM, "seq": ids.index(headers[MSG_ID_HEADER]) + 1, "duplicate": True}
        self._letters.append((subject, dict(headers), self._clock.time()))
        self._book.buried(int(headers[SOURCE_SEQUENCE_HEADER]), headers[REASON_HEADER])
        return {"stream": DLQ_STREAM, "seq": len(self._letters)}

    def _get(self, request: dict[str, Any]) -> dict[str, Any]:
        if (sequence := next(self._fitting(request), None)) is None:
            return _error(404, 10037, "no message found")
        _, headers, stored_at_s = self._letters[sequence - 1]
        block = "NATS/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
        time = dt.datetime.fromtimestamp(stored_at_s, dt.UTC).isoformat()
        return {"message": {"seq": sequence, "time": time, "hdrs": base64.b64encode(block.encode()).decode()}}

    def _fitting(self, request: dict[str, Any]) -> Iterator[int]:
        """The sequences of the letters that a request may be about, the one that it is about first."""
        first = request.get("seq", 1)
        subject: str | None = request.get("last_by_subj") or request.get("next_by_subj")
        if subject is None:
            return iter((first,))
        sequences = range(first, len(self._letters) + 1)
        order = reversed(sequences) if "last_by_subj" in request else sequences
        return (each for each in order if "*" in subject or self._letters[each - 1][0] == subject)


def _error(code: int, err_code: int, description: str) -> dict[str, Any]:
    return {"error": {"code": code, "err_code": err_code, "description": description}}
