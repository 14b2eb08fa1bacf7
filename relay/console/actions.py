"""Replaying and purging dead letters for the pages: one at a time, seen in all tabs, with the code of `relay dlq`."""

import asyncio
import contextlib
import datetime as dt
import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, cast

from relay.console.watching import Watching
from relay.contract.errors import NotPermitted, RelayError
from relay.dead_letters import stream
from relay.dead_letters.purge import PurgePlan, counted, exported, remove, require_same_stream
from relay.dead_letters.rehearsal import Rehearsal, Rehearser
from relay.dead_letters.replay import ReplayResult
from relay.dead_letters.replay_all import ReplaySummary, replay_with
from relay.dead_letters.selection import Selection
from relay.nats.frames import FrameClient
from relay.observability.logs import get_logger

REHEARSED: Final = 1000
"""So many dead letters, the oldest, are looked at for a dry run; the others are counted."""
_log = get_logger(__name__)
_MOST_EXPORTS: Final = 20
_MOST_PROBLEMS: Final = 20
_NOT_ALLOWED: Final = "the NATS user of this console may neither replay nor purge dead letters"


@dataclass(slots=True)
class DryRun:
    """What a replay would do."""

    selection: Selection
    plan: PurgePlan
    """What is selected: the replay takes nothing newer."""
    invalid: int = 0
    gone_on: int = 0
    warned: list[Rehearsal] = field(default_factory=list[Rehearsal])
    """The first of those with warnings."""


@dataclass(slots=True)
class Export:
    """Dead letters that are written to a file in the browser before they are purged."""

    selection: Selection
    plan: PurgePlan = field(default_factory=PurgePlan)
    complete: bool = False
    error: str = ""


@dataclass(slots=True)
class Action:
    """A replay or a purge, under way or ended."""

    name: str
    total: int
    summary: ReplaySummary = field(default_factory=ReplaySummary)
    """Of a replay."""
    removed: int = 0
    """By a purge."""
    problems: list[str] = field(default_factory=list[str])
    ended_at: dt.datetime | None = None
    stopped: bool = False
    """By somebody, before its end."""
    error: str = ""

    @property
    def done(self) -> int:
        summary = self.summary
        return self.removed + summary.replayed + summary.already_stored + summary.problems

    @property
    def headline(self) -> str:
        name = self.name.capitalize()
        if self.ended_at is None:
            return f"{name} under way"
        how = "failed" if self.error else "stopped" if self.stopped else "done"
        return f"{name} {how} at {self.ended_at:%Y-%m-%d %H:%M:%S} UTC"

    @property
    def progress(self) -> str:
        """How far it is, or how it ended and what to do then."""
        return self._purged() if self.name == "purge" else self._replayed()

    def _purged(self) -> str:
        if self.ended_at is None:
            return f"removing {self.total:,}"
        if not self.error and not self.stopped:
            return f"removed {self.removed:,} of {self.total:,}"
        told = f"some of the {self.total:,} may be removed, the others are kept: export and purge what is left"
        return f"{self.error}; {told}" if self.error else told

    def _replayed(self) -> str:
        told = f"replayed {self.summary.replayed:,} of {self.total:,}"
        if self.summary.already_stored:
            told += f", {self.summary.already_stored:,} had been replayed before"
        if self.summary.problems:
            told += f", {self.summary.problems:,} cannot be replayed and are kept"
        if self.error:
            told += f". {self.error}. When that is mended, begin again: nothing is lost, and nothing is sent twice"
        return told


