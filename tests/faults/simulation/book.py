"""The oracle: it records what is published, stored, dead-lettered and acknowledged, and reports broken promises."""

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
    """The events of a run, line by line, and the promises that were broken.

    Args:
        max_attempts: how many attempts an update must have before it may be dead-lettered.
        in_company: whether leases may expire, so that a suspect is released and may be sent together with others.
    """

    def __init__(self, clock: Clock, max_attempts: int, *, in_company: bool) -> None:
        self.broken: list[str] = []
        self.lines: list[Line] = []
        self.updates: dict[int, Publish] = {}
        """The updates by their stream sequence."""
        self._clock = clock
        self._began_s = clock.now
        self._max_attempts = max_attempts
        self._in_company = in_company
        self._sequences: dict[str, int] = {}
        self._jobs: dict[str, list[int]] = defaultdict(list)
        self._rows: dict[tuple[str, str], int] = {}
        self._letters: dict[int, str] = {}
        self._deliveries: Counter[int] = Counter()
        self._ambiguous: set[int] = set()
        """Updates that can have reached the Facilitator, as far as a relay can know."""
        self._excused: set[int] = set()
        """Ambiguous updates to which the Facilitator said that it had them, and it had not: nobody can know that."""
        self._faults: Counter[str] = Counter()
        self._suspicions: Counter[str] = Counter()
        self._alone: Counter[str] = Counter()

    def note(self, who: str, what: str) -> None:
        self.lines.append(Line(self._clock.now - self._began_s, who, what))

    def complain(self, what: str) -> None:
        """Record that a promise was broken."""
        self.broken.append(what)
        self.note("ORACLE", what)

    def name(self, sequence: int) -> str:
        return self.updates[sequence].name

    def published(self, sequence: int, update: Publish) -> None:
        self.updates[sequence] = update
        self._sequences[update.name] = sequence
        self._jobs[update.job].append(sequence)
        self.note("producer", f"publishes {update.name}")

    # --- what a relay can know

    def delivered(self, sequence: int) -> None:
        """JetStream delivers it to a worker."""
        self._deliveries[sequence] += 1
        if self._deliveries[sequence] > 1:
            self._ambiguous.add(sequence)

    def consumers_made_anew(self) -> None:
        """An earlier consumer may have delivered any update that is stored by now."""
        self._ambiguous.update(self.updates)

    def may_have_arrived(self, update: Publish) -> None:
        """The connection broke before the update was answered."""
        self._ambiguous.add(self._sequences[update.name])

    def confused(self, update: Publish) -> None:
        """The Facilitator answered that it had it, and it had not."""
        sequence = self._sequences[update.name]
        self.refused(update, "job.integrity_error, wrongly,")
        earlier = (each for each in self._jobs[update.job] if each < sequence)
        equal = [each for each in earlier if self.updates[each].status == update.status]
        if sequence in self._ambiguous or any(
            each in self._excused or self._letters.get(each) == Reason.CONNECTION_DROPPED for each in equal
        ):
            self._excused.add(sequence)

    # --- what the Facilitator does

    def has(self, update: Publish) -> bool:
        """Whether the Facilitator has a row for it."""
        return (update.job, update.status) in self._rows

    def stored(self, update: Publish) -> None:
        """The status of a job arrived for the first time."""
        sequence = self._sequences[update.name]
        self._rows[update.job, update.status] = sequence
        self.note("Facilitator", f"stores {update.name}")
        self._check_turn(sequence, "stored")
        if sequence in self._letters:
            self.complain(f"{update.name} is stored, and a dead letter too")

    def refused(self, update: Publish, error: str) -> None:
        """The Facilitator answered it with an error."""
        self._faults[update.name] += 1
        self.note("Facilitator", f"answers {error} to {update.name}")

    def blamed(self, update: Publish, *, alone: bool) -> None:
        """A lost connection counts as an attempt of this update."""
        (self._faults if alone else self._suspicions)[update.name] += 1
        self._alone[update.name] += alone
        self.note("Facilitator", f"was lost {'alone' if alone else 'in company'} with {update.name}")

    # --- what JetStream does

    def buried(self, sequence: int, reason: str) -> None:
        """The dead-letter stream has stored it."""
        update = self.updates[sequence]
        self._letters[sequence] = reason
        self.note("JetStream", f"stores the dead letter of {update.name}: {reason}")
        self._check_turn(sequence, "buried")
        if not self._is_true(update, reason):
            self.complain(f"{update.name} is a dead letter, but {reason} is not true")
        # An update that drops the connection may or may not have been stored before.
        if self._rows.get((update.job, update.status)) == sequence and reason != Reason.CONNECTION_DROPPED:
            self.complain(f"{update.name} is a dead letter, and stored too")

    def acknowledged(self, sequence: int) -> None:
        if not self.has(self.updates[sequence]) and sequence not in self._excused:
            self.complain(f"{self.name(sequence)} is acknowledged, but not stored")

    def ended(self, sequence: int) -> None:
        if sequence not in self._letters:
            self.complain(f"{self.name(sequence)} is ended, but no dead letter")

    def missing(self) -> list[str]:
        """Updates that are neither stored nor dead letters."""
        return [self.name(sequence) for sequence in self.updates if not self._is_over(sequence)]

    def _is_over(self, sequence: int) -> bool:
        return sequence in self._letters or sequence in self._excused or self.has(self.updates[sequence])

    def _check_turn(self, sequence: int, how: str) -> None:
        """A job's updates must end in stream order: all earlier ones are stored or dead-lettered already."""
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
            # It may have been sent with others before the first drop; after that it must be sent alone, at least the
            # last time.
            known = update.temper is Temper.POISON and self._in_company
            return known or (self._alone[update.name] > 0 and self._faults[update.name] >= self._max_attempts - 1)
        own = self._faults[update.name] + self._suspicions[update.name]
        counted = (Reason.REFUSED, Reason.JOB_NOT_FOUND, Reason.UNEXPLAINED_DUPLICATE)
        return reason in counted and own >= self._max_attempts


class Log:
    """Replaces the loggers of the modules under test, so that their lines appear in the record of the run."""

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
