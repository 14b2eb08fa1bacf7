"""What a delivery says of itself."""

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from relay.nats.messages import StoredMessage
from relay.path.delivery import Delivery

NS = 1_000_000_000
NO_CLIENT: Any = None


@given(st.integers(0, NS - 1).map(lambda ns: 1_795_900_000 * NS + ns))
@example(1_795_900_000_100_000_030)
def test_time_is_that_of_the_stored_message(stored_ns):
    """An owner compares the two: an update that was stored later than all that it knows of is unknown to it."""
    seconds, ns = divmod(stored_ns - 1_795_824_000 * NS, NS)
    time = f"2026-11-28T{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{ns:09}".rstrip("0") + "Z"
    reply = b"$JS.ACK.JOB_STATUS.relay-0.1.1.1.%d.0" % stored_ns
    delivery = Delivery(NO_CLIENT, b"job.status.0.x", reply, b"", b"")
    assert delivery.stored_at_s == StoredMessage("job.status.0.x", 1, time).stored_at_s
