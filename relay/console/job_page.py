"""One job: its updates in their order, what became of each, and how long it took."""
# pyright: reportUnknownMemberType=false
# The types of NiceGUI are partly unknown.

import asyncio
import contextlib
import datetime as dt
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
from relay.query.replies import DEAD_LETTER_GONE, UpdateProgress, UpdateReply

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
        follower, shown = JobFollower(job), _Timeline(client, tail, timeline, more)
        following = asyncio.create_task(_follow(client, job, follower, shown))
        ui.context.client.on_delete(lambda: following.cancel() and None)
        _tell_problems(follower, told)


async def _follow(client: FrameClient, job: str, follower: JobFollower, shown: "_Timeline") -> None:
    async with contextlib.aclosing(follow(client, job, follower, ask_again_s=_ASK_AGAIN_S)) as updates:
        async for update in updates:
            await shown.show(update)


def _tell_problems(follower: JobFollower, told: ui.element) -> None:
    """Say why there is no answer, as long as there is none."""
    said = ""

    def look() -> None:
        nonlocal said
        if follower.problem != said:
            said = follower.problem
            told.clear()
            if said:
                with told:
                    problem(f"{said}; still asking")

    ui.timer(_LOOK_S, look)


class _Timeline:
    """The updates of a job on the page, each with what became of it."""

    def __init__(self, client: FrameClient, tail: Tail, box: ui.element, more: ui.element) -> None:
        self._client = client
        self._tail = tail
        self._box = box
        self._more = more
        self.items: dict[int, ui.element] = {}
        """By sequence."""

    async def show(self, update: UpdateReply) -> None:
        """Add an update, or show it again now that it is settled."""
        took = await self._took(update)
        item = self.items.get(update.sequence)
        if item is None:
            if len(self.items) >= _MOST_SHOWN:
                oldest = next(iter(self.items))
                self.items.pop(oldest).delete()
                self._more.set_visibility(True)
            with self._box:
                item = self.items[update.sequence] = ui.element("li")
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
        self._folded_body(update.sequence)

    def _folded_body(self, sequence: int) -> None:
        async def open_body() -> None:
            box.clear()
            with box:
                try:
                    message = await get_message(self._client, STATUS_STREAM, sequence)
                except RelayError as error:
                    problem(str(error))
                    return
                if message is None:
                    ui.label("It is no longer stored.")
                else:
                    body_text(message.body)

        with ui.expansion("Body").props("dense") as fold:
            box = ui.column().classes("wide")
        fold.on_value_change(lambda event: open_body() if event.value else None)

    async def _took(self, update: UpdateReply) -> str:
        """When it was settled, as far as that is known: the relay keeps it for dead letters alone."""
        ended = "dead-lettered" if update.progress is UpdateProgress.DEAD_LETTERED else "relayed"
        published = dt.datetime.fromisoformat(update.published)
        milliseconds = self._tail.relayed_ms(update.sequence)
        if milliseconds is not None:
            settled = published + dt.timedelta(milliseconds=milliseconds)
        elif update.dead_letter is not None and (letter := await self._letter(update.dead_letter)) is not None:
            settled = letter
            milliseconds = (settled - published).total_seconds() * 1000
        else:
            return "" if update.progress is UpdateProgress.PENDING else f"when it was {ended} is not known: no receipt"
        return f"{ended} {settled.astimezone(dt.UTC):%H:%M:%S.%f}"[:-3] + f", after {max(0.0, milliseconds):,.1f} ms"

    async def _letter(self, sequence: int) -> dt.datetime | None:
        try:
            letter = await stream.find(self._client, sequence)
        except (TimeoutError, RelayError):
            return None
        return letter.stored_at if letter is not None else None
