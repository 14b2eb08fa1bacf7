"""What is asked on `job.query.<uuid>` and `job.history.<uuid>`, and what is answered: JSON."""

from enum import StrEnum
from typing import Annotated, Final

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

MOST_UPDATES: Final = 200
"""In one answer on `job.history.<uuid>`."""


class Progress(StrEnum):
    """How far an update got."""

    PENDING = "pending"
    """It is not settled, or nobody can say for certain that it is."""
    ACKNOWLEDGED = "acknowledged"
    """The Facilitator has it."""
    DEAD_LETTERED = "dead_lettered"


class QueryRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """All may be left out, and so may the whole request."""

    metadata: bool = False
    """Whether the answer is to have the update's body."""


class HistoryRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """All may be left out, and so may the whole request."""

    metadata: bool = False
    after: Annotated[int, Meta(ge=0)] = 0
    """Only updates with a higher sequence: `next` of the answer before."""
    limit: Annotated[int, Meta(ge=1, le=MOST_UPDATES)] = 100


class UpdateReply(Struct, frozen=True, kw_only=True):
    """One update."""

    uuid: str
    status: str | None
    """Null if the body cannot be read."""
    terminal: bool
    """Whether the job ends with this status."""
    sequence: int
    """In JOB_STATUS."""
    published: str
    """When JOB_STATUS stored it: RFC 3339, UTC."""
    progress: Progress
    reason: str | None = None
    """Of a dead-lettered one: its `Relay-Reason`."""
    dead_letter: int | None = None
    """Of a dead-lettered one: its sequence in JOB_DLQ."""
    unreadable: str | None = None
    """Why the body cannot be read."""
    body: Raw | UnsetType = UNSET
    """If asked for: the update as the Facilitator gets it, or a body that cannot be read as text in base64.

    Null if the answer would be too large for NATS with it.
    """


class HistoryReply(Struct, frozen=True):
    """Updates of a job in the order of their sequences."""

    uuid: str
    updates: list[Raw]
    """Each an UpdateReply."""
    next: int | None
    """What to ask for as `after` to get those that follow; null if these are the last."""
