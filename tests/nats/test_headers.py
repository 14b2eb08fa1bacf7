"""Headers of messages are read as nats-py reads them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client

from relay.nats.headers import parse_headers

PIECES = [b"A", b"Nats-Msg-Id", b":", b": ", b" ", b"\t", b"\x0b", b"\r\n", b"\n", b"\xff", "\u00e4".encode(), b"b c"]


@given(st.lists(st.sampled_from(PIECES)).map(b"".join))
async def test_as_the_client_reads_them(lines):
    """The headers are the same as nats-py's, which reads more slowly."""
    block = b"NATS/1.0\r\n" + lines + b"\r\n\r\n"
    assert (await Client()._process_headers(block) or {}) == parse_headers(block)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (b"NATS/1.0 503\r\n\r\n", {"Status": "503"}),
        (b"NATS/1.0 404 No Messages\r\n\r\n", {"Status": "404", "Description": "No Messages"}),
        (b"NATS/1.0 100 Idle Heartbeat\r\nA: 7\r\n\r\n", {"Status": "100", "Description": "Idle Heartbeat", "A": "7"}),
    ],
)
async def test_a_status(block, expected):
    """A status line of the server in place of headers is read as nats-py reads it."""
    assert expected == parse_headers(block) == await Client()._process_headers(block)


@pytest.mark.parametrize("block", [b"", b"NATS/1.0\r\n", b"NATS/1.0", b"\xff", b"NATS/1.0 \xff\r\n\r\n"])
def test_headers_that_nobody_can_read(block):
    """Unreadable headers are read as no headers, and nothing is raised."""
    assert {} == parse_headers(block)
