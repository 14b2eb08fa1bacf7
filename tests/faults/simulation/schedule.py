"""What happens when: made from a seed, printable, and shrunk while it still fails."""

import enum
import itertools
import json
import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

STATUSES = (
    *("received", "accepted", "executor_ready", "streaming_ready", "volumes_ready", "execution_done"),
    *("completed", "failed", "rejected", "horde_failed"),
)
_BUSY_S = 5.0
"""All events begin within this time."""
_MEMORIES = (6_000, 30_000, 1 << 30)
_PADDINGS = (0, 0, 300, 2_000, 9_000)
"""Small bodies, some that fit into a lane's share of the memory, and some that are larger than all of the memory."""
_CROWDS = 0.1
"""The share of schedules with many bad updates at a time."""


class Temper(enum.StrEnum):
    """How the Facilitator treats an update."""

    WELL = "well"
    GARBAGE = "garbage, not JSON"
    REFUSED = "refused for good"
    FLAKY = "answered with an error twice"
    POISON = "drops the connection, every time"
    DROPS = "drops the connection, once"
    DROPS_STORED = "drops the connection, once, when it is stored"
    MUTE = "not answered, once"


_ODD = tuple(Temper)[1:]


class Kind(enum.StrEnum):
    """A fault. Those that last end after `for_s`."""

    START = "a worker starts"
    LEAVE = "a worker is told to stop, and started anew later"
    KILL = "a worker is killed, and started anew later"
    STOP = "a worker stands still"
    NATS_CUT = "a worker loses its NATS connection"
    NATS_STALL = "what a worker and NATS send each other is late"
    ACKS_LOST = "some acknowledgements of a worker are lost"
    DELIVERIES_LOST = "some deliveries to a worker are lost"
    HANG_UP = "the Facilitator closes or drops a worker's connections"
    CONSUMERS_ANEW = "the lanes' consumers are deleted and made anew"
    LEADER_CHANGE = "the lanes' consumers change their leader"
    CLOCK_BACK = "the clock of the server that leads the lanes' consumers goes back"
    INFO_AWAY = "JetStream says nothing of its consumers"
    LETTERS_AWAY = "the dead-letter stream does not answer"
    LETTERS_FULL = "the dead-letter stream is full"
    LEASES_AWAY = "the lease bucket does not answer"
    JETSTREAM_LATE = "JetStream answers late, about leases and dead letters too"
    FACILITATOR_AWAY = "the Facilitator refuses connections, and closed those it had"
    FACILITATOR_DOWN = "the Facilitator drops every connection at its next message"
    FACILITATOR_HANGS_UP = "the Facilitator drops every connection at once, new ones too"
    INSERTS_FAIL = "the Facilitator drops the connection at every update, because it cannot store any"
    FACILITATOR_REFUSES = "the Facilitator does not let the validator in"
    FACILITATOR_STALL = "the Facilitator does not answer"
    FACILITATOR_CONFUSED = "the Facilitator answers job.integrity_error to all updates, and stores nothing"


MISFORTUNES = (*tuple(Kind)[1:], Kind.KILL, Kind.STOP, Kind.HANG_UP)
"""The kinds that a schedule chooses from; the last three are listed twice, and so are chosen more often."""
_CODES = (None, 1001, 1009, 1011, 1012, 3000)


@dataclass(frozen=True, slots=True)
class Publish:
    """An update that a producer publishes. Its name is the job's letter and its number in the job."""

    at_s: float
    name: str
    job: str
    status: str
    temper: Temper
    known_from_s: float
    """The time from which the Facilitator knows the job."""
    padding: int = 0
    """By how many bytes its body is longer than it need be."""

    @property
    def body(self) -> bytes:
        if self.temper is Temper.GARBAGE:
            return b"{" + b" " * self.padding
        metadata = {"name": self.name} | ({"padding": "." * self.padding} if self.padding else {})
        fields = {"uuid": self.job, "status": self.status, "metadata": metadata}
        return json.dumps({"message_type": "V0JobStatusUpdate"} | fields).encode()

    def __str__(self) -> str:
        temper = "" if self.temper is Temper.WELL else f", {self.temper.value}"
        known = f", unknown before {self.known_from_s:.3f}" if self.known_from_s else ""
        size = f", {len(self.body)} bytes" if self.padding else ""
        return f"{self.at_s:9.4f}  publish {self.name} ({self.status}){size}{temper}{known}"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault; `worker` is the number of the affected worker, if the fault concerns one."""

    at_s: float
    kind: Kind
    worker: int
    for_s: float
    turns: int
    """After how many turns of the worker's event loop it happens, so that it may interrupt the worker's work."""
    code: int | None
    """The code of the close frame, if connections are closed; None for no close frame."""

    def __str__(self) -> str:
        details = f"worker {self.worker}, {self.for_s:.3f} s, {self.turns} turns, code {self.code}"
        return f"{self.at_s:9.4f}  {self.kind.value} ({details})"


@dataclass(frozen=True, slots=True)
class Schedule:
    """All that a run depends on. Times are seconds from its beginning."""

    seed: int
    lanes: int
    capacity: int
    """The capacity of a lane: its consumer's `max_ack_pending`."""
    window: int
    connections: int
    ack_wait_s: float
    lease_ttl_s: float
    memory_bytes: int
    """The memory for updates of a worker."""
    publishes: tuple[Publish, ...]
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        names = ("lanes", "capacity", "window", "connections", "ack_wait_s", "lease_ttl_s", "memory_bytes")
        shape = ", ".join(f"{name} {getattr(self, name):g}" for name in names)
        events = sorted((*self.publishes, *self.faults), key=lambda event: event.at_s)
        return "\n".join([f"seed {self.seed}: {shape}", *map(str, events)])


