"""Runs a schedule in virtual time, and reports what went wrong."""

import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from relay.contract.subjects import lane_of
from simulation import seam
from simulation.book import Book, Line, Log
from simulation.clock import Clock, Process, Spinning
from simulation.facilitator import Facilitator
from simulation.jetstream import JetStream
from simulation.leases import Bucket
from simulation.network import SPIKE_S
from simulation.schedule import Fault, Kind, Publish, Schedule, Temper
from simulation.worker import MAX_ATTEMPTS, Surroundings, Worker

SETTLED_WITHIN_S = 60.0
"""Virtual seconds after the last fault: leases expire, waits for missing deliveries end, attempts are used up."""

_LOSS = 0.4
_STEP_FACTOR = 4
"""A clock goes back by so many times the duration of other faults: up to 42 s."""
_LAPSES = (Kind.STOP, Kind.NATS_CUT, Kind.NATS_STALL, Kind.LEASES_AWAY, Kind.JETSTREAM_LATE)
"""The faults that may let a worker's lease expire before it is renewed."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a schedule."""

    broken: list[str]
    """Promises that were broken; empty if none was."""
    lines: list[Line]
    took_s: float
    """Virtual seconds until everything was settled."""


def run(schedule: Schedule) -> Result:
    """Run a schedule from the beginning until everything is settled, or until the time for that is over."""
    return World(schedule).run()


