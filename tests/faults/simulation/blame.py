"""Which drops of its connection an update has to answer for: the rules of design.md, kept apart from core/session.py.

A drop is the fault of the first update without an answer, unless the Facilitator could not be reached afterwards: then
it was the world's. Once it is under suspicion it is sent alone, and nothing speaks for it any more.
"""

from collections.abc import Sequence

from simulation.book import Book
from simulation.schedule import Publish

_BLAMING_CODES = (None, 1009)
"""Of the close codes that the simulation uses; None is a drop without a word."""


class Line:
    """One connection of a worker after the other."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._suspect: Publish | None = None
        self._drop: str | None = None
        """How the suspect was found, until it is clear that the drop counts."""
        self._excusable = False

    def failed(self) -> None:
        """No connection could be made, or it ended before the relay was let in."""
        if self._excusable:
            self._drop = None

    def signed_in(self) -> None:
        """The relay is let in: the drop before was the suspect's fault."""
        if self._suspect is not None and self._drop is not None:
            self._book.blamed(self._suspect, alone=self._drop == "alone")
        self._drop = None

    def answered(self, update: Publish) -> None:
        if update is self._suspect:
            self._suspect = None

    def ended(self, code: int | None, unanswered: Sequence[Publish]) -> None:
        """A connection on which the relay had been let in is gone."""
        if code in _BLAMING_CODES and unanswered:
            self._excusable = unanswered[0] is not self._suspect
            self._suspect = unanswered[0]
            self._drop = "alone" if len(unanswered) == 1 else "in company"