def make_schedule(seed: int, misfortunes: Sequence[Kind] = MISFORTUNES, crowds: float = _CROWDS) -> Schedule:
    """The schedule of a seed: up to 12 jobs, up to 3 workers at first, up to 7 of the `misfortunes`.

    `crowds` is the share of schedules with many bad updates at a time.
    """
    rng = random.Random(seed)  # a seeded generator is the point
    # Many bad updates at a time keep all writers of dead letters busy, so that others must wait for them.
    crowd = rng.random() < crowds
    letters = "abcdefghijkl" if crowd else "abcde"[: rng.randint(1, 5)]
    jobs = [_life(rng, letter, garbage=crowd) for letter in letters]
    sizes = random.Random(f"{seed} sizes")  # so that a seed has the same jobs and faults whatever their sizes are
    memory_bytes = sizes.choice(_MEMORIES)
    if memory_bytes < max(_MEMORIES):
        jobs = [[replace(publish, padding=sizes.choice(_PADDINGS)) for publish in job] for job in jobs]
    workers = rng.choice((1, 1, 2, 2, 3))
    starts = [_fault(rng, Kind.START, number, rng.choice((0.0, 0.0, rng.random() * 3))) for number in range(workers)]
    within_s = rng.choice((_BUSY_S, _BUSY_S, 1.0))  # sometimes faults come close together
    from_s = rng.random() * (_BUSY_S - within_s)
    befalling = [
        _fault(rng, rng.choice(misfortunes), rng.randrange(workers), from_s + rng.random() * within_s)
        for _ in range(rng.randint(0, 7))
    ]
    # With a poison update there is room for all: a lane that is full of them, and of what waits behind them, sees no
    # other update acknowledged, so it is never decided about them. A real lane has room for 512.
    poisoned = any(publish.temper is Temper.POISON for job in jobs for publish in job)
    return Schedule(
        seed,
        lanes=1 if crowd else rng.randint(1, 3),
        capacity=16 if crowd else rng.choice((2, 4, 8, 16)) + 64 * poisoned,
        window=rng.choice((1, 2, 4, 32)),
        connections=rng.choice((1, 1, 1, 2)),
        ack_wait_s=rng.choice((1.0, 2.0, 5.0)),
        lease_ttl_s=rng.choice((1.5, 3.0, 9.0)),
        memory_bytes=max(_MEMORIES) if poisoned else memory_bytes,
        publishes=tuple(sorted(itertools.chain.from_iterable(jobs), key=lambda publish: publish.at_s)),
        faults=tuple(sorted(starts + befalling, key=lambda fault: fault.at_s)),
    )


def _life(rng: random.Random, letter: str, *, garbage: bool) -> list[Publish]:
    job = str(uuid.UUID(int=rng.getrandbits(128), version=4))
    known_from_s = rng.choice((0.0,) * 6 + (rng.random() * _BUSY_S, 1e9))
    odd = 0.9 if garbage else rng.choice((0.0, 0.0, 0.15, 0.5))
    gap_s = rng.choice((0.001, 0.05, 0.5))
    at_s = rng.choice((0.0, rng.random() * 4))
    life: list[Publish] = []
    for number in range(rng.randint(1, 3 if garbage else 7)):
        # Sometimes a status is repeated, which the Facilitator has already.
        status = STATUSES[max(0, number - (rng.random() < 0.1))]
        temper = Temper.WELL if rng.random() >= odd else Temper.GARBAGE if garbage else rng.choice(_ODD)
        life.append(Publish(at_s, f"{letter}{number + 1}", job, status, temper, known_from_s))
        at_s += rng.random() * gap_s
    return life


def _fault(rng: random.Random, kind: Kind, worker: int, at_s: float) -> Fault:
    for_s = rng.choice((0.05, 0.5, 2.0, 4.0, 7.0)) * (0.5 + rng.random())
    turns = rng.choice((0, 0, 1, 2, 4, 8))
    return Fault(at_s, kind, worker, for_s, turns, rng.choice(_CODES))


def shrink(schedule: Schedule, fails: Callable[[Schedule], bool], most_runs: int = 300) -> Schedule:
    """Shrink a failing schedule to a part that still fails, and from which nothing more can be left out.

    It leaves out whole jobs first, then faults, then single updates. It stops after `most_runs` runs.
    """
    left = itertools.count(most_runs, -1)

    def still(candidate: Schedule) -> bool:
        return next(left) > 0 and fails(candidate)

    while True:
        before = schedule
        for job in sorted({publish.job for publish in schedule.publishes}):
            rest = tuple(publish for publish in schedule.publishes if publish.job != job)
            if still(candidate := replace(schedule, publishes=rest)):
                schedule = candidate
        schedule = _least(schedule, "faults", still)
        schedule = _least(schedule, "publishes", still)
        if schedule == before:
            return schedule


def _least(schedule: Schedule, field: str, fails: Callable[[Schedule], bool]) -> Schedule:
    """Leave out smaller and smaller pieces of a field, as long as the schedule still fails."""
    size = len(getattr(schedule, field))
    while size := size // 2 if size > 1 else 0:
        start = 0
        while start < len(events := getattr(schedule, field)):
            rest: Sequence[Publish | Fault] = events[:start] + events[start + size :]
            if fails(candidate := replace(schedule, **{field: rest})):
                schedule = candidate
            else:
                start += size
    return schedule
