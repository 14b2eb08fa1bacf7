"""The model of a lane's durable consumer, with the difficult behaviour of a real one.

Redeliveries come before new updates, in the order in which their deadlines expired, not in stream order. An
acknowledgement of any delivery settles its update, also if it was redelivered since. A pull is served while its inbox
seems to have a subscriber: until the server notices a broken connection, and again on the next connection.
"""

import datetime as dt
import json
import math
from collections import deque
from dataclasses import dataclass
from typing import Any

from relay.contract.subjects import STATUS_STREAM
from simulation.book import Book
from simulation.clock import Clock
from simulation.network import Inbox
from simulation.schedule import Publish

_NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Stored:
    """An update as it is stored in the stream."""

    sequence: int
    subject: str
    update: Publish
    stored_at_s: float


@dataclass(slots=True)
class _Pull:
    inbox: Inbox
    left: int
    left_bytes: float
    """How many bytes it may still bring; infinite without a limit."""
    over: bool = False


@dataclass(slots=True)
class _Pending:
    stored: Stored
    deliveries: int = 0
    deadline_s: float = math.inf
    waits: bool = False
    """It is due for redelivery."""


class Consumer:
    """One lane's consumer: it receives what clients publish to it, and answers on their inboxes."""

    def __init__(self, clock: Clock, book: Book, name: str, *, ack_wait_s: float, max_ack_pending: int) -> None:
        self._clock = clock
        self._book = book
        self._name = name
        self._ack_wait_s = ack_wait_s
        self._max_ack_pending = max_ack_pending
        self._unseen: deque[Stored] = deque()
        self._pending: dict[int, _Pending] = {}
        self._again: deque[int] = deque()
        self._pulls: deque[_Pull] = deque()
        self._delivered = self._delivered_before = 0
        self._delivered_count = 0
        self._behind_s = 0.0
        """How far the leader's clock is behind the true time."""
        self._created = moment(clock.time())

    @property
    def unsettled(self) -> int:
        return len(self._unseen) + len(self._pending)

    def info(self) -> dict[str, Any]:
        """The parts of a consumer's info that the relay reads."""
        return {
            "created": self._created,
            "ts": moment(self._clock.time() - self._behind_s),
            "delivered": {"consumer_seq": self._delivered_count, "stream_seq": self._delivered},
            "ack_floor": {"stream_seq": min(self._pending, default=self._delivered + 1) - 1},
            "num_ack_pending": len(self._pending),
            "num_pending": len(self._unseen),
            "config": {"ack_wait": round(self._ack_wait_s * 1e9)},
        }

    def store(self, stored: Stored) -> None:
        self._unseen.append(stored)
        self._serve()

    def pull(self, inbox: Inbox, request: bytes) -> None:
        """A client asks for updates; the request is JSON, with times in nanoseconds."""
        wanted = json.loads(request)
        expires_s, heartbeat_s = wanted["expires"] / _NS_PER_S, wanted["idle_heartbeat"] / _NS_PER_S
        assert heartbeat_s < expires_s / 2, "the server refuses such a request"
        pull = _Pull(inbox, wanted["batch"], wanted.get("max_bytes", math.inf))
        self._pulls.append(pull)
        self._clock.after(expires_s, self._expire, pull)
        self._clock.after(heartbeat_s, self._beat, pull, heartbeat_s)
        self._serve()

    def change_leader(self, *, silently: bool) -> None:
        """The new leader does not know the pulls. Waiting clients are told, unless `silently`, as can happen."""
        for pull in self._pulls:
            if not pull.over and not silently:
                _end(pull, 409, "Leadership Change")
            pull.over = True

    def set_clock_back(self, by_s: float) -> None:
        """The leader's clock is set back: what is pending has been so for less time, or for a negative time."""
        self._behind_s += by_s
        for pending in self._pending.values():
            pending.deadline_s += by_s

    def delete(self) -> None:
        """Waiting clients are told, and nothing is delivered any more."""
        for pull in self._pulls:
            if not pull.over:
                pull.inbox.send_status(409, "Consumer Deleted")
            pull.over = True
        self._unseen.clear()
        self._pending.clear()

    def hear(self, sequence: int, word: str) -> None:
        """A client settles or extends a delivery: `+ACK`, `+WPI`, `-NAK`, or `+TERM` with a reason."""
        if (pending := self._pending.get(sequence)) is None:
            return
        word, _, more = word.partition(" ")
        self._book.note("JetStream", f"hears {word} of {self._book.name(sequence)}")
        match word:
            case "+WPI":
                pending.deadline_s = self._clock.now + self._ack_wait_s
            case "-NAK":
                delay_s = json.loads(more)["delay"] / _NS_PER_S if more else 0.0
                self._clock.after(delay_s, self._redeliver, pending, pending.deliveries)
            case "+ACK":
                self._book.acknowledged(sequence)
                del self._pending[sequence]
            case "+TERM":
                assert more, "an operator wants to know why"
                self._book.ended(sequence)
                del self._pending[sequence]
            case _:
                raise AssertionError(f"the server does not know the word {word}")
        self._serve()

    def _serve(self) -> None:
        while (pull := self._next_pull()) is not None and (pending := self._next()) is not None:
            if (size := self._size_of(pending)) > pull.left_bytes:
                _end(pull, 409, "Message Size Exceeds MaxBytes")
                self._put_back(pending)
                continue
            pull.left_bytes -= size
            pending.deliveries += 1
            self._delivered_count += 1
            pending.waits = False
            pending.deadline_s = self._clock.now + self._ack_wait_s
            self._clock.at(pending.deadline_s, self._time_out, pending, pending.deliveries)
            pull.left -= 1
            self._deliver(pull.inbox, pending)
            if pull.left_bytes == 0:  # such a request ends without a status
                pull.over = True
            elif pull.left == 0:
                pull.over = True
                if pull.left_bytes < math.inf:
                    _end(pull, 409, "Batch Completed")

    def _deliver(self, inbox: Inbox, pending: _Pending) -> None:
        stored = pending.stored
        self._book.delivered(stored.sequence)
        self._book.note("JetStream", f"delivers {self._book.name(stored.sequence)} to {inbox.owner}")
        reply = self._reply_of(pending)
        # A redelivery is lost only with its connection, because the relay waits for missing ones for a limited time.
        inbox.send(stored.subject, reply, b"", stored.update.body, may_get_lost=pending.deliveries == 1)

    def _reply_of(self, pending: _Pending) -> str:
        stored = pending.stored
        numbers = (pending.deliveries, stored.sequence, self._delivered_count, round(stored.stored_at_s * _NS_PER_S))
        return ".".join(map(str, ("$JS.ACK", STATUS_STREAM, self._name, *numbers, len(self._unseen))))

    def _size_of(self, pending: _Pending) -> int:
        stored = pending.stored
        return len(stored.subject) + len(self._reply_of(pending)) + len(stored.update.body)

    def _put_back(self, pending: _Pending) -> None:
        """It did not fit into a request: a redelivery goes behind the others, as on a real server."""
        if pending.deliveries:
            self._again.append(pending.stored.sequence)
        else:
            del self._pending[pending.stored.sequence]
            self._unseen.appendleft(pending.stored)
            self._delivered = self._delivered_before

    def _next_pull(self) -> _Pull | None:
        while self._pulls:
            pull = self._pulls[0]
            if not pull.over and pull.inbox.is_heard:
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
        self._delivered_before, self._delivered = self._delivered, stored.sequence
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
        if not pull.over:
            _end(pull, 408, "Request Timeout")

    def _beat(self, pull: _Pull, every_s: float) -> None:
        pull.over = pull.over or not pull.inbox.is_heard
        if not pull.over:
            numbers = {"Nats-Last-Consumer": str(self._delivered_count), "Nats-Last-Stream": str(self._delivered)}
            pull.inbox.send_status(100, "Idle Heartbeat", numbers)
            self._clock.after(every_s, self._beat, pull, every_s)


def moment(unix_s: float) -> str:
    """A time as nats-server writes it: RFC 3339, with nanoseconds."""
    whole_s, rest_ns = divmod(round(unix_s * _NS_PER_S), _NS_PER_S)
    return f"{dt.datetime.fromtimestamp(whole_s, dt.UTC):%Y-%m-%dT%H:%M:%S}.{rest_ns:09d}Z"


def _end(pull: _Pull, code: int, description: str) -> None:
    """End a pull, and tell the client how much of it is left."""
    pull.over = True
    left_bytes = 0 if pull.left_bytes == math.inf else pull.left_bytes
    left = {"Nats-Pending-Messages": str(pull.left), "Nats-Pending-Bytes": str(left_bytes)}
    pull.inbox.send_status(code, description, left)