class Actions:
    """What people do to dead letters from the pages. Each method that acts raises NotPermitted if they may not."""

    def __init__(self, watching: Watching) -> None:
        self._watching = watching
        self._task: asyncio.Task[None] | None = None
        self._exports: OrderedDict[str, Export] = OrderedDict()
        self.latest: Action | None = None

    @property
    def is_busy(self) -> bool:
        return self._task is not None and not self._task.done()

    async def dry_run(self, selection: Selection) -> DryRun:
        """Look at what is selected, and change nothing. Raises RelayError."""
        client = self._acting()
        found = DryRun(selection, PurgePlan())
        rehearser = Rehearser(client)
        async with contextlib.aclosing(counted(client, selection, found.plan)) as letters:
            async for letter in letters:
                if found.plan.reasons.total() <= REHEARSED:
                    self._note(found, await rehearser.rehearse(letter))
        return found

    def _note(self, found: DryRun, rehearsal: Rehearsal) -> None:
        found.invalid += rehearsal.fault is not None
        found.gone_on += rehearsal.later is not None
        if rehearsal.warnings and len(found.warned) < _MOST_PROBLEMS:
            found.warned.append(rehearsal)

    def replay(self, dry_run: DryRun, rate_per_s: float | None) -> None:
        """Begin to replay what the dry run saw."""
        client = self._acting()
        action = Action("replay", dry_run.plan.reasons.total())
        self._begin(action, self._replay(client, action, dry_run, rate_per_s))

    async def _replay(self, client: FrameClient, action: Action, dry_run: DryRun, rate_per_s: float | None) -> None:
        def on_result(result: ReplayResult) -> None:
            if result.problem and len(action.problems) < _MOST_PROBLEMS:
                action.problems.append(f"dead letter {result.letter.sequence} is kept: {result.problem}")

        await require_same_stream(client, dry_run.plan)
        letters = stream.read(client, dry_run.selection, dry_run.plan.last_sequence)
        async with contextlib.aclosing(letters):
            await replay_with(client, letters, summary=action.summary, on_result=on_result, rate_per_s=rate_per_s)
        if action.summary.error is not None:
            raise action.summary.error

    def prepare_export(self, selection: Selection) -> str:
        """The name under which `export` gives what is selected."""
        self._acting()
        name = secrets.token_urlsafe(16)
        self._exports[name] = Export(selection)
        if len(self._exports) > _MOST_EXPORTS:
            self._exports.popitem(last=False)
        return name

    def export_named(self, name: str) -> Export | None:
        return self._exports.get(name)

    async def export(self, export: Export) -> AsyncGenerator[bytes]:
        """The lines of the file. Afterwards `export` says whether it is complete."""
        plan = export.plan = PurgePlan()
        export.complete, export.error = False, ""
        try:
            lines = exported(self._acting(), export.selection, plan)
            async with contextlib.aclosing(lines):
                async for line in lines:
                    yield line
            # Of this file, if two are written at a time.
            export.plan, export.complete, export.error = plan, True, ""
        except RelayError as error:
            export.error = str(error)
            raise
        finally:
            if not export.complete and not export.error:
                export.error = "it was broken off before its end; export again"

    def purge(self, export: Export) -> None:
        """Begin to remove what was exported, and nothing else."""
        client = self._acting()
        if not export.complete:
            raise RelayError("the file is not written to its end: wait for it, or export again")
        action = Action("purge", export.plan.reasons.total())
        self._begin(action, self._purge(client, action, export))

    async def _purge(self, client: FrameClient, action: Action, export: Export) -> None:
        action.removed = await remove(client, export.selection, export.plan)

    def stop(self) -> None:
        """End what is under way; it can be begun again, and nothing is lost or sent twice."""
        if self._task is not None and self.latest is not None and self.is_busy:
            self.latest.stopped = True
            self._task.cancel()

    async def ended(self) -> None:
        """Wait until nothing is under way."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def _begin(self, action: Action, work: Coroutine[Any, Any, None]) -> None:
        if self.is_busy:
            work.close()
            raise RelayError("another replay or purge is under way: wait for its end, or stop it")
        self.latest = action
        self._task = asyncio.create_task(self._run(action, work))

    async def _run(self, action: Action, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except* RelayError as errors:
            action.error = "; ".join(dict.fromkeys(map(str, _leaves(errors))))
        except* Exception as errors:  # noqa: BLE001 - it is told on the page, and logged
            action.error = f"it broke: {'; '.join(repr(each) for each in _leaves(errors))}"
            _log.exception("a replay or purge ended unexpectedly")
        finally:
            action.ended_at = dt.datetime.now(dt.UTC)

    def _acting(self) -> FrameClient:
        client = self._watching.client
        if client is None or not self._watching.rights.act:
            raise NotPermitted([], _NOT_ALLOWED)
        return client


def _leaves(group: BaseExceptionGroup[Exception]) -> Iterator[Exception]:
    """The exceptions in nested groups, as TaskGroups raise them."""
    for each in group.exceptions:
        if isinstance(each, ExceptionGroup):
            yield from _leaves(cast("ExceptionGroup[Exception]", each))
        else:
            yield cast("Exception", each)
