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


def with_blanks(body):
    """The same update as Python's `json` spells it by default, but for letters that are not ASCII."""
    return json.dumps(json.loads(body), ensure_ascii=False).encode()


@st.composite
def spliced(draw):
    """Bytes that are nearly an update: with a piece put in, left out, or copied to another place."""
    body = draw(st.sampled_from([update(RESPONSE, LEFT_OPEN), with_blanks(update(RESPONSE, LEFT_OPEN))]))
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


def output(text):
    return compact({"miner_response": {"docker_process_stderr": "", "docker_process_stdout": text}})[1:-1]


@settings(max_examples=500)
@given(body=bodies)
def test_what_is_read_in_the_short_way_is_read_alike_in_the_long_one(body):
    short = wire._plain(body)
    event("short" if short is not None else "long")
    if short is not None:
        tree = wire._parse(body)
        assert "payload" not in tree
        assert "\\u0000" not in json.dumps(tree).replace("\\\\", "")
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
        b'"x":' + b"[" * 5000 + b"]" * 5000,
        b'"x":"a\\u0000b"',
        output("\n" * 100_000 + "\0"),
        output("\n" * 100_000) + b',"x":{"a\\u0000b":1}',
    ],
)
@pytest.mark.parametrize("colon", [b'":', b'": '])
def test_what_needs_a_closer_look_takes_the_long_way(member, colon):
    assert wire._plain(update(member).replace(b'":', colon)) is None


@pytest.mark.parametrize("spelled", [bytes, with_blanks])
@pytest.mark.parametrize("member", [RESPONSE, LEFT_OPEN, output("{'a': [1]}\n\x1b[0m\u00e9" * 10_000)])
def test_the_usual_update_takes_the_short_way(member, spelled):
    assert wire._plain(spelled(update(member))) is not None
