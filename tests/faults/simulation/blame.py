"""Which lost connections count as an update's own fault. The rules are written here without core/session.py's code.

The first unanswered update is blamed for a drop, unless the Facilitator could not be reached afterwards: then the
drop was not its fault. From then on the suspect is sent alone, and a failed reconnect does not excuse it any more.
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
        self._suspect: Publish | None = None
        self._drop: str | None = None
        """How the connection was lost with the suspect, until it is known whether this counts."""
        self._excusable = False

    def failed(self) -> None:
        """No connection could be made, or it ended before the authentication was answered."""
        if self._excusable:
            self._drop = None

    def signed_in(self) -> None:
        """The relay is authenticated: so the drop before was the suspect's fault."""
        if self._suspect is not None and self._drop is not None:
            self._book.blamed(self._suspect, alone=self._drop == "alone")
        self._drop = None

    def answered(self, update: Publish) -> None:
        if update is self._suspect:
            self._suspect = None

    def ended(self, code: int | None, unanswered: Sequence[Publish]) -> None:
        """A connection on which the relay was authenticated has ended."""
        if code in _BLAMING_CODES and unanswered:
            self._excusable = unanswered[0] is not self._suspect
            self._suspect = unanswered[0]
            self._drop = "alone" if len(unanswered) == 1 else "in company"
