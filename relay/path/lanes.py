"""The lanes of one connection to the Facilitator: each is driven while this worker holds its lease."""

import asyncio
import math
from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import Final

from relay.contract.report import LaneReport
from relay.contract.subjects import STATUS_STREAM
from relay.core.lane import Lane
from relay.core.memory import Memory
from relay.core.ports import OpenSource, WatchAdvisories
from relay.core.progress import LaneProgress
from relay.core.turns import Turns
from relay.core.update import Update
from relay.dead_letters.writer import DeadLetterWriter
from relay.observability.metrics import Metrics
from relay.path.lane_run import LaneRun
from relay.path.limits import LaneLimits
from relay.path.outlets import Outlets
from relay.timing.clock import monotonic
from relay.timing.waiting import set_within

_BEATS_PER_ACK_WAIT: Final = 3


class Lanes:
    """Drives lanes over one connection. A lane belongs to one connection only, so that a job stays on it.

    Args:
        outlets: where updates go out.
        open_source: makes a lane's source.
        watch_advisories: dead-letters what JetStream gave up on in a lane.
    """

    def __init__(
        self,
        outlets: Outlets,
        open_source: OpenSource,
        dead_letters: DeadLetterWriter,
        watch_advisories: WatchAdvisories,
        *,
        limits: LaneLimits,
        metrics: Metrics,
    ) -> None:
        self.outlets = outlets
        self.turns = Turns()
        """The lanes from which updates may be sent; a lane that is being drained is not among them."""
        self.clock = limits.clock
        """That of NATS: it says when updates were stored."""
        self._open_source = open_source
        self._dead_letters = dead_letters
        self._watch_advisories = watch_advisories
        self._limits = limits
        self._metrics = metrics
        self._runs: dict[Lane, LaneRun] = {}
        self._opened = asyncio.Event()
        self._retry_added = asyncio.Event()

    async def run(self) -> None:
        """Keep updates in progress and end their backoffs, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_in_progress())
            group.create_task(self._end_backoffs())

    # --- what the owner of the leases calls

    async def drive(self, number: int, ours_until_s: float, leaving: asyncio.Event) -> None:
        """Drive a lane over the connection until `leaving` is set or its source ends, then drain the lane.

        To drain is to take nothing new, to finish what is with the Facilitator, and to give the rest back to the
        server; it takes as long as the Facilitator takes to answer. If cancelled, the lane is dropped: its next owner
        gets what is at hand after `ack_wait`. Either way, only what was answered is acknowledged.

        `ours_until_s`: when the lease ends, on the monotonic clock.
        """
        run = LaneRun(
            number,
            self._open_source,
            self._dead_letters.horizon,
            self.outlets,
            self._opened,
            limits=self._limits,
            metrics=self._metrics,
        )
        run.lane.ours_until_s = ours_until_s
        self._runs[run.lane] = run
        self.turns.add(run.lane)
        try:
            await self._dead_letters.look()
            async with asyncio.TaskGroup() as group:
                pulling = group.create_task(run.source.run())
                releasing = group.create_task(run.release_when_complete())
                advised = group.create_task(self._watch_advisories(run.lane))
                left = group.create_task(leaving.wait())
                await asyncio.wait({left, pulling}, return_when=asyncio.FIRST_COMPLETED)
                left.cancel()
                self.turns.discard(run.lane)
                run.source.drain()
                await pulling
                await run.give_back()
                releasing.cancel()
                advised.cancel()
        finally:
            run.lane.ours_until_s = -math.inf  # the session may still have a suspect of this lane
            del self._runs[run.lane]
            self._limits.memory.leave(run.lane.share)
            self.turns.discard(run.lane)
            self._metrics.at_hand(number, 0)

    def extend(self, number: int, ours_until_s: float) -> None:
        """The lease on a lane was renewed until `ours_until_s`, on the monotonic clock."""
        for lane in self._runs:
            if lane.number == number:
                lane.ours_until_s = ours_until_s
        self.open()  # if the renewal came late, nothing was sent until now, and nothing else may start it again

    # --- what the path calls

    def open(self) -> None:
        """Something may go out: send it, or have it dead-lettered."""
        self.outlets.open(self.turns.lanes)

    def progressed(self, lanes: Iterable[Lane]) -> None:
        """Updates of these lanes are not OUT any more, so others may go. Lanes that were dropped are skipped."""
        for lane in lanes:
            if (run := self._runs.get(lane)) is not None:
                run.progress.set()
                if run.source.starved:
                    run.source.top_up()
                if lane.dead_letters or lane.questions:
                    self.outlets.wake(lane)
        if self._limits.memory.waiting:
            self._limits.memory.wake()
        for lane in self.turns.lanes:  # any lane may use the room in the window
            if lane.ready:
                self.outlets.send()
                break

    def retry(self, update: Update, delay_s: float) -> None:
        """The update may go again after `delay_s` seconds; its job's later updates wait behind it."""
        update.lane.retry(update, monotonic() + delay_s)
        self.backoff_began()
        self.progressed([update.lane])

    def backoff_began(self) -> None:
        """An update waits out a backoff from now on."""
        self._retry_added.set()

    def connection_opened(self) -> None:
        """The session with the Facilitator may be used."""
        self._opened.set()
        for run in self._runs.values():
            run.connection_opened()

    def control_found(self) -> None:
        """From now on drops of the connection can be told apart."""
        for run in self._runs.values():
            run.lane.control_found()

    def connection_lost(self) -> None:
        """The session with the Facilitator is over, and nothing is OUT there any more."""
        self._opened.clear()
        for run in self._runs.values():
            run.progress.set()

    def broker_reconnected(self) -> None:
        """The NATS connection was lost and made again: the server has forgotten every pull."""
        for run in self._runs.values():
            run.source.restart()

    # --- what is asked about them

    @property
    def memory(self) -> Memory:
        """The memory for updates of the whole worker."""
        return self._limits.memory

    @property
    def driving(self) -> bool:
        """Whether any lane is driven here; if not, this connection stands by."""
        return bool(self._runs)

    def reports(self) -> list[LaneReport]:
        """The state of each lane that is driven here."""
        return [run.report() for run in self._runs.values()]

    def progress(self, number: int, job: str) -> LaneProgress | None:
        """What is known here of how far a job's updates got; None if the lane is not driven here."""
        return next((lane.progress(job) for lane in self._runs if lane.number == number), None)

    def troubles(self) -> list[str]:
        """Which lanes cannot be pulled, or have an update that nothing passes, or that has no dead letter, and why."""
        runs = self._runs.values()
        told = [
            (run.lane.number, trouble)
            for run in runs
            for trouble in (run.source.trouble, _doubt(run.lane), _unwritten(run.lane))
        ]
        return [f"lane {number}: {trouble}" for number, trouble in told if trouble]

    # --- long-lived tasks

    async def _keep_in_progress(self) -> None:
        """Tell the server what is still worked on, well before `ack_wait` is over."""
        while True:
            beat_s = self.memory.ack_wait_s / _BEATS_PER_ACK_WAIT
            await asyncio.sleep(beat_s)
            # Only what has waited for a whole beat is reported, so a lane that flows costs nothing.
            for update in list(self._untouched_since(monotonic() - beat_s)):
                update.touched_s = monotonic()
                update.delivery.in_progress()

    def _untouched_since(self, then_s: float) -> Iterator[Update]:
        for lane in self._runs:
            yield from (update for update in lane.at_hand() if update.touched_s <= then_s)

    async def _end_backoffs(self) -> None:
        """Let updates go again when their backoff is over."""
        while True:
            self._retry_added.clear()
            due_s = self.turns.wake(monotonic())
            self.open()
            await set_within(self._retry_added, None if due_s is None else due_s - monotonic())


def _unwritten(lane: Lane) -> str | None:
    """Which dead letter cannot be written, in words for an operator; None if all can."""
    unwritten = [update for update in lane.at_hand() if update.unwritten is not None]
    if not unwritten:
        return None
    others = f" (and those of {len(unwritten) - 1} others)" if unwritten[1:] else ""
    return (
        f"the dead letter of update {unwritten[0].sequence} of {STATUS_STREAM}{others} cannot be written:"
        f" {unwritten[0].unwritten}; the update is kept, and later ones of its job wait"
    )


def _doubt(lane: Lane) -> str | None:
    """What is undecided in a lane, in words for an operator; None if nothing is."""
    if not (undecided := lane.undecided()):
        return None
    most = max(undecided, key=attrgetter("undecided"))
    return (
        f"the Facilitator dropped the connection at update {most.sequence} of {STATUS_STREAM}, and has acknowledged"
        " nothing since: either it cannot store updates, or this update makes it fail; this shows as soon as it"
        " acknowledges another update"
    )