class World:
    """One run of a schedule."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.clock = Clock()
        # With short leases one delayed message is enough.
        lapses = schedule.lease_ttl_s / 3 < 2 * SPIKE_S or any(fault.kind in _LAPSES for fault in schedule.faults)
        self.book = Book(self.clock, MAX_ATTEMPTS, in_company=lapses)
        self.jetstream = JetStream(
            self.clock,
            self.book,
            lanes=schedule.lanes,
            ack_wait_s=schedule.ack_wait_s,
            max_ack_pending=schedule.capacity,
        )
        self.bucket = Bucket(self.clock, self.book, self._rng("leases"), schedule.lease_ttl_s)
        self.facilitator = Facilitator(self.clock, self.book, self._rng("facilitator"), self._check_lease)
        self.around = Surroundings(self.clock, self.book, self.jetstream, self.bucket, self.facilitator, schedule)
        self.workers: dict[int, Worker] = {}
        """The current worker at each number; a worker that has ended may have a successor there."""
        self._processes: list[Process] = []
        self._unpublished = 0
        self._to_delete = sum(fault.kind is Kind.CONSUMERS_ANEW for fault in schedule.faults)
        self._largest_bytes = max((len(update.body) for update in schedule.publishes), default=0)
        self.began_s = self.clock.now

    def run(self) -> Result:
        events = (*self.schedule.publishes, *self.schedule.faults)
        well_s = max((_end_of(event) for event in events), default=0.0)
        for update in (*self.schedule.publishes, *self._last_publishes(well_s)):
            self._unpublished += 1
            self.facilitator.expect(update)
            self.clock.after(update.at_s, self._publish, update)
        for fault in self.schedule.faults:
            self.clock.after(fault.at_s, self._befall, fault)
        self.clock.after(well_s, self._heal)
        connect = seam.connector(self.clock, self.facilitator, self._running, self._rng("sockets"))
        with seam.installed(self.clock, Log(self.book, self.clock), connect):
            try:
                self._settle(self.began_s + well_s + SETTLED_WITHIN_S)
            finally:
                took_s = self.clock.now - self.began_s
                for process in self._processes:
                    process.bury()
        return Result(self.book.broken, self.book.lines, took_s)

    def _last_publishes(self, at_s: float) -> list[Publish]:
        """A good update of each lane, so that every connection sees one acknowledged when all is well.

        Without that, it cannot be decided whether an update drops connections.
        """
        rng = self._rng("last")
        jobs: dict[int, str] = {}
        while len(jobs) < self.schedule.lanes:
            job = str(uuid.UUID(int=rng.getrandbits(128), version=4))
            jobs.setdefault(lane_of(job, self.schedule.lanes), job)
        return [Publish(at_s, f"last{lane}", job, "failed", Temper.WELL, 0.0) for lane, job in sorted(jobs.items())]

    def _settle(self, until_s: float) -> None:
        try:
            settled = self.clock.run(self._is_settled, until_s)
        except Spinning as spinning:
            self.book.complain(str(spinning))
            return
        if missing := self.book.missing():
            self.book.complain(f"{', '.join(missing)} are nowhere")
        elif not settled:
            self.book.complain(
                f"{self.jetstream.unsettled} updates are not settled {SETTLED_WITHIN_S:g} s after all is well"
            )

    def _is_settled(self) -> bool:
        self._check_bytes()
        if self.book.broken:
            return True  # what follows from it would add nothing
        return not self._unpublished and not self._to_delete and not self.jetstream.unsettled

    def _check_bytes(self) -> None:
        """No worker has more at hand than half of its memory, and two updates that went alone, whatever their size.

        The second is one that a lane asked for while it was held, and that came when it was not.
        """
        for worker in self.workers.values():
            at_hand, excused = worker.bytes_at_hand() if worker.alive else (0, 0)
            if at_hand > self.schedule.memory_bytes // 2 + 2 * self._largest_bytes + excused:
                self.book.complain(f"{worker.process.name} has {at_hand} bytes at hand")

    def _rng(self, name: str) -> random.Random:
        # A generator for each name, so that a part can be left out of a schedule and the rest changes as little as
        # possible.
        return random.Random(f"{self.schedule.seed} {name}")

    def _running(self) -> Process:
        assert self.clock.running is not None, "only a worker connects"
        return self.clock.running

    def _check_lease(self, worker: str, update: Publish) -> None:
        """A worker must not send updates of a lane that another one owns."""
        owner = self.bucket.owner(lane_of(update.job, self.schedule.lanes))
        if owner not in (None, worker):
            self.book.complain(f"{worker} sends {update.name}, which is {owner}'s by now")

    def _publish(self, update: Publish) -> None:
        self._unpublished -= 1
        self.jetstream.publish(update)

    # --- faults

    def _befall(self, fault: Fault) -> None:
        if fault.kind is Kind.START:
            self._start(fault.worker)
        elif (act := self._world_fault(fault)) is not None:
            self.book.note("world", fault.kind.value)
            act()
        elif (worker := self.workers.get(fault.worker)) is not None and worker.alive:
            worker.process.interrupt(fault.turns, partial(self._worker_fault, worker, fault))

    def _world_fault(self, fault: Fault) -> Callable[[], None] | None:
        """The action of a fault that does not concern a worker; None if it concerns one."""
        until_s = self.clock.now + fault.for_s
        away: dict[Kind, tuple[object, str]] = {
            Kind.INFO_AWAY: (self.jetstream, "info_away_until_s"),
            Kind.LETTERS_AWAY: (self.jetstream, "letters_away_until_s"),
            Kind.LETTERS_FULL: (self.jetstream, "letters_full_until_s"),
            Kind.LEASES_AWAY: (self.bucket, "away_until_s"),
            Kind.FACILITATOR_AWAY: (self.facilitator, "away_until_s"),
            Kind.FACILITATOR_DOWN: (self.facilitator, "down_until_s"),
            Kind.FACILITATOR_HANGS_UP: (self.facilitator, "hangs_up_until_s"),
            Kind.INSERTS_FAIL: (self.facilitator, "inserts_fail_until_s"),
            Kind.FACILITATOR_REFUSES: (self.facilitator, "refuses_until_s"),
            Kind.FACILITATOR_STALL: (self.facilitator, "stalled_until_s"),
            Kind.FACILITATOR_CONFUSED: (self.facilitator, "confused_until_s"),
        }
        if fault.kind is Kind.CONSUMERS_ANEW:
            return partial(self._make_consumers_anew, fault.for_s)
        if fault.kind is Kind.JETSTREAM_LATE:
            return partial(self._be_late, until_s)
        if fault.kind is Kind.LEADER_CHANGE:
            return partial(self.jetstream.change_leaders, silently=fault.code is None)
        if fault.kind is Kind.CLOCK_BACK:
            return partial(self.jetstream.set_clocks_back, _STEP_FACTOR * fault.for_s)
        if fault.kind not in away:
            return None

        def begin() -> None:
            setattr(*away[fault.kind], until_s)
            if fault.kind in (Kind.FACILITATOR_AWAY, Kind.FACILITATOR_HANGS_UP, Kind.FACILITATOR_REFUSES):
                code = None if fault.kind is Kind.FACILITATOR_HANGS_UP else fault.code
                for connection in list(self.facilitator.connections):
                    connection.drop(code)

        return begin

    def _be_late(self, until_s: float) -> None:
        self.jetstream.late_until_s = self.bucket.late_until_s = until_s

    def _make_consumers_anew(self, after_s: float) -> None:
        self._to_delete -= 1
        self.jetstream.delete_consumers()
        self.clock.after(after_s, self.jetstream.make_anew)

    def _worker_fault(self, worker: Worker, fault: Fault) -> None:
        name = worker.process.name
        match fault.kind:
            case Kind.LEAVE:
                worker.leave()
                self.clock.after(fault.for_s, self._start, fault.worker)
            case Kind.KILL:
                worker.kill()
                self.clock.after(fault.for_s, self._start, fault.worker)
            case Kind.STOP:
                worker.stop()
                self.clock.after(fault.for_s, worker.resume)
            case Kind.NATS_CUT:
                self.book.note(name, f"loses NATS for {fault.for_s:.3f} s")
                worker.link.cut(fault.for_s)
            case Kind.NATS_STALL:
                self.book.note(name, f"hears late from NATS for {fault.for_s:.3f} s")
                for pipe in worker.link.wire.pipes:
                    pipe.stall(min(fault.for_s, self.schedule.ack_wait_s / 2))
            case Kind.ACKS_LOST | Kind.DELIVERIES_LOST:
                lost = "lost_words" if fault.kind is Kind.ACKS_LOST else "lost_deliveries"
                self.book.note(name, f"has {lost} for {fault.for_s:.3f} s")
                setattr(worker.link, lost, _LOSS)
                self.clock.after(fault.for_s, setattr, worker.link, lost, 0.0)
            case _:
                for connection in list(self.facilitator.connections):
                    if connection.owner == name:
                        connection.drop(fault.code)

    def _start(self, number: int) -> None:
        """Start a worker, unless the one with this number is working."""
        if (before := self.workers.get(number)) is not None and before.alive and not before.leaving:
            return
        name = f"worker-{number}-{len(self._processes)}"
        worker = self.workers[number] = Worker(self.around, name, self._rng(name))
        self._processes.append(worker.process)

    def _heal(self) -> None:
        """End all faults, and make sure that a worker is running."""
        self.book.note("world", "all is well")
        if not any(worker.alive and not worker.leaving for worker in self.workers.values()):
            self._start(0)


def _end_of(event: Publish | Fault) -> float:
    return event.at_s + (event.for_s if isinstance(event, Fault) else 0.0)
