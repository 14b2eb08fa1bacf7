"""Text that is safe to send and to show, and numbers in words."""

import io

import nats.errors
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.contract.text import (
    ascii_line,
    describe,
    escape,
    format_counts,
    format_duration,
    format_size,
    how_many,
    one_line,
    redact_url,
    wants_color,
)


@given(st.text())
def test_safe(text):
    """Unprintable characters are removed from any text; printable ones stay unchanged."""
    assert escape(text).isprintable()
    assert one_line(text).isprintable()
    assert len(text) == len(one_line(text))
    if text.isprintable():
        assert text == escape(text) == one_line(text)


@given(st.text(), st.integers(3, 20))
def test_ascii_line(text, max_chars):
    """A line for a header is printable ASCII of limited length, however long its escape sequences are."""
    line = ascii_line(text, max_chars)
    assert line.isascii()
    assert line.isprintable()
    assert len(line) <= max_chars


def test_redact_url():
    """Neither the user, the password, the query nor the fragment of an address is shown."""
    assert "wss://host:1/ws/" == redact_url("wss://user:p%40ss@host:1/ws/?token=secret#secret")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError("no route"), "no route"),
        (BrokenPipeError(), "BrokenPipeError"),
        (TimeoutError(), "no answer in time"),
        (nats.errors.TimeoutError(), "no answer in time"),
    ],
)
def test_describe(error, expected):
    """An error without a message is named by its type; a timeout in words."""
    assert expected == describe(error)


def test_format_counts():
    """Reasons are listed in the given order, and dead letters without a reason as such."""
    assert "refused 2, without a reason 1" == format_counts({"refused": 2, "": 1})


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (12, "12 s"), (119, "119 s"), (180, "3 min"), (9e4, "25 h")],
)
def test_duration(seconds, expected):
    """Durations are rounded to the digits that matter."""
    assert expected == format_duration(seconds)


@pytest.mark.parametrize(("count", "expected"), [(812, "812 B"), (1024, "1.0 KiB"), (4_400_000, "4.2 MiB")])
def test_size(count, expected):
    """Sizes are rounded to the digits that matter."""
    assert expected == format_size(count)


@pytest.mark.parametrize(
    ("terminal", "variables", "colored"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        (False, {"FORCE_COLOR": "1"}, True),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_colors(monkeypatch, terminal, variables, colored):
    """Colours are for terminals; NO_COLOR turns them off, FORCE_COLOR on."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    assert colored == wants_color(stream)


def test_how_many():
    """One of something is told in the singular, also if the number is a text."""
    told = [how_many(count, "byte") for count in (0, 1, 2, "1", "1,000")]
    assert ["0 bytes", "1 byte", "2 bytes", "1 byte", "1,000 bytes"] == told
