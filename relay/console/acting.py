"""Replay and purge on a page: the buttons, what they ask before, and how far it is."""
# pyright: reportUnknownMemberType=false
# The types of NiceGUI are partly unknown.

import datetime as dt
from collections.abc import Callable

from nicegui import ui

from relay.console.actions import REHEARSED, Actions, DryRun, Export
from relay.console.frame import problem
from relay.contract.errors import RelayError
from relay.contract.text import format_counts
from relay.dead_letters.selection import Selection

Choose = Callable[[], Selection]


def act_on(actions: Actions, choose: Choose, what: str) -> None:
    """Two buttons for what `choose` selects when they are pressed; it raises ValueError to say why that is nothing."""

    async def replay() -> None:
        if (selection := _chosen(choose)) is not None:
            await _ask_replay(actions, selection)

    def purge() -> None:
        if (selection := _chosen(choose)) is not None:
            _ask_purge(actions, selection)

    ui.button(f"Replay {what}", icon="replay", on_click=replay).props("no-caps outline")
    ui.button(f"Purge {what}", icon="delete", on_click=purge).props("no-caps outline")


def _dialog() -> ui.dialog:
    """A dialog that goes when it is closed, with what it holds; otherwise each press of a button would leave one."""
    dialog = ui.dialog()
    dialog.on("hide", dialog.delete)
    return dialog


def _chosen(choose: Choose) -> Selection | None:
    try:
        return choose()
    except ValueError as error:
        ui.notify(str(error), type="warning")
        return None


async def _ask_replay(actions: Actions, selection: Selection) -> None:
    with _dialog() as dialog, ui.card().classes("ask"):
        ui.label("Replay: dry run").classes("heading")
        waiting = ui.label("Looking at them ...")
        dialog.open()
        found, failure = None, ""
        try:
            found = await actions.dry_run(selection)
        except RelayError as error:
            failure = str(error)
        if dialog.is_deleted:
            return  # somebody closed it meanwhile
        if failure:
            problem(failure)
        waiting.set_visibility(False)
        if found is not None:
            _tell_dry_run(found)
        rate = ui.number("At most this many a second", min=0.01, placeholder="no limit").classes("uuid")

        def begin(dry_run: DryRun) -> None:
            if _done(lambda: actions.replay(dry_run, rate.value)):
                dialog.close()

        with ui.row():
            if found is not None and found.plan.reasons:
                ui.button("Replay", icon="replay", on_click=lambda: begin(found)).props("no-caps")
            ui.button("Cancel", on_click=dialog.close).props("no-caps flat")


def _tell_dry_run(found: DryRun) -> None:
    total = found.plan.reasons.total()
    if not total:
        ui.label("There is nothing to replay.")
        return
    ui.label(f"{total:,} would be replayed: {format_counts(dict(found.plan.reasons.most_common()))}")
    if total > REHEARSED:
        ui.label(f"The oldest {REHEARSED:,} were looked at closely:")
    if found.invalid:
        ui.label(f"Would fail again as they are: {found.invalid:,}").classes("warn")
    if found.gone_on:
        ui.label(f"Of jobs that have gone on since: {found.gone_on:,}").classes("warn")
    with ui.column().classes("warnings"):
        for each in found.warned:
            ui.label(f"{each.letter.sequence}: {'; '.join(each.warnings)}").classes("mono")


def _ask_purge(actions: Actions, selection: Selection) -> None:
    name = actions.prepare_export(selection)
    export = actions.export_named(name)
    assert export is not None, "it was just prepared"
    with _dialog() as dialog, ui.card().classes("ask"):
        ui.label("Purge: remove for good").classes("heading")
        ui.label("First export them. `relay dlq replay --from FILE` can publish what the file has.")
        ui.button("Export", icon="download", on_click=lambda: ui.download.from_url(f"/export/{name}")).props("no-caps")
        told = ui.label("Nothing is exported yet.")
        typed = ui.input("Then type what the line above asks for").classes("wide")

        def begin() -> None:
            if _done(lambda: actions.purge(export)):
                dialog.close()

        with ui.row():
            button = ui.button("Purge", icon="delete", color="negative", on_click=begin).props("no-caps")
            ui.button("Cancel", on_click=dialog.close).props("no-caps flat")

        def look() -> None:
            told.text, wanted = _tell_export(export)
            button.set_enabled(bool(wanted) and (typed.value or "").strip() == wanted)

        look()
        ui.timer(0.3, look)
    dialog.open()


def _tell_export(export: Export) -> tuple[str, str]:
    """What to say of it, and what must be typed to purge; empty if it may not be purged."""
    total = export.plan.reasons.total()
    if export.error:
        return f"The export failed: {export.error}", ""
    if not export.complete:
        return (f"{total:,} exported so far" if total else "Nothing is exported yet."), ""
    if not total:
        return "There is nothing to remove.", ""
    counts = format_counts(dict(export.plan.reasons.most_common()))
    return f"{total:,} exported ({counts}). To remove them, type: purge {total}", f"purge {total}"


def _done(act: Callable[[], None]) -> bool:
    try:
        act()
    except RelayError as error:
        ui.notify(str(error), type="negative", timeout=0, close_button=True)
        return False
    return True


def action_card(actions: Actions) -> None:
    """The latest replay or purge: how far it is, how it ended, and the button that stops it."""
    with ui.element("section").classes("card").props('aria-live="polite"') as box:
        heading = ui.label().classes("heading")
        bar = ui.linear_progress(show_value=False).props('aria-hidden="true"')
        text = ui.label()
        problems = ui.label().classes("mono")
        stop = ui.button("Stop", icon="stop", on_click=actions.stop).props("no-caps outline")
        again = ui.button("Show what is left", icon="refresh", on_click=ui.navigate.reload).props("no-caps outline")
    loaded_at = dt.datetime.now(dt.UTC)

    def show() -> None:
        action = actions.latest
        box.set_visibility(action is not None)
        if action is None:
            return
        heading.text, text.text = action.headline, action.progress
        bar.value = action.done / action.total if action.total else 1.0
        bar.set_visibility(action.ended_at is None)
        stop.set_visibility(action.ended_at is None)
        again.set_visibility(action.ended_at is not None and action.ended_at > loaded_at)
        problems.text = "\n".join(action.problems)

    show()
    ui.timer(0.3, show)
