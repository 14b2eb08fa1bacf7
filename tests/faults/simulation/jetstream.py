"""The model of nats-server, by subject: the status stream with its consumers, and the dead-letter stream."""

import base64
import itertools
import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from relay.contract.subjects import (
    DLQ_STREAM,
    MSG_ID_HEADER,
    REASON_HEADER,
    SOURCE_SEQUENCE_HEADER,
    STATUS_STREAM,
    api_consumer_info,
    api_message_get,
    api_pull,
    lane_consumer,
    lane_of,
    stored_subject,
    token_of_stored,
)
from simulation.book import Book
from simulation.clock import Clock
from simulation.consumer import Consumer, Stored, moment
from simulation.network import SILENCE, Inbox, Late
from simulation.schedule import Publish

_LATE_LOOK_S, _LATE_WRITE_S = 0.8, 2.5
"""How late answers may be; less than any timeout for them."""


class JetStream:
    """It receives everything that clients publish and request."""

    def __init__(self, clock: Clock, book: Book, *, lanes: int, ack_wait_s: float, max_ack_pending: int) -> None:
        self._names = [lane_consumer(lane) for lane in range(lanes)]
        self._make = partial(Consumer, clock, book, ack_wait_s=ack_wait_s, max_ack_pending=max_ack_pending)
        self._consumers = {name: self._make(name) for name in self._names}
        self.info_away_until_s = self.letters_away_until_s = self.letters_full_until_s = 0.0
        self.late_until_s = 0.0
        self._clock = clock
        self._book = book
        self._updates: dict[str, list[Stored]] = {name: [] for name in self._names}
        self._letters: list[tuple[str, dict[str, str], float]] = []

    @property
    def unsettled(self) -> int:
        """How many updates are not settled; a missing consumer counts as one."""
        there = [self._consumers.get(name) for name in self._names]
        return sum(consumer.unsettled if consumer else 1 for consumer in there)

    def publish(self, update: Publish) -> None:
        """A producer publishes; it gets its PubAck at once."""
        sequence = len(self._book.updates) + 1
        self._book.published(sequence, update)
        lane = lane_of(update.job, len(self._names))
        stored = Stored(sequence, stored_subject(lane, update.job), update, self._clock.time())
        self._updates[lane_consumer(lane)].append(stored)
        if (consumer := self._consumers.get(lane_consumer(lane))) is not None:
            consumer.store(stored)

    def change_leaders(self, *, silently: bool) -> None:
        """Give every consumer a new leader."""
        for consumer in self._consumers.values():
            consumer.change_leader(silently=silently)

    def set_clocks_back(self, by_s: float) -> None:
        """Set back the clock by which the consumers redeliver."""
        for consumer in self._consumers.values():
            consumer.set_clock_back(by_s)

    def delete_consumers(self) -> None:
        for consumer in self._consumers.values():
            consumer.delete()
        self._consumers.clear()

    def make_anew(self) -> None:
        """Create the consumers that are missing; each begins at the first stored update."""
        self._book.consumers_made_anew()
        for name in self._names:
            if name not in self._consumers:
                consumer = self._consumers[name] = self._make(name)
                for stored in self._updates[name]:
                    consumer.store(stored)

    def hear(self, subject: str, payload: bytes, inbox: Inbox | None) -> None:
        """Receive what a client publishes: a pull, or an answer to a delivery.

        It goes to the consumer with this name, even if that was created after the delivery.
        """
        if subject.startswith("$JS.ACK."):
            _, _, _, name, _, sequence, *_ = subject.split(".")
            if (consumer := self._consumers.get(name)) is not None:
                consumer.hear(int(sequence), payload.decode())
            return
        assert inbox is not None, "a pull names the inbox for its answers"
        consumer = self._consumers.get(subject.removeprefix(api_pull(STATUS_STREAM, "")))
        if consumer is None:
            inbox.send_status(503, "")  # nothing subscribes to this subject
        else:
            consumer.pull(inbox, payload)

    def request(self, subject: str, payload: bytes, headers: Mapping[str, str]) -> Any:
        """The bytes of the answer; SILENCE if there is none."""
        if subject.startswith("$JS.ACK."):
            self.hear(subject, payload, None)
            return b""
        answer, late_by_s = self._answer(subject, payload, headers)
        is_late = answer is not SILENCE and self._clock.now < self.late_until_s
        return Late(answer, late_by_s) if is_late else answer

    def _answer(self, subject: str, payload: bytes, headers: Mapping[str, str]) -> tuple[Any, float]:
        """The answer, and how late it may be, in seconds."""
        now = self._clock.now
        if (name := subject.removeprefix(api_consumer_info(STATUS_STREAM, ""))) != subject:
            return SILENCE if now < self.info_away_until_s else _encoded(self._info(name)), _LATE_LOOK_S
        if now < self.letters_away_until_s:
            return SILENCE, 0.0
        if subject == api_message_get(STATUS_STREAM):
            return _encoded(self._get_update(json.loads(payload))), _LATE_LOOK_S
        if subject == api_message_get(DLQ_STREAM):
            return _encoded(self._get(json.loads(payload))), _LATE_LOOK_S
        return _encoded(self._store(subject, headers)), _LATE_WRITE_S

    def _info(self, name: str) -> dict[str, Any]:
        consumer = self._consumers.get(name)
        return _error(404, 10014, "consumer not found") if consumer is None else consumer.info()

    def _store(self, subject: str, headers: Mapping[str, str]) -> dict[str, Any]:
        if self._clock.now < self.letters_full_until_s:
            return _error(503, 10077, "maximum messages exceeded")
        ids = [stored[MSG_ID_HEADER] for _, stored, _ in self._letters]
        if headers[MSG_ID_HEADER] in ids:
            return {"stream": DLQ_STREAM, "seq": ids.index(headers[MSG_ID_HEADER]) + 1, "duplicate": True}
        self._letters.append((subject, dict(headers), self._clock.time()))
        self._book.buried(int(headers[SOURCE_SEQUENCE_HEADER]), headers[REASON_HEADER])
        return {"stream": DLQ_STREAM, "seq": len(self._letters)}

    def _get_update(self, request: dict[str, Any]) -> dict[str, Any]:
        """The first update of a job from a sequence on, or the one with that sequence."""
        job = token_of_stored(request["next_by_subj"]) if "next_by_subj" in request else None
        for stored in itertools.chain.from_iterable(self._updates.values()):
            fits = stored.sequence == request["seq"] if job is None else stored.sequence >= request["seq"]
            if fits and job in (None, stored.update.job):
                data = base64.b64encode(stored.update.body).decode()
                time = moment(stored.stored_at_s)
                return {"message": {"subject": stored.subject, "seq": stored.sequence, "time": time, "data": data}}
        return _error(404, 10037, "no message found")

    def _get(self, request: dict[str, Any]) -> dict[str, Any]:
        if (sequence := next(self._fitting(request), None)) is None:
            return _error(404, 10037, "no message found")
        subject, headers, stored_at_s = self._letters[sequence - 1]
        block = "NATS/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
        hdrs = base64.b64encode(block.encode()).decode()
        return {"message": {"subject": subject, "seq": sequence, "time": moment(stored_at_s), "hdrs": hdrs}}

    def _fitting(self, request: dict[str, Any]) -> Iterator[int]:
        """The sequences of the dead letters that match a request; the one to return is first."""
        first = request.get("seq", 1)
        subject: str | None = request.get("last_by_subj") or request.get("next_by_subj")
        if subject is None:
            return iter((first,))
        sequences = range(first, len(self._letters) + 1)
        order = reversed(sequences) if "last_by_subj" in request else sequences
        return (each for each in order if "*" in subject or self._letters[each - 1][0] == subject)


def _encoded(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer).encode()


def _error(code: int, err_code: int, description: str) -> dict[str, Any]:
    return {"error": {"code": code, "err_code": err_code, "description": description}}
