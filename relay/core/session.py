"""One conversation with the Facilitator: what may be sent, which update a reply answers, which one a drop is blamed on.

Replies carry no id. They can be matched to updates only by order, on one connection. So the session keeps what it sent
first-in-first-out, and breaks the connection as soon as the pairing cannot be trusted any more.

    CLOSED ──opened──► AUTHENTICATING ──success──► OPEN ◄──answered, or released──┐
      ▲                      │                                                    │
      │                      └──success, with a suspect──► CONTROLLING ────────► PROBING
      │                                                        control answered
      └──────────────────── closed ── BROKEN ◄── overdue, unmatched or unreadable

**The suspect.** Some updates make the Facilitator drop the connection without an answer. When an authenticated
connection drops, the first unanswered update is the suspect. After the reconnect it is sent alone: if the connection
drops again, this update did it, or the Facilitator cannot store anything.

**The control** (control.py) tells which. It is sent after the reconnect, alone, before the suspect. If it is answered
as a repeat of a stored update is, the Facilitator is sound: the drop before counts as an attempt of the suspect, and
the suspect may be sent. So an update that is dead-lettered for drops was sent alone between two controls that passed.
If the connection ends before that answer, the world is at fault, and the drop before does not count. Without a control
it does not count either; then the suspect is released, and goes again after other updates, so that one of them can
become the control. Until an update is answered, they are sent one at a time, because perhaps all are in vain.

A drop does not count, either, if the connection was shared and the next attempt to connect fails: the Facilitator was
down.
"""

import enum
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from operator import attrgetter
from typing import Final, Generic, TypeVar

from relay.contract.facilitator_messages import HEARTBEAT, Push, Reply, decode_incoming
from relay.core.control import Control, shows_storing

T = TypeVar("T")

HEARTBEAT_INTERVAL_S: Final = 60.0
"""After 3 minutes without one the Facilitator gives a validator no jobs, after 10 it closes the connection."""
WINDOW_BYTES: Final = 8 * 1024 * 1024
"""How many bytes may be unanswered. The Facilitator handles some 3.3 MB a second, one update after another: with the
largest update on top, the last answer comes after 8 s, far from the reply timeout."""
AT_ONCE_BYTES: Final = 1024 * 1024
"""When as many bytes are to be written, no more are taken: what the network does not take yet waits as it is."""
_BLAMING_CODES: Final = frozenset({1003, 1007, 1009})
"""Close codes that complain about a message: its type, encoding or size cannot be accepted."""
_ABOUT_AUTHENTICATION: Final = "auth."
_NOT_KNOWN_HERE: Final = "auth.not_authenticated"
_EMPTY_MESSAGE: Final = "{}"
_type_of = attrgetter("type")


class Phase(enum.Enum):
    """Where the conversation is; the drawing above shows how it moves."""

    CLOSED = enum.auto()
    AUTHENTICATING = enum.auto()
    CONTROLLING = enum.auto()  # the control is sent, and nothing else may be
    PROBING = enum.auto()  # only the suspect may be sent
    OPEN = enum.auto()
    BROKEN = enum.auto()  # to be closed by us: the replies cannot be paired any more


_SIGNED_IN: Final = frozenset({Phase.CONTROLLING, Phase.PROBING, Phase.OPEN})
_WAITED_FOR: Final = {Phase.AUTHENTICATING: "the authentication", Phase.CONTROLLING: "a repeat of an earlier update"}


@dataclass(frozen=True, slots=True)
class Suspicion(Generic[T]):
    """There is a suspect, and the control was answered, or there is none. The session waits for a decision.

    That is `probe` or `clear_suspect`.
    """

    suspect: T
    blamed: bool = False
    """The connection dropped at the suspect, which counts as an attempt if `sound`."""
    alone: bool = False
    """Nothing else was on the connection when it dropped."""
    sound: bool = False
    """The control has shown that the Facilitator can store updates."""


@dataclass(frozen=True, slots=True)
class Opened(Generic[T]):
    """Authenticated. Without a suspect, the session is open for all updates."""

    control: bytes | None = None
    """There is a suspect: the control, to be sent now. Its answer makes a Suspicion."""
    suspicion: Suspicion[T] | None = None
    """There is a suspect and no control."""


@dataclass(frozen=True, slots=True)
class SignInRefused:
    """The Facilitator does not accept the sign-in: a fault of the configuration, not of any update."""

    error: str


@dataclass(slots=True)  # made for each update, and a frozen one takes three times as long to make
class Answered(Generic[T]):
    """`round_trip_s` is the time from sending the update to its reply."""

    update: T
    reply: Reply
    round_trip_s: float


@dataclass(frozen=True, slots=True)
class Pushed:
    """A message that the Facilitator sent by itself."""

    push: Push
    message: str | bytes


@dataclass(frozen=True, slots=True)
class Broken:
    """The connection must be closed; `why` says the reason in words."""

    why: str


