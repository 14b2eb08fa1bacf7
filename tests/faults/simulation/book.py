"""The oracle: it sees everything that is published, stored, buried and acknowledged, and knows what must never be."""

import sys
from collections import Counter, defaultdict
from dataclasses import dataclass

from relay.contract.subjects import Reason
from simulation.clock import Clock
from simulation.schedule import Publish, Temper


@dataclass(frozen=True, slots=True)
class Line:
    """One event of a run."""

    at_s: float
    who: str
    what: str

    def __str__(self) -> str:
        return f"{self.at_s:9.4f}  {self.who:<12} {self.what}"


class Book:
    """What happened, line by line, and which promises were broken by it.

    Args:
        max_attempts: how many faults of its own an update must have on its account before it may be given up.
        in_company: whether leases may lapse, so that a suspect is let go and may be sent in company once more.
    """

    def __init__(self, clock: Clock, max_attempts: int, *, in_company: bool) -> None:
        self.broken: list[str] = []
        self.lines: list[Line] = []
        self.updates: dict[int, Publish] = {}
        """By stream sequence."""
        self._clock = clock
        self._began_s = clock.now
        self._max_attempts = max_attempts
        self._in_company = in_company
        self._sequences: dict[str, int] = {}
        self._jobs: dict[str, list[int]] = defaultdict(list)
        self._rows: dict[tuple[str, str], int] = {}
        self._letters: dict[int, str] = {}
        self._faults: Counter[str] = Counter()
        self._suspicions: Counter[str] = Counter()
        self._alone: Counter[str] = Counter()

    def note(self, who: str, what: str) -> None:
        self.lines.append(Line(self._clock.now - self._began_s, who, what))

    def complain(self, what: str) -> None:
        """A promise is broken."""
        self.broken.append(what)
        self.note("ORACLE", what)

    def name(self, sequence: int) -> str:
        return self.updates[sequence].name

    def published(self, sequence: int, update: Publish) -> None:
        self.updates[sequence] = update
        self._sequences[update.name] = sequence
        self._jobs[update.job].append(sequence)
        self.note("producer", f"publishes {update.name}")

    # --- what the Facilitator does

    def has(self, update: Publish) -> bool:
        """Whether there is a row for it."""
        return (update.job, update.status) in self._rows

    def stored(self, update: Publish) -> None:
        """The first arrival of a job's status."""
        sequence = self._sequences[update.name]
        self._rows[update.job, update.status] = sequence
        self.note("Facilitator", f"stores {update.name}")
        self._check_turn(sequence, "stored")
        if sequence in self._letters:
            self.complain(f"{update.name} is stored, and a dead letter too")

    def refused(self, update: Publish, error: str) -> None:
        """It was answered with an error."""
        self._faults[update.name] += 1
        self.note("Facilitator", f"answers {error} to {update.name}")

    def blamed(self, update: Publish, *, alone: bool) -> None:
        """It has to answer for a drop of the connection."""
        (self._faults if alone else self._suspicions)[update.name] += 1
        self._alone[update.name] += alone
        self.note("Facilitator", f"was lost {'alone' if alone else 'in company'} with {update.name}")

    # --- what JetStream does

    def buried(self, sequence: int, reason: str) -> None:
        """The dead-letter stream has it."""
        update = self.updates[sequence]
        self._letters[sequence] = reason
        self.note("JetStream", f"stores the dead letter of {update.name}: {reason}")
        self._check_turn(sequence, "buried")
        if not self._is_true(update, reason):
            self.complain(f"{update.name} is a dead letter, but {reason} is not true")
        # Whether what drops the connection is stored first cannot be known.
        if self._rows.get((update.job, update.status)) == sequence and reason != Reason.CONNECTION_DROPPED:
            self.complain(f"{update.name} is a dead letter, and stored too")

    def acknowledged(self, sequence: int) -> None:
        if not self.has(self.updates[sequence]):
            self.complain(f"{self.name(sequence)} is acknowledged, but not stored")

    def ended(self, sequence: int) -> None:
        if sequence not in self._letters:
            self.complain(f"{self.name(sequence)} is ended, but no dead letter")

    def missing(self) -> list[str]:
        """Updates that are neither stored nor dead letters."""
        return [self.name(sequence) for sequence in self.updates if not self._is_over(sequence)]

    def _is_over(self, sequence: int) -> bool:
        return sequence in self._letters or self.has(self.updates[sequence])

    def _check_turn(self, sequence: int, how: str) -> None:
        """A job's updates arrive in stream order: whatever came before has its fate already."""
        earlier = self._jobs[self.updates[sequence].job]
        early = [self.name(each) for each in earlier if each < sequence and not self._is_over(each)]
        if early:
            self.complain(f"{self.name(sequence)} is {how} before {', '.join(early)}")

    def _is_true(self, update: Publish, reason: str) -> bool:
        if update.temper is Temper.GARBAGE:
            return reason == Reason.INVALID_JSON
        if update.temper is Temper.REFUSED and reason == Reason.REFUSED:
            return True
        if reason == Reason.CONNECTION_DROPPED:
            # The first drop may have found it in company; from then on it must be alone, and the last time for sure.
            known = update.temper is Temper.POISON and self._in_company
            return known or (self._alone[update.name] > 0 and self._faults[update.name] >= self._max_attempts - 1)
        own = self._faults[update.name] + self._suspicions[update.name]
        return reason in (Reason.REFUSED, Reason.JOB_NOT_FOUND) and own >= self._max_attempts


class Log:
    """Stands for the loggers of the modules under test: their lines belong to the story."""

    def __init__(self, book: Book, clock: Clock) -> None:
        self._book = book
        self._clock = clock

    def _note(self, event: str, **fields: object) -> None:
        process = self._clock.running
        told = "".join(f" {name}={value}" for name, value in fields.items() if name != "error")
        if (error := sys.exception()) is not None:
            told += f" ({type(error).__name__})"
        self._book.note(process.name if process else "?", f"logs: {event}{told}")

    debug = info = warning = error = exception = _note
