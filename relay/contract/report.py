"""What a worker reports about itself on the NATS subject `relay.report`. Reading it needs access to NATS only.

Counts are totals since the worker started; ages and durations are in seconds.
"""

from msgspec import Struct


class Timing(Struct, frozen=True):
    """A histogram of durations: `counts[i]` of them are above `bounds_s[i - 1]` and at most `bounds_s[i]`.

    The last count has no upper bound.
    """

    bounds_s: list[float]
    counts: list[int]
    sum_s: float


class LaneReport(Struct, frozen=True):
    """A lane that the worker drives."""

    lane: int
    at_hand: int
    """Received from NATS and not settled."""
    out: int
    """Of these, sent to the Facilitator and not answered, or being dead-lettered."""
    held: bool
    """It sends nothing yet, because updates that were delivered before may still come back."""
    oldest_at_hand_s: float
    trouble: str | None
    full: bool = False
    """It has no memory left, so it leaves updates in JetStream until some that it has at hand are settled."""
    unexplained: int = 0
    """Of those at hand, answered `job.integrity_error` although they cannot have reached the Facilitator before."""


class ConnectionReport(Struct, frozen=True):
    """A connection to the Facilitator; `trouble` says in words why it is not signed in."""

    window: int
    unanswered: int
    trouble: str | None
    waiting_s: float = 0.0
    """How long the first unanswered update has waited for its answer; 0 without one."""


class LostOwner(Struct, frozen=True):
    """A worker whose lease on a lane ended before it was renewed or given up: it died, hung, or was cut off."""

    worker: str
    lane: int
    ago_s: float


class Report(Struct, frozen=True):
    """One worker."""

    worker: str
    """Its id, as in RELAY_LEASES: `<host>-<process id>-<random>`."""
    version: str
    uptime_s: float
    missing: list[str]
    """What keeps updates from flowing, in words, as /readyz says it; empty if nothing does."""
    lanes: list[LaneReport]
    connections: list[ConnectionReport]
    updates: dict[str, int]
    """Settled, by outcome: acknowledged, duplicate, dead_lettered."""
    dead_letters: dict[str, int]
    """By reason."""
    retries: int
    timings: dict[str, Timing]
    """hot_path (received from NATS to written to the socket), end_to_end (stored to acknowledged), round_trip."""
    intake: str | None = None
    """Why JOB_STATUS stores nothing, in words; None if it does, as far as the worker knows. Also in `missing`."""
    server_ahead_s: float = 0.0
    """How far the clock of NATS is ahead of the worker's; negative if it is behind."""
    lost_owner: LostOwner | None = None
    """Of the lane that this worker took last after another's lease had ended; None if there was none."""
    slow_consumer: int = 0
    """How often nats-server probably dropped its connection because more than max_pending waited to be read."""
    settings: dict[str, float] = {}
    """Those of its settings that streams and consumers follow, by variable: `RELAY_REPLICAS` and the like."""
    warnings: list[str] = []
    """What does not keep updates from flowing, and should be looked at: permissions, and what it cannot see."""
