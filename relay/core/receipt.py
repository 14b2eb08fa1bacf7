"""The receipt of a settled update, on `job.relayed.<uuid>`."""

import msgspec

from relay.contract.subjects import Reason
from relay.core.verdict import Outcome


class Receipt(msgspec.Struct, frozen=True):
    """How an update ended."""

    uuid: str
    status: str | None
    """Null if the body could not be read."""
    sequence: int
    """Its sequence in JOB_STATUS."""
    outcome: Outcome
    reason: Reason | None
    """Why it was dead-lettered. Null if it was not, or if an earlier worker wrote its dead letter."""
    attempts: int
    """Answers, or suspected drops of the connection, that were the update's own fault: as `Relay-Attempts`."""
    relayed_ms: float
    """Milliseconds from when JOB_STATUS stored it to when it was settled."""
