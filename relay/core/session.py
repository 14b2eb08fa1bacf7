"""One conversation with the Facilitator: what may be sent, whom a reply answers, whom a break is to be blamed on.

Replies carry no id. They can be matched to updates only by order, on one connection, so the session keeps what it
sent first-in-first-out, and breaks the connection as soon as the pairing cannot be trusted any more.

    CLOSED ──opened──► AUTHENTICATING ──success──► OPEN ◄──answered── PROBING
      ▲                      │                      │                    ▲
      │                      └──success, with a suspect left ────────────┘
      └──────────────────────────── closed ── BROKEN ◄── overdue, unmatched or unreadable

**The suspect.** Some updates make the Facilitator drop the connection without a word. When an authenticated
connection drops, the first unanswered update is the suspect. After the reconnect it is sent alone: if it drops the
connection again, it was the one. The drop counts as an attempt of the suspect, unless the world turned out to be
down: a reconnect that failed speaks for the update, a drop while it was alone on probation does not.
"""

import enum
from collections import deque
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from relay.contract.wire import HEARTBEAT, Push, Reply, decode_incoming

T = TypeVar("T")

HEARTBEAT_INTERVAL_S: Final = 60.0
"""The Facilitator gives no jobs to a validator after 3 minutes without one, and hangs up after 10."""
_BLAMING_CODES: Final = frozenset({1003, 1007, 1009})
"""Close codes that complain of a message: a type, an encoding or a size that cannot be accepted."""
_ABOUT_AUTHENTICATION: Final = "auth."
_NOT_KNOWN_HERE: Final = "auth.not_authenticated"
_PROBE: Final = "{}"


class Phase(enum.Enum):
    CLOSED = enum.auto()
    AUTHENTICATING = enum.auto()
    PROBING = enum.auto()  # only the suspect may be sent
    OPEN = enum.auto()
    BROKEN = enum.auto()  # to be closed by us: the replies cannot be paired any more


@dataclass(frozen=True, slots=True)
class Opened(Generic[T]):
    """Authenticated. With a suspect, the session waits for `probe` or `absolve`."""

    suspect: T | None = None
    blamed: bool = False
    """The drop counts as an attempt of the suspect's."""
    alone: bool = False
    """Nothing else was on the connection when it dropped: the suspect was the one."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The Facilitator does not let us in: a fault of the configuration, not of any update."""

    error: str


@dataclass(slots=True)  # made for each update, and a frozen one takes three times as long to make
class Answered(Generic[T]):
    ticket: T
    reply: Reply
    round_trip_s: float


@dataclass(frozen=True, slots=True)
class Pushed:
    """Something that the Facilitator sent of its own accord."""

    push: Push
    message: str | bytes


@dataclass(frozen=True, slots=True)
class Broken:
    """The connection must be closed, because of `why`."""

    why: str


@dataclass(frozen=True, slots=True)
class Unpaired:
    """A message that was still on its way when the connection was given up; nobody can say whom it answers."""


@dataclass(frozen=True, slots=True)
class Lost(Generic[T]):
    """The connection is gone; these were not answered, in the order in which they were sent.

    The suspect is not among them: the session keeps it for the next connection.
    """

    unanswered: tuple[T, ...]
    suspect: T | None


Event = Opened[T] | Refused | Answered[T] | Pushed | Broken | Unpaired


