"""What the simulated Facilitator can be made to do wrong, and when.

A `Fault` says how the handling of one message differs from the rules. An `Injection` says which messages or new
connections it applies to, counted from now on, and can be lifted. All failures of the simulator are made of these two.
"""

import asyncio
import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Self

from relay.local.ledger import (
    DROPPED,
    NOTHING,
    Answer,
    Authentication,
    Conversation,
    Heartbeat,
    MachineSpecs,
    Message,
    StatusUpdate,
)
from relay.timing.waiting import set_within


class Moment(Enum):
    """What can happen on a connection. A fault applies to some of these."""

    CONNECT = auto()
    """The upgrade has succeeded, and no message was sent yet."""
    AUTHENTICATION = auto()
    HEARTBEAT = auto()
    UPDATE = auto()
    INVALID = auto()
    """A frame that is not a valid message."""


EVERY_MESSAGE: Final = frozenset(Moment) - {Moment.CONNECT}
UNTIL_LIFTED: Final = math.inf


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done with one message, in this order. The defaults change nothing.

    hold_s: seconds to wait before anything is stored; UNTIL_LIFTED waits for `Injection.lift`.
    store: False discards the message: nothing is stored, and the rules give no answer.
    inserts: False lets the INSERT of an update fail: it is not stored and drops the connection, a repeat as well.
    late_s: seconds to wait between storing and answering.
    answers: how often the answer is sent.
    reply: text to send instead of the answer that the rules give.
    end_code: close code to end the connection with, or DROPPED; with None the rules decide.
    """

    hold_s: float = 0.0
    store: bool = True
    inserts: bool = True
    late_s: float = 0.0
    answers: int = 1
    reply: str | None = None
    end_code: int | None = None

    def answer(self, conversation: Conversation, message: Message | Answer, arrived_s: float) -> Answer:
        """Apply the rules, which may store an update, and return their answer as this fault changes it.

        The caller waits `hold_s` and `late_s`, and sends the reply `answers` times.
        """
        ruled = conversation.answer(message, arrived_s, inserts=self.inserts) if self.store else NOTHING
        kind, reply = (ruled.kind, ruled.reply) if self.reply is None else ("injected", self.reply)
        end_code = ruled.end_code if self.end_code is None else self.end_code
        return Answer(kind, reply if self.answers else None, end_code)


NO_FAULT: Final = Fault()
DROP_BEFORE_STORING: Final = Fault(store=False, end_code=DROPPED)
DROP_AFTER_STORING: Final = Fault(answers=0, end_code=DROPPED)
INSERTS_FAIL: Final = Fault(inserts=False)
NEVER_ANSWER: Final = Fault(answers=0)
ANSWER_TWICE: Final = Fault(answers=2)


def stall(seconds: float = UNTIL_LIFTED) -> Fault:
    """Stop before storing. Later messages of the connection wait; when many wait, its pongs wait too."""
    return Fault(hold_s=seconds)


def answer_late(seconds: float) -> Fault:
    """Store at once, and answer after `seconds`."""
    return Fault(late_s=seconds)


def close_with(code: int) -> Fault:
    """Close the connection with `code`, and neither store nor answer."""
    return Fault(store=False, end_code=code)


def refuse(error_type: str, msg: str = "Refused on purpose.") -> Fault:
    """Answer with an error of any type, and store nothing."""
    reply = {"status": "error", "errors": [{"msg": msg, "type": error_type, "help": ""}]}
    return Fault(store=False, reply=json.dumps(reply))


INTEGRITY_ERRORS: Final = refuse("job.integrity_error", "null value in column violates not-null constraint")
"""So answers the real server while a migration runs, or while its id sequence lies behind: nothing is stored."""


class Injection:
    """A fault, and what it applies to. Used as a context manager, it is lifted at the end of the block.

    It counts the moments in `at` of job `uuid` with `status` (None: any). Beginning with the `nth`, it applies to
    `times` of them, or to all if `times` is None. `hits` counts how often it has applied.
    """

    def __init__(
        self,
        fault: Fault,
        at: Collection[Moment] = (),
        *,
        uuid: str | None = None,
        status: str | None = None,
        nth: int = 1,
        times: int | None = 1,
    ) -> None:
        self.fault = fault
        self.hits = 0
        self._at = at
        self._uuid = uuid
        self._status = status
        self._to_spare = nth - 1
        self._times = math.inf if times is None else times
        self._lifted = asyncio.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.lift()

    @property
    def spent(self) -> bool:
        """Whether it will never apply again."""
        return self._lifted.is_set() or self.hits >= self._times

    def strikes(self, moment: Moment, uuid: str | None, status: str | None) -> bool:
        """Count this moment if it matches; returns whether the fault applies to it."""
        if self.spent or moment not in self._at or self._uuid not in {None, uuid} or self._status not in {None, status}:
            return False
        if self._to_spare > 0:
            self._to_spare -= 1
            return False
        self.hits += 1
        return True

    def lift(self) -> None:
        """End the fault: it no longer applies, and messages that it holds go on. Lifting twice is harmless."""
        self._lifted.set()

    async def hold(self, seconds: float) -> None:
        """Wait for `seconds`, or until the fault is lifted. Cancelling is safe."""
        if seconds > 0:
            await set_within(self._lifted, None if math.isinf(seconds) else seconds)


NO_INJECTION: Final = Injection(NO_FAULT)
"""Stands for no fault: the rules apply unchanged."""


class FaultPlan:
    """The injections that may still apply."""

    def __init__(self) -> None:
        self._waiting: list[Injection] = []

    def add(self, injection: Injection) -> Injection:
        self._waiting = [waiting for waiting in self._waiting if not waiting.spent]
        self._waiting.append(injection)
        return injection

    def on_connect(self) -> Injection:
        return self._strike(Moment.CONNECT)

    def on_message(self, message: Message | Answer) -> Injection:
        """The injection that applies to a message. An Answer stands for a frame that is not a valid message."""
        if isinstance(message, StatusUpdate):
            return self._strike(Moment.UPDATE, message.job, message.status)
        if isinstance(message, Authentication):
            return self._strike(Moment.AUTHENTICATION)
        if isinstance(message, MachineSpecs):
            return NO_INJECTION
        return self._strike(Moment.HEARTBEAT if isinstance(message, Heartbeat) else Moment.INVALID)

    def _strike(self, moment: Moment, uuid: str | None = None, status: str | None = None) -> Injection:
        """The oldest injection that applies to this moment, or NO_INJECTION. Every injection counts the moment."""
        struck = [injection for injection in self._waiting if injection.strikes(moment, uuid, status)]
        return struck[0] if struck else NO_INJECTION
