"""RELAY_FACILITATOR_HEADERS: what is taken, and what is refused without showing it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.contract.environment import load_settings
from relay.contract.errors import ConfigurationError

SECRET = "s3cret"


def headers(text):
    return load_settings({"RELAY_FACILITATOR_HEADERS": text}, None).facilitator.upgrade_headers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("X-Validator-Version: 1.2.3", [("X-Validator-Version", "1.2.3")]),
        ("A:1;B: 2 ;  C :3;", [("A", "1"), ("B", "2"), ("C", "3")]),
        ("Authorization: Basic dTpw=, x:y", [("Authorization", "Basic dTpw=, x:y")]),
        ("X-Key: " + "k" * 4089, [("X-Key", "k" * 4089)]),
    ],
)
def test_taken(text, expected):
    """Several headers are separated by semicolons; spaces around names and values do not count."""
    assert tuple(expected) == headers(text)


def test_none():
    """Without the setting there are no further headers."""
    assert () == load_settings({}, None).facilitator.upgrade_headers


@pytest.mark.parametrize(
    "text",
    [
        *(
            ";",
            SECRET,
            f"A {SECRET}: b",
            f"A: {SECRET}; B",
            f": {SECRET}",
            "A:",
            f"A: {SECRET}; A: 2",
            f"A: 1; a: {SECRET}",
        ),
        *(f"A: {SECRET}\r\nB: 2", f"A: {SECRET}\nB: 2", f"A\r\n: {SECRET}", f"A: {SECRET}\0b", f"A: {SECRET}\x7fb"),
        *(f"A: {SECRET}é", f"Ä: {SECRET}", f"A\t: {SECRET}", f"A: {SECRET}\tb", f"A: {SECRET}" + "x" * 4096),
        *(f"{name}: {SECRET}" for name in ("Host", "UPGRADE", "connection", "Content-Length", "Transfer-Encoding")),
        *(f"{name}: {SECRET}" for name in ("Sec-WebSocket-Key", "sec-websocket-protocol", "TE", "Expect")),
    ],
)
def test_refused(text):
    """A malformed header, one that is there twice, and one of the connection itself are refused, and not shown."""
    with pytest.raises(
        ConfigurationError, match=r"^RELAY_FACILITATOR_HEADERS='\*\*\*' is not allowed: headers"
    ) as told:
        headers(text)
    assert SECRET not in str(told.value) + repr(told.value)


@given(st.text())
def test_any_text(text):
    """Whatever the text, it is refused, or gives headers that are one printable line each."""
    try:
        taken = headers(text)
    except ConfigurationError:
        return
    assert all(f"{name}: {value}".isascii() and f"{name}: {value}".isprintable() for name, value in taken)
