"""The usual updates and answers are read in a short way. It must never differ from the long one."""

import json

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from relay.contract import wire

JOB = "123e4567-e89b-42d3-a456-426614174000"
RESPONSE = b'"miner_response":{"docker_process_stderr":"","docker_process_stdout":"42"}'
LEFT_OPEN = b'"x":[{"a":"\xc3\xa9 \\u001b\\n","b":1.5},-7,null,true]'
SPLICES = [
    b'"',
    b"\\",
    b"\\ud800",
    b"\\u00e9",
    b"\xff",
    b"\x00",
    b"1e999",
    b"-0.0",
    b"NaN",
    b"9" * 30,
    b"{}",
    b"[]",
    b" ",
]


def update(*members):
    fields = (JOB.encode(), b",".join(members))
    return b'{"message_type":"V0JobStatusUpdate","uuid":"%b","status":"accepted","metadata":{%b}}' % fields


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


@st.composite
def spliced(draw):
    """Bytes that are nearly an update: with a piece put in, left out, or copied to another place."""
    body = update(RESPONSE, LEFT_OPEN)
    for _ in range(draw(st.integers(0, 3))):
        start, cut = draw(st.integers(0, len(body))), draw(st.integers(0, 8))
        copied = draw(st.integers(0, len(body)))
        piece = draw(st.sampled_from(SPLICES) | st.binary(max_size=2)) or body[copied : copied + 9]
        body = body[:start] + piece + body[start + cut :]
    return body


texts = st.text(st.characters(codec="utf-8"), max_size=3)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
members = st.builds(
    lambda key, value: compact(key) + b":" + compact(value), st.sampled_from(["x", "y"]) | texts, values
)
bodies = spliced() | st.lists(members, max_size=4).map(lambda some: update(*some))


@settings(max_examples=500)
@given(body=bodies)
def test_what_is_read_in_the_short_way_is_read_alike_in_the_long_one(body):
    short = wire._plain(body)
    event("short" if short is not None else "long")
    if short is not None:
        assert "payload" not in wire._parse(body)
        assert short == wire._UPDATE.decode(body)


@pytest.mark.parametrize(
    "member",
    [
        b'"x":1,"x":1',
        b'"x":{"y":1,"y":2}',
        b'"x":1,"\\u0078":1',
        b'"x":1e999',
        b'"x":NaN',
        b'"x":"\xff"',
        b'"x":"\\ud800"',
        b'"x":' + b"[" * 201 + b"]" * 201,
    ],
)
def test_what_parsers_read_differently_takes_the_long_way(member):
    assert wire._plain(update(member)) is None


@pytest.mark.parametrize("member", [RESPONSE, LEFT_OPEN])
def test_the_usual_update_takes_the_short_way(member):
    assert wire._plain(update(member)) is not None
