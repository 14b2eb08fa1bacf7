import pytest

from relay.core.trace import TraceContext, parse_traceparent, traced, traceparent_of

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize("flags", [0, 1, 255])
def test_parsed(flags):
    """A traceparent gives the trace, the span and the flags."""
    context = TraceContext(int(TRACE, 16), int(SPAN, 16), flags)
    assert context == parse_traceparent(f"00-{TRACE}-{SPAN}-{flags:02x}")


@pytest.mark.parametrize("rest", ["", "-", "-what-comes-later"])
def test_later_version(rest):
    """Of an unknown later version, the known part is read."""
    assert TraceContext(int(TRACE, 16), int(SPAN, 16), 1) == parse_traceparent(f"cc-{TRACE}-{SPAN}-01{rest}")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "garbage",
        TRACEPARENT.upper(),
        f"{TRACEPARENT}-more",
        f" {TRACEPARENT}",
        f"{TRACEPARENT}\n",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}",
        f"cc-{TRACE}-{SPAN}-01\u00e9",
        "\u0660" + TRACEPARENT[1:],
    ],
)
def test_malformed(text):
    """A value that the standard does not allow is not a traceparent, and is not logged as one."""
    assert parse_traceparent(text) is None
    assert {} == traced({"traceparent": text})


def test_header():
    """The header is found in both spellings that clients use, even if it is empty, and becomes a field of log lines."""
    assert [TRACEPARENT, TRACEPARENT, "", None] == [
        traceparent_of(headers)
        for headers in ({"traceparent": TRACEPARENT}, {"Traceparent": TRACEPARENT}, {"traceparent": ""}, {"a": "b"})
    ]
    assert {"traceparent": TRACEPARENT} == traced({"Traceparent": TRACEPARENT})
    assert {} == traced({})