class Session(Generic[T]):
    """`T` is the type of the ticket that stands for an update; the session never looks into it.

    Args:
        window: how many updates may be unanswered at a time.
        reply_timeout_s: how long an answer may take.
        authentication: the first message on every connection; None where a proxy has signed in for us. Then the
            session only knocks: an empty object is answered with an error by whoever is there to answer. During an
            outage the first message of a connection drops it, and that must not be an update.
    """

    def __init__(self, *, window: int, reply_timeout_s: float, authentication: str | None) -> None:
        self.phase = Phase.CLOSED
        self._window = window
        self._reply_timeout_s = reply_timeout_s
        self._authentication = authentication
        self._unanswered: deque[tuple[T, float]] = deque()
        self._began_s = 0.0
        self._heartbeat_due_s = 0.0
        self._suspect: T | None = None
        self._blamed = False
        self._excusable = False

    def __repr__(self) -> str:
        suspect = ", with a suspect" if self._suspect is not None else ""
        return f"<Session {self.phase.name}: {len(self._unanswered)} of {self._window} unanswered{suspect}>"

    @property
    def room(self) -> int:
        """How many updates may be sent now."""
        return self._window - len(self._unanswered) if self.phase is Phase.OPEN else 0

    @property
    def unanswered(self) -> int:
        return len(self._unanswered)

    def opened(self, now: float) -> str:
        """The connection stands: returns the message to send first."""
        assert self.phase is Phase.CLOSED, "one connection at a time"
        self._began_s = now
        self._heartbeat_due_s = (
            now  # as soon as it is open: jobs are routed only to validators that show a sign of life
        )
        self.phase = Phase.AUTHENTICATING
        return self._authentication or _PROBE

    def sent(self, ticket: T, now: float) -> None:
        """An update goes out; call only while there is `room`."""
        assert self.room > 0, "the window is full"
        self._unanswered.append((ticket, now))

    def probe(self, now: float) -> None:
        """The suspect goes out, alone."""
        assert self.phase is Phase.PROBING, "there is no suspect to probe"
        assert self._suspect is not None, "there is no suspect to probe"
        assert not self._unanswered, "the suspect is out already"
        self._unanswered.append((self._suspect, now))

    def absolve(self) -> None:
        """There is no suspect any more: it was dealt with otherwise."""
        self._suspect = None
        if self.phase is Phase.PROBING:
            self.phase = Phase.OPEN

    def received(self, message: str | bytes, now: float) -> Event[T]:
        """What a message from the Facilitator means."""
        match decode_incoming(message):
            case Push() as push:
                return Pushed(push, message)
            case _ if self.phase is Phase.BROKEN:
                return Unpaired()
            case Reply() as reply if self.phase is Phase.AUTHENTICATING:
                return self._authenticated() if self._lets_in(reply) else self._refused(reply)
            case Reply() as reply if self._unanswered:
                return self._answered(reply, now)
            case Reply():
                return self._broken("the Facilitator answered something that was not asked")
            case _:
                return self._broken("the Facilitator sent a message that is neither a reply nor a push")

    def heartbeat(self, now: float) -> str | None:
        """The heartbeat to send now, if one is due."""
        if self.phase not in (Phase.OPEN, Phase.PROBING) or now < self._heartbeat_due_s:
            return None
        self._heartbeat_due_s = now + HEARTBEAT_INTERVAL_S
        return HEARTBEAT

    def overdue(self, now: float) -> Broken | None:
        """Whether an answer has been missing for too long."""
        if now < self._reply_deadline(now):
            return None
        waited_for = "the authentication" if self.phase is Phase.AUTHENTICATING else "an update"
        return self._broken(f"no answer to {waited_for} within {self._reply_timeout_s:g} s")

    def deadline(self, now: float) -> float:
        """When to ask `heartbeat` and `overdue` next; nothing that is sent later can be due earlier."""
        deadline = self._reply_deadline(now)
        if self.phase in (Phase.OPEN, Phase.PROBING):
            deadline = min(deadline, self._heartbeat_due_s)
        elif self.phase is Phase.AUTHENTICATING:  # whoever is let in sends the first at once; the second comes then
            deadline = min(deadline, self._began_s + HEARTBEAT_INTERVAL_S)
        return deadline

    def closed(self, code: int | None) -> Lost[T]:
        """The connection is gone, with the close code received, or None if there was no close frame."""
        tickets = [ticket for ticket, _ in self._unanswered]
        self._unanswered.clear()
        dropped = bool(tickets) and _blames(code)
        match self.phase:
            case Phase.AUTHENTICATING:
                self.failed_to_open()
            case Phase.OPEN if dropped:
                self._suspect = tickets.pop(0)
                self._blamed, self._excusable = True, True
            case Phase.PROBING if dropped:
                # It was alone on the connection: no outage afterwards speaks for it.
                self._blamed, self._excusable = True, False
            case _:
                pass
        if self._suspect in tickets:
            tickets.clear()
        self.phase = Phase.CLOSED
        return Lost(tuple(tickets), self._suspect)

    def failed_to_open(self) -> None:
        """No connection could be made, or it broke before we were let in: the world is down."""
        if self._excusable:
            self._blamed = False

    def _lets_in(self, reply: Reply) -> bool:
        if self._authentication is not None:
            return reply.status == "success"
        return not any(error.type.startswith(_ABOUT_AUTHENTICATION) for error in reply.errors)

    def _authenticated(self) -> Opened[T]:
        if self._suspect is None:
            self.phase = Phase.OPEN
            return Opened()
        self.phase = Phase.PROBING
        opened = Opened(self._suspect, self._blamed, not self._excusable)
        self._blamed = False  # whoever gets this counts it
        return opened

    def _refused(self, reply: Reply) -> Refused:
        self.failed_to_open()
        self.phase = Phase.BROKEN
        return Refused(reply.complaint)

    def _answered(self, reply: Reply, now: float) -> Event[T]:
        if reply.errors and any(error.type == _NOT_KNOWN_HERE for error in reply.errors):
            return self._broken("the Facilitator has forgotten that we are authenticated")
        ticket, sent_s = self._unanswered.popleft()
        if self.phase is Phase.PROBING:
            self.absolve()
        return Answered(ticket, reply, now - sent_s)

    def _broken(self, why: str) -> Broken:
        if self.phase is Phase.AUTHENTICATING:
            self.failed_to_open()
        self.phase = Phase.BROKEN
        return Broken(why)

    def _reply_deadline(self, now: float) -> float:
        if self.phase is Phase.AUTHENTICATING:
            return self._began_s + self._reply_timeout_s
        waiting = self._unanswered and self.phase is not Phase.BROKEN
        return (self._unanswered[0][1] if waiting else now) + self._reply_timeout_s


def _blames(code: int | None) -> bool:
    return code is None or code in _BLAMING_CODES
