"""Which lost connections count as an update's own fault. The rules are written here without core/session.py's code.

The first unanswered update is the suspect of a drop. It is blamed if the next connection begins with a control, an
update that the worker was told to be stored, and the control is answered like a stored one. It is not blamed if the
Facilitator could not be reached in between; but a suspect that was sent alone is not excused by that.
"""

from collections.abc import Sequence

from simulation.book import Book
from simulation.schedule import Publish

_BLAMING_CODES = (None, 1009)
"""Of the close codes that the simulation uses, those after which an update is blamed. None: no close frame."""


class Line:
    """The successive connections of a worker to one URL."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._told: set[str] = set()
        """The updates that the worker was told to be stored."""
        self._suspect: Publish | None = None
        self._control: Publish | None = None
        """The control, while it is not answered."""
        self._drop: str | None = None
        """How the connection was lost with the suspect, until it is known whether this counts."""
        self._excusable = False
        self._begins = False
        """Nothing was sent on this connection yet, except to sign in."""

    def failed(self) -> None:
        """No connection could be made, or it ended before the authentication was answered."""
        if self._excusable:
            self._drop = None

    def signed_in(self) -> None:
        """The relay is authenticated."""
        self._begins = True

    def sends(self, update: Publish) -> bool:
        """The worker sends an update; returns whether it is the control."""
        begins, self._begins = self._begins, False
        if self._suspect is None or update is self._suspect:
            return False
        if begins and update.name in self._told:
            self._control = update
            return True
        self._suspect = self._drop = None  # without a control the suspect goes with the others
        return False

    def answered(self, update: Publish, error: str | None) -> None:
        """The worker is told the answer to an update."""
        stored = error in (None, "job.integrity_error")
        if stored:
            self._told.add(update.name)
        if update is self._control:
            self._control = None
            if stored and self._suspect is not None and self._drop is not None:
                self._book.blamed(self._suspect, alone=self._drop == "alone")
            self._drop = None
        elif update is self._suspect:
            self._suspect = None

    def ended(self, code: int | None, unanswered: Sequence[Publish]) -> None:
        """A connection on which the relay was authenticated has ended."""
        if self._control is not None:
            self._control = self._drop = None  # not even a stored update was answered
        elif code in _BLAMING_CODES and unanswered:
            self._excusable = unanswered[0] is not self._suspect
            self._suspect = unanswered[0]
            self._drop = "alone" if len(unanswered) == 1 else "in company"
