"""One job: its updates in their order, what became of each, and how long it took."""
# pyright: reportUnknownMemberType=false
# The types of NiceGUI are partly unknown.

import asyncio
import contextlib
import datetime as dt
from collections.abc import Awaitable, Callable
from typing import Final

from nicegui import ui

from relay.client.follower import JobFollower, follow
from relay.console.frame import badge, body_text, card, connected, frame, problem
from relay.console.tail import Tail
from relay.console.watching import Watching
from relay.contract.errors import RelayError
from relay.contract.subjects import STATUS_STREAM
from relay.dead_letters import stream
from relay.doctor.findings import Level
from relay.nats.frames import FrameClient
from relay.nats.messages import get_message
from relay.observability.logs import get_logger
from relay.query.replies import DEAD_LETTER_GONE, UpdateProgress, UpdateReply

_log = get_logger(__name__)
_ASK_AGAIN_S: Final = 10.0
_LOOK_S: Final = 0.5
_MOST_SHOWN: Final = 500
_LEVELS: Final = {
    UpdateProgress.PENDING: Level.WARN,
    UpdateProgress.ACKNOWLEDGED: Level.OK,
    UpdateProgress.DEAD_LETTERED: Level.FAIL,
}


def show_job(watching: Watching, tail: Tail, job: str) -> None:
    """Build the page; new updates and their ends are added by themselves."""
    with frame(watching, f"Job {job}", "/jobs"):
        with card(f"Job {job}"):
            told = ui.column().classes("wide")
            ui.link("Its dead letters", f"/dead-letters?job={job}")
            more = ui.label(f"There are more; these are the newest {_MOST_SHOWN}.")
            timeline = ui.element("ol").classes("timeline")
        more.set_visibility(False)
        with told:
            client = connected(watching)
        if client is None:
            return
        shown = _Timeline(client, tail, timeline, more)
        following = Following(client, job, shown.show)
        task = asyncio.create_task(following.run())
        ui.context.client.on_delete(lambda: task.cancel() and None)
        _tell(following, told)


class Following:
    """Gives the updates of a job to `show`, until its end; `problem` and `ended` say how it stands, in words."""

    def __init__(self, client: FrameClient, job: str, show: Callable[[UpdateReply], Awaitable[None]]) -> None:
        self._client = client
        self._job = job
        self._show = show
        self._follower = JobFollower(job)
        self._broken = ""

    async def run(self) -> None:
        """Cancelling it is safe."""
        try:
            updates = follow(self._client, self._job, self._follower, ask_again_s=_ASK_AGAIN_S)
            async with contextlib.aclosing(updates):
                async for update in updates:
                    await self._show(update)
        except Exception as error:  # noqa: BLE001 - it is told on the page, and logged
            self._broken = f"the page cannot show what came now ({error!r}); load it again to try again"
            _log.exception("a page no longer follows its job", job=self._job)

    @property
    def problem(self) -> str:
        """Why nothing new is shown; empty if nothing is wrong."""
        asking = self._follower.problem and f"{self._follower.problem}; still asking"
        return self._broken or asking

    @property
    def ended(self) -> str:
        """That the page goes on no longer; empty while it does."""
        if not self._follower.ended or self._broken:
            return ""
        return "The job has ended, so this page follows it no longer. Load it again after a replay."


def _tell(following: Following, told: ui.element) -> None:
    """Say why there is no answer, as long as there is none, and when none is asked for any more."""
    said = "", ""

    def look() -> None:
        nonlocal said
        if said != (said := (following.problem, following.ended)):
            told.clear()
            with told:
                if following.problem:
                    problem(following.problem)
                if following.ended:
                    ui.label(following.ended)

    ui.timer(_LOOK_S, look)


class _Timeline:
    """The updates of a job on the page, each with what became of it."""

    def __init__(self, client: FrameClient, tail: Tail, box: ui.element, more: ui.element) -> None:
        self._client = client
        self._tail = tail
        self._box = box
        self._more = more
        self.items: dict[tuple[int, str], ui.element] = {}
        """By sequence and time: a stream that is made anew counts from 1 again."""

    async def show(self, update: UpdateReply) -> None:
        """Add an update, or show it again now that it is settled."""
        took = await self._took(update)
        item = self.items.get((update.sequence, update.published))
        if item is None:
            if len(self.items) >= _MOST_SHOWN:
                oldest = next(iter(self.items))
                self.items.pop(oldest).delete()
                self._more.set_visibility(True)
            with self._box:
                item = self.items[update.sequence, update.published] = ui.element("li")
        item.clear()
        item.classes(replace=_LEVELS[update.progress].value)
        with item:
            self._fill(update, took)

    def _fill(self, update: UpdateReply, took: str) -> None:
        ends = ", with which the job ends" if update.terminal else ""
        ui.label(f"{update.status or 'unreadable'}{ends}").classes("heading")
        badge(_LEVELS[update.progress], update.progress.replace("_", "-"))
        published = dt.datetime.fromisoformat(update.published).astimezone(dt.UTC)
        ui.label(f"published {published:%Y-%m-%d %H:%M:%S.%f}"[:-3] + f" UTC, {STATUS_STREAM} {update.sequence}")
        if took:
            ui.label(took)
        if update.unreadable:
            ui.label(update.unreadable)
        if update.dead_letter is not None:
            ui.link(f"{update.reason}: dead letter {update.dead_letter}", f"/dead-letters/{update.dead_letter}")
        elif update.progress is UpdateProgress.DEAD_LETTERED:
            ui.label(DEAD_LETTER_GONE)
        self._folded_body(update)

    def _folded_body(self, update: UpdateReply) -> None:
        async def open_body() -> None:
            box.clear()
            with box:
                try:
                    message = await get_message(self._client, STATUS_STREAM, update.sequence)
                except RelayError as error:
                    problem(str(error))
                    return
                if message is None or message.time != update.published:  # a stream made anew has another one there
                    ui.label("It is no longer stored.")
                else:
                    body_text(message.body)

        with ui.expansion("Body").props("dense") as fold:
            box = ui.column().classes("wide")
        fold.on_value_change(lambda event: open_body() if event.value else None)

    async def _took(self, update: UpdateReply) -> str:
        """When it was settled, as far as that is known: the relay keeps it for dead letters alone."""
        if update.progress is UpdateProgress.PENDING:
            return ""
        ended = "dead-lettered" if update.progress is UpdateProgress.DEAD_LETTERED else "relayed"
        published = dt.datetime.fromisoformat(update.published)
        milliseconds = self._tail.relayed_ms(update.uuid, update.sequence)
        if milliseconds is not None:
            settled = published + dt.timedelta(milliseconds=milliseconds)
        elif update.dead_letter is not None and (letter := await self._letter(update.dead_letter)) is not None:
            settled = letter
            milliseconds = (settled - published).total_seconds() * 1000
        else:
            return f"when it was {ended} is not known: no receipt"
        return f"{ended} {settled.astimezone(dt.UTC):%H:%M:%S.%f}"[:-3] + f", after {max(0.0, milliseconds):,.1f} ms"

    async def _letter(self, sequence: int) -> dt.datetime | None:
        try:
            letter = await stream.find(self._client, sequence)
        except (TimeoutError, RelayError):
            return None
        return letter.stored_at if letter is not None else None
