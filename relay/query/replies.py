"""Requests and replies on `job.query.<uuid>` and `job.history.<uuid>`, as JSON.

To add a field to a reply: "Where a change goes" in CONTRIBUTING.md lists the places.
"""

from enum import StrEnum
from typing import Annotated, Final

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

MOST_UPDATES: Final = 200
"""How many updates one reply on `job.history.<uuid>` has at most."""


DEAD_LETTER_GONE: Final = "its dead letter is gone, and `relay dlq` did not remove it"
"""What an update means that is dead-lettered and has no `dead_letter`."""


class UpdateProgress(StrEnum):
    """How far an update got."""

    PENDING = "pending"
    """It is not settled, or it is not certain that it is."""
    ACKNOWLEDGED = "acknowledged"
    """The Facilitator has acknowledged it."""
    DEAD_LETTERED = "dead_lettered"
    """It was put into the dead-letter stream, and will not be sent again."""


class QueryRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A request on `job.query.<uuid>`. An empty request means the defaults."""

    metadata: bool = False
    """Whether the reply includes the update's body."""


class HistoryRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A request on `job.history.<uuid>`. An empty request means the defaults."""

    metadata: bool = False
    """Whether the reply includes the updates' bodies."""
    after: Annotated[int, Meta(ge=0)] = 0
    """Only updates with a higher sequence are returned. Give `next` of the previous reply to go on."""
    limit: Annotated[int, Meta(ge=1, le=MOST_UPDATES)] = 100


class UpdateReply(Struct, frozen=True, kw_only=True):
    """One update."""

    uuid: str
    status: str | None
    """Null if the body cannot be read."""
    terminal: bool
    """Whether the job ends with this status."""
    sequence: int
    """Its sequence in JOB_STATUS."""
    published: str
    """When JOB_STATUS stored it: RFC 3339, UTC."""
    progress: UpdateProgress
    reason: str | None = None
    """The dead letter's `Relay-Reason`; null if the update is not dead-lettered, or its dead letter is gone."""
    dead_letter: int | None = None
    """The dead letter's sequence in JOB_DLQ; null if the update is not dead-lettered, or its dead letter is gone."""
    unreadable: str | None = None
    """Why the body cannot be read; null if it can."""
    body: Raw | UnsetType = UNSET
    """The update as the Facilitator gets it, or as text in base64 if it cannot be read. Left out unless requested.

    Null if the reply would be too large for NATS with it.
    """


class HistoryReply(Struct, frozen=True):
    """Updates of a job in the order of their sequences."""

    uuid: str
    updates: list[Raw]
    """Each is an UpdateReply."""
    next: int | None
    """The `after` of the request for the updates that follow; null if there are none."""
