"""The Facilitator stalls with a full window. For as long as the real one was seen to stall:

STALL_S=45 python -m pytest tests/faults/test_stall.py --timeout 120
"""

import asyncio
import os

import pytest
from relay_kit import PROBE, Scene, counters, gauges, new_job

from relay.local.facilitator import FacilitatorSimulator
from relay.local.faults import stall
from relay.local.server import NatsServer

STALL_S = float(os.environ.get("STALL_S", "2.25"))
PING_S = STALL_S * 20 / 45
"""The Facilitator's ping interval and its limit for pongs are shortened like the stall."""
WINDOW = 32


@pytest.mark.timeout(60 + 2 * STALL_S)
async def test_stall_with_a_full_window():
    """A Facilitator that stalls with a full window, for longer than it waits for pongs, still reads: the connection
    lasts, and each update is sent once.
    """
    async with (
        NatsServer() as server,
        FacilitatorSimulator(ping_interval_s=PING_S, ping_timeout_s=PING_S) as facilitator,
        Scene(server, facilitator, ACK_WAIT="1") as scene,
        scene.relay() as relay,
    ):
        stalled = facilitator.inject(stall(STALL_S))
        updates = await asyncio.gather(*(scene.publish(new_job()) for _ in range(2 * WINDOW)))
        await scene.kept(updates[-1])
        in_flight, stored = gauges(relay)["relay_in_flight"], len(facilitator.rows)
        await scene.settled(*updates, timeout_s=STALL_S + 10)
        broken = await scene.broken_promises()
    assert (1, WINDOW, 0) == (stalled.hits, in_flight, stored)
    assert [] == broken
    assert {"success": 2 * WINDOW, PROBE: 1} == dict(facilitator.replies)
    assert 0 == counters(relay)["relay_retries"]
