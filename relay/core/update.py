"""An update at hand, its delivery, and the result of admitting a batch of deliveries."""

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from relay.contract.subjects import Reason
from relay.contract.wire import Repair
from relay.core.verdict import DeadLetter, Outcome

if TYPE_CHECKING:
    from relay.core.lane import Lane


class UpdateLike(Protocol):
    """An update as it was published: what a dead letter is made of."""

    @property
    def subject(self) -> str: ...
    @property
    def body(self) -> bytes: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def sequence(self) -> int: ...
    @property
    def stored_at_s(self) -> float: ...


class DeliveryLike(UpdateLike, Protocol):
    """One delivery of an update, and JetStream's verbs to settle it with; see path/delivery.py."""

    @property
    def reply(self) -> bytes: ...
    @property
    def consumer_sequence(self) -> int: ...
    @property
    def deliveries(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    def ack(self, *others: "DeliveryLike") -> None: ...
    def nak(self) -> None: ...
    def in_progress(self) -> None: ...
    def term(self, reason: str) -> None: ...


class State(enum.Enum):
    """Where an update at hand is; the drawing in lane.py shows how it moves."""

    QUEUED = enum.auto()  # behind an older update of its job
    READY = enum.auto()  # the head of its job, free to go
    OUT = enum.auto()  # taken: at the Facilitator, or on its way to the dead letters
    WAITING = enum.auto()  # the head of its job, waiting out a backoff


@dataclass(slots=True, eq=False)
class Update:
    """One update at hand, from its first delivery to this worker until it is settled. Times are monotonic seconds."""

    lane: "Lane"
    sequence: int
    """Stream sequence: the order in which updates of one job must arrive."""
    job: str
    delivery: DeliveryLike
    """What to settle it with: the newest delivery, because a redelivery replaces the one before."""
    delivered_s: float
    """When it was first delivered to this worker."""
    touched_s: float
    """When the server last heard that it is worked on: at its latest delivery or +WPI."""
    held_bytes: int = 0
    """The memory for its bytes: as delivered, and `text` if that is not the delivered body itself."""
    text: bytes = b""
    """What to send to the Facilitator, UTF-8 JSON; empty if it cannot be sent, and then `dead_letter` says why."""
    status: str | None = None
    """The job status in it; None if it cannot be sent."""
    dead_letter: DeadLetter | None = None
    """Set once it is decided that the update ends in the dead-letter stream."""
    maybe_dead_lettered: bool = False
    """A worker before this one may have written its dead letter already: look it up first."""
    maybe_stored: bool = False
    """It was delivered before, or sent on a connection that broke: the Facilitator may have it."""
    has_equal_before: bool | None = None
    """The stream has an earlier update of the job with this status that may be stored; None if nobody asked it yet."""
    questioned: bool = False
    """The Facilitator says that it has it already, and the stream must be asked whether that can be."""
    unexplained: bool = False
    """That was its latest answer, and nothing explains it."""
    attempts: int = 0
    """Failed answers, or drops of the connection, that were this update's own fault."""
    undecided: int = 0
    """How often the connection dropped at it since there was last a control to tell whose fault that is."""
    sent_s: float | None = None
    """When it was first sent to the Facilitator, perhaps over a connection that is gone; None if it never was."""
    state: State = State.QUEUED
    unwritten: str | None = None
    """Why its dead letter could not be written at the last try, in words; None if it was not tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """How an update ended: what those who watch are told."""

    job: str
    status: str | None
    """None if the body could not be read."""
    sequence: int
    lane: int
    outcome: Outcome
    reason: Reason | None
    """Why it was dead-lettered. None if it was not, or if an earlier worker wrote its dead letter."""
    error: str | None
    """The same in words."""
    attempts: int
    """As in its dead letter: answers or drops of the connection that were its own fault."""
    deliveries: int
    headers: Mapping[str, str]
    stored_at_s: float
    delivered_s: float
    """When it was first delivered to this worker, or, if it never was, when its end was decided."""

    @classmethod
    def of(cls, update: Update, outcome: Outcome) -> "Settled":
        """An update at hand that was settled just now."""
        letter = update.dead_letter if outcome is Outcome.DEAD_LETTERED else None
        delivery = update.delivery
        return cls(
            job=update.job,
            status=update.status,
            sequence=update.sequence,
            lane=update.lane.number,
            outcome=outcome,
            reason=letter.reason if letter is not None else None,
            error=letter.error if letter is not None else None,
            attempts=update.attempts,
            deliveries=delivery.deliveries,
            headers=delivery.headers,
            stored_at_s=delivery.stored_at_s,
            delivered_s=update.delivered_s,
        )


@dataclass(slots=True)
class DeadLetterHorizon:
    """When the newest dead letter or its update was stored, in Unix time on the server's clock; infinite if unknown.

    A dead letter is never older than its update, unless a clock was set back. So an update that is newer than the
    horizon has none, and nothing needs to be looked up for it.
    """

    at_start_s: float = math.inf
    """Of the dead letters that were there before this worker drove any lane."""
    newest_s: float = math.inf
    """Of all dead letters, including those that this worker has written since."""


@dataclass(slots=True)
class Admission:
    """The result of admitting a batch of deliveries: what the caller has to act on."""

    settled_before: list[tuple[DeliveryLike, Outcome]] = field(default_factory=list[tuple[DeliveryLike, Outcome]])
    """Deliveries of updates that this worker has settled before: the server missed it, so tell it again."""
    markers: list[DeliveryLike] = field(default_factory=list[DeliveryLike])
    """Deliveries that are no updates, but stand for messages that are gone: there is nothing to do but to end them."""
    repairs: list[Repair] = field(default_factory=list[Repair])
    """Every repair that was made to a body."""
    malformed_traceparents: int = 0
    """How many updates have a `traceparent` header that cannot be read."""
    held: bool = False
    """Whether the lane is held after these deliveries."""
