"""A job's update as text: a row of its history, all about it, or JSON."""

import datetime as dt
import json
from typing import Final

import msgspec

from relay.contract.subjects import STATUS_STREAM
from relay.contract.text import escape, format_duration
from relay.query.replies import DEAD_LETTER_GONE, UpdateProgress, UpdateReply

_MEANINGS: Final = {
    UpdateProgress.PENDING: "it is not settled yet",
    UpdateProgress.ACKNOWLEDGED: "the Facilitator has it",
    UpdateProgress.DEAD_LETTERED: "`relay dlq show {sequence}` says why",
}


def as_json(update: UpdateReply) -> str:
    """One line of JSON, as the relay answered it, in ASCII: any terminal and any encoding can show it."""
    return json.dumps(msgspec.to_builtins(update), separators=(",", ":"))


def row(update: UpdateReply) -> str:
    """One line of a history."""
    status = update.status or "unreadable"
    return escape(f"{update.sequence:>8}  {_time(update)}  {status:15}  {_progress(update)}")


def details(update: UpdateReply, now: dt.datetime) -> str:
    """All about one update, in four lines."""
    status = update.status or f"unreadable ({update.unreadable})"
    age_s = max(0.0, (now - dt.datetime.fromisoformat(update.published)).total_seconds())
    published = f"{_time(update)} UTC ({format_duration(age_s)} ago)"
    meaning = DEAD_LETTER_GONE if _is_gone(update) else _MEANINGS[update.progress].format(sequence=update.dead_letter)
    lines = (
        f"job        {update.uuid}",
        f"status     {status}{', with which the job ends' if update.terminal else ''}",
        f"published  {published}, {STATUS_STREAM} sequence {update.sequence}",
        f"relayed    {_progress(update)}: {meaning}",
    )
    return "\n".join(map(escape, lines))


def _progress(update: UpdateReply) -> str:
    if update.progress is not UpdateProgress.DEAD_LETTERED or _is_gone(update):
        return update.progress
    return f"{update.progress} ({update.reason}, dead letter {update.dead_letter})"


def _is_gone(update: UpdateReply) -> bool:
    """Whether the update was dead-lettered, and the dead letter is no longer there."""
    return update.progress is UpdateProgress.DEAD_LETTERED and update.dead_letter is None


def _time(update: UpdateReply) -> str:
    """When it was stored, UTC, to the millisecond."""
    return dt.datetime.fromisoformat(update.published).astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
