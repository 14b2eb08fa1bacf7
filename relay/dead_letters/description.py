"""Everything about one dead letter, in words, for a terminal and for a page."""

import datetime as dt
from collections.abc import Iterator

import msgspec

from relay.contract.subjects import STATUS_STREAM
from relay.contract.text import format_duration, how_many
from relay.contract.wire import Unsendable, decode
from relay.dead_letters.replay_message import original_headers
from relay.dead_letters.runbook import ADVICE, PAGE
from relay.dead_letters.stored import StoredDeadLetter


def describe_letter(letter: StoredDeadLetter, now: dt.datetime) -> Iterator[tuple[str, str]]:
    """Names and values, without the text of the body. Values may hold any characters that the update had."""
    yield from _summary(letter, now)
    for name, value in original_headers(letter).items():
        yield "header", f"{name}: {value}"
    _, problem = pretty_body(letter.body)
    yield (
        "body",
        f"{how_many(len(letter.body), 'byte')}" + (f"; it cannot be parsed: {problem}" if problem else ""),
    )
    fault = decode(letter.body, letter.job)
    if isinstance(fault, Unsendable):
        same = fault.error == letter.error
        how = "in the same way" if same else f"with {fault.reason}: {fault.error}"
        yield "now", f"as it is, a replay would fail again, {how}"


def _summary(letter: StoredDeadLetter, now: dt.datetime) -> Iterator[tuple[str, str]]:
    age_s = max(0.0, (now - letter.stored_at).total_seconds())
    advice = ADVICE.get(letter.reason)
    yield "reason", f"{letter.reason or 'none'}{': ' + advice.meaning if advice else ''}"
    yield "error", letter.error
    if advice is not None:
        yield "what to do", advice.remedy
        yield "more", f"{PAGE}#{letter.reason}"
    yield "job", letter.job or "none that its headers tell"
    yield "status", letter.status or "none"
    yield "attempts", letter.attempts
    yield "failed at", f"{letter.failed_at} ({format_duration(age_s)} ago)"
    yield "source", f"{letter.source_subject}, {STATUS_STREAM} sequence {letter.source_sequence or ''}"
    if letter.replayed_from:
        yield "replay of", f"dead letter {letter.replayed_from}"
    for failure in letter.history:
        yield (
            "before",
            f"{failure.reason} after {how_many(failure.attempts, 'attempt')}, {failure.failed_at}",
        )


def pretty_body(body: bytes) -> tuple[str, str]:
    """The body, indented, with numbers as they were written. If it is not JSON: the body unchanged, and why."""
    try:
        body.decode()
        return msgspec.json.format(body, indent=2).decode(), ""
    except (ValueError, RecursionError) as error:
        return body.decode(errors="backslashreplace"), str(error)