@dataclass(frozen=True, slots=True)
class Unpaired:
    """A message that was on its way when the connection was given up: it cannot be matched to an update."""


@dataclass(frozen=True, slots=True)
class Lost(Generic[T]):
    """The connection is gone. `unanswered` are in the order in which they were sent.

    The suspect is not among them: the session keeps it for the next connection.
    """

    unanswered: tuple[T, ...]
    suspect: T | None
    control_unanswered: bool = False
    """The control was out, and nothing else: so no update was at fault."""
    dropped_alone: bool = False
    """The connection dropped at the suspect, alone, after a control had passed on it: the Facilitator is not away."""


Event = Opened[T] | Suspicion[T] | SignInRefused | Answered[T] | Pushed | Broken | Unpaired


class Session(Generic[T]):
    """The conversation, without its I/O. `T` is the type of an update; the session never looks into it.

    Args:
        window: how many updates may be unanswered at a time.
        window_bytes: how many bytes of them; the last one sent may exceed this.
        size_of: how many bytes of memory an update holds.
        reply_timeout_s: how long an answer may take.
        authentication: the first message on every connection; None where a proxy signs in for us. Then an empty object
            is sent first, which the Facilitator answers with an error. During an outage the first message makes it
            drop the connection, and that must not be an update.
    """

    def __init__(
        self,
        *,
        window: int,
        reply_timeout_s: float,
        authentication: str | None,
        size_of: Callable[[T], int],
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        self.phase = Phase.CLOSED
        self.control = Control()
        """To be told of every update that is acknowledged."""
        self.unanswered_bytes = 0
        """How many bytes wait for their answers."""
        self._window = window
        self._limit = window  # of unanswered updates now
        self._window_bytes = window_bytes
        self._size_of = size_of
        self._reply_timeout_s = reply_timeout_s
        self._authentication = authentication
        self._unanswered: deque[tuple[T, float]] = deque()
        self._asked_s = 0.0  # when the authentication was sent, or the control
        self._heartbeat_due_s = 0.0
        self._suspect: T | None = None
        self._suspicion: Suspicion[T] | None = None  # while the control is out
        self._blamed = False
        self._may_be_outage = False

    def __repr__(self) -> str:
        suspect = ", with a suspect" if self._suspect is not None else ""
        return f"<Session {self.phase.name}: {len(self._unanswered)} of {self._window} unanswered{suspect}>"

    @property
    def unanswered(self) -> int:
        """How many updates wait for their answer."""
        return len(self._unanswered)

    def waiting_s(self, now_s: float) -> float:
        """How long the first unanswered update has waited for its answer; 0 without one."""
        return now_s - self._unanswered[0][1] if self._unanswered else 0.0

    def opened(self, now_s: float) -> str:
        """The connection is made: returns the message to send first."""
        assert self.phase is Phase.CLOSED, "one connection at a time"
        self._asked_s = now_s
        self._heartbeat_due_s = now_s  # at once: jobs are routed only to validators that send heartbeats
        self.phase = Phase.AUTHENTICATING
        return self._authentication or _EMPTY_MESSAGE

    def fill(self, take: Callable[[int, int, float], Sequence[T]], now_s: float) -> Sequence[T]:
        """Take updates with `take(room, room_bytes, now_s)` if there is room; the caller sends them, in this order.

        If they have AT_ONCE_BYTES or more, there may be others.
        """
        room, room_bytes = self._limit - len(self._unanswered), self._window_bytes - self.unanswered_bytes
        if self.phase is not Phase.OPEN or not room or room_bytes <= 0:
            return ()
        updates = take(room, min(room_bytes, AT_ONCE_BYTES), now_s)
        self._unanswered.extend(zip(updates, repeat(now_s)))
        self.unanswered_bytes += sum(map(self._size_of, updates))
        return updates

    def probe(self, now_s: float) -> None:
        """The suspect is sent, alone."""
        assert self.phase is Phase.PROBING, "there is no suspect to probe"
        assert self._suspect is not None, "there is no suspect to probe"
        assert not self._unanswered, "the suspect is out already"
        self._unanswered.append((self._suspect, now_s))
        self.unanswered_bytes = self._size_of(self._suspect)

    def clear_suspect(self) -> None:
        """There is no suspect any more: it was answered, or its owner took it back."""
        self._suspect = None
        if self.phase is Phase.PROBING:
            self.phase = Phase.OPEN

    def received(self, message: str | bytes, now_s: float) -> Event[T]:
        """What a message from the Facilitator means."""
        incoming = decode_incoming(message)
        if isinstance(incoming, Push):
            return Pushed(incoming, message)
        if self.phase is Phase.BROKEN:
            return Unpaired()
        if isinstance(incoming, Reply):
            if self.phase is Phase.AUTHENTICATING:
                return self._authenticated(now_s) if self._accepts(incoming) else self._refused(incoming)
            known = not (incoming.errors and _NOT_KNOWN_HERE in map(_type_of, incoming.errors))
            if self._unanswered and known:
                update, sent_s = self._unanswered.popleft()
                self.unanswered_bytes -= self._size_of(update)
                self._limit = self._window
                if self.phase is Phase.PROBING:
                    self.clear_suspect()
                return Answered(update, incoming, now_s - sent_s)
            if self._suspicion is not None and known:
                return self._controlled(self._suspicion, incoming)
        asked = bool(self._unanswered) or self._suspicion is not None
        return self._broken(_why_broken(incoming, asked=asked))

    def heartbeat(self, now_s: float) -> str | None:
        """The heartbeat to send now, if one is due."""
        if self.phase not in _SIGNED_IN or now_s < self._heartbeat_due_s:
            return None
        self._heartbeat_due_s = now_s + HEARTBEAT_INTERVAL_S
        return HEARTBEAT

    def overdue(self, now_s: float) -> Broken | None:
        """Whether an answer has been missing for too long."""
        if now_s < self._reply_deadline(now_s):
            return None
        waited_for = _WAITED_FOR.get(self.phase, "an update")
        return self._broken(f"no answer to {waited_for} within {self._reply_timeout_s:g} s")

    def deadline(self, now_s: float) -> float:
        """When to ask `heartbeat` and `overdue` next; nothing that is sent later can be due earlier."""
        deadline = self._reply_deadline(now_s)
        if self.phase in _SIGNED_IN:
            deadline = min(deadline, self._heartbeat_due_s)
        elif self.phase is Phase.AUTHENTICATING:  # the first heartbeat follows the sign-in at once, the second then
            deadline = min(deadline, self._asked_s + HEARTBEAT_INTERVAL_S)
        return deadline

    def closed(self, code: int | None) -> Lost[T]:
        """The connection is gone, with the close code received, or None if there was no close frame."""
        updates = [update for update, _ in self._unanswered]
        self._unanswered.clear()
        self.unanswered_bytes = 0
        dropped = bool(updates) and _blames(code)
        dropped_alone = dropped and self.phase is Phase.PROBING
        match self.phase:
            case Phase.AUTHENTICATING:
                self.failed_to_open()
            case Phase.OPEN if dropped:
                self._suspect = updates.pop(0)
                self._blamed, self._may_be_outage = True, True
            case Phase.PROBING if dropped:
                # It was alone on the connection, so it stays blamed even if the Facilitator is down afterwards.
                self._blamed, self._may_be_outage = True, False
            case _:
                pass
        if self._suspect in updates:
            updates.clear()
        lost = Lost(tuple(updates), self._suspect, self._suspicion is not None, dropped_alone)
        self._suspicion = None
        self.phase = Phase.CLOSED
        return lost

    def failed_to_open(self) -> None:
        """No connection could be made, or it broke before the sign-in was accepted: the Facilitator is down."""
        if self._may_be_outage:
            self._blamed = False

    def _accepts(self, reply: Reply) -> bool:
        if self._authentication is not None:
            return reply.status == "success"
        return not any(error.type.startswith(_ABOUT_AUTHENTICATION) for error in reply.errors)

    def _authenticated(self, now_s: float) -> Opened[T]:
        if self._suspect is None:
            self.phase = Phase.OPEN
            return Opened()
        suspicion = Suspicion(self._suspect, self._blamed, not self._may_be_outage)
        self._blamed = False  # it counts now, if the control passes, or never
        control = self.control.use()
        if control is None:
            self._limit = 1
            self.phase = Phase.PROBING
            return Opened(suspicion=suspicion)
        self.phase = Phase.CONTROLLING
        self._suspicion, self._asked_s = suspicion, now_s
        return Opened(control)

    def _controlled(self, suspicion: Suspicion[T], reply: Reply) -> Suspicion[T]:
        self._suspicion = None
        self.phase = Phase.PROBING
        sound = shows_storing(reply)
        if sound:
            self.control.passed()
        else:
            self._limit = 1
        return replace(suspicion, sound=sound)

    def _refused(self, reply: Reply) -> SignInRefused:
        self.failed_to_open()
        self.phase = Phase.BROKEN
        return SignInRefused(reply.complaint)

    def _broken(self, why: str) -> Broken:
        if self.phase is Phase.AUTHENTICATING:
            self.failed_to_open()
        self.phase = Phase.BROKEN
        return Broken(why)

    def _reply_deadline(self, now_s: float) -> float:
        if self.phase in (Phase.AUTHENTICATING, Phase.CONTROLLING):
            return self._asked_s + self._reply_timeout_s
        waiting = self._unanswered and self.phase is not Phase.BROKEN
        return (self._unanswered[0][1] if waiting else now_s) + self._reply_timeout_s


def _why_broken(incoming: Reply | None, *, asked: bool) -> str:
    if incoming is None:
        return "the Facilitator sent a message that is neither a reply nor a push"
    if not asked:
        return "the Facilitator answered something that was not asked"
    return "the Facilitator has forgotten that we are authenticated"


def _blames(code: int | None) -> bool:
    return code is None or code in _BLAMING_CODES
