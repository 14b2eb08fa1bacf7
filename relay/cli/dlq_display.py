"""Dead letters as text: a table, JSON lines, and everything about one. Nothing in them can control a terminal."""

import datetime as dt
import json
from collections import Counter
from collections.abc import Iterator
from typing import Final

from relay.contract.subjects import DLQ_STREAM
from relay.contract.text import escape, format_counts, how_many
from relay.dead_letters.description import describe_letter, pretty_body
from relay.dead_letters.stored import StoredDeadLetter, number_of

_SHOWN_CHARS: Final = 2000
_SHOWN_LINES: Final = 40
_LABEL_WIDTH: Final = 12
_COLUMNS: Final = (("seq", 7), ("failed at (UTC)", 19), ("reason", 18), ("job", 36), ("status", 15))
_LEAST_ERROR_WIDTH: Final = 20


def heading(width: int) -> str:
    """The first line of the table, for a terminal of `width` columns."""
    return _line([name for name, _ in _COLUMNS], "error", width)


def row(letter: StoredDeadLetter, width: int) -> str:
    """One line of the table."""
    failed_at = letter.failed_at[:19].replace("T", " ")
    cells = [str(letter.sequence), failed_at, letter.reason, letter.job, letter.status]
    return _line([escape(cell) for cell in cells], escape(letter.error[:width]), width)


def _line(cells: list[str], error: str, width: int) -> str:
    padded = (f"{cell[:size]:{size}}" for cell, (_, size) in zip(cells, _COLUMNS, strict=True))
    line = "  ".join(padded)
    room = width - len(line) - 2
    return f"{line}  {error[:room]}".rstrip() if room >= _LEAST_ERROR_WIDTH else line.rstrip()


def json_row(letter: StoredDeadLetter) -> str:
    """One line of JSON, in ASCII: what there is to know of a dead letter, without its body."""
    return json.dumps(
        {
            "sequence": letter.sequence,
            "stored_at": letter.stored_at.isoformat(),
            "failed_at": letter.failed_at,
            "reason": letter.reason,
            "error": letter.error,
            "attempts": number_of(letter.attempts),
            "job": letter.job,
            "status": letter.status or None,
            "source_subject": letter.source_subject,
            "source_sequence": letter.source_sequence or None,
            "replayed_from": number_of(letter.replayed_from),
            "history": [str(failure) for failure in letter.history],
            "bytes": len(letter.body),
        }
    )


def count_line(reasons: Counter[str], *, limited: bool) -> str:
    """How many there were, by reason."""
    total = reasons.total()
    noun = "dead letter" if total == 1 else "dead letters"
    counted = escape(format_counts(dict(reasons.most_common())))
    more = "; there may be more, because of --limit" if limited else ""
    return f"{total} {noun}" + (f": {counted}" if counted else "") + more


def details(letter: StoredDeadLetter, now: dt.datetime, *, full: bool) -> Iterator[str]:
    """Everything about one dead letter, line by line; the body is cut off unless `full`."""
    yield f"dead letter {letter.sequence} in {DLQ_STREAM}"
    for label, text in describe_letter(letter, now):
        yield _entry(label, text)
    yield ""
    yield from _body_lines(pretty_body(letter.body)[0], full=full)


def _entry(label: str, text: str) -> str:
    return f"{label:{_LABEL_WIDTH}}{escape(text)}"


def _body_lines(text: str, *, full: bool) -> Iterator[str]:
    lines = text.split("\n")
    shown = lines if full else "\n".join(lines[:_SHOWN_LINES])[:_SHOWN_CHARS].split("\n")
    for line in shown:
        yield escape(line)
    left_out = len(text) - sum(map(len, shown)) - len(shown) + 1
    if left_out > 0:
        yield f"... and {how_many(left_out, 'character')} more: --full shows them"
