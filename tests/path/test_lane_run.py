"""What a lane that is driven reports."""

import asyncio
import time
from types import SimpleNamespace

import pytest
from delivery_kit import FakeDelivery

from relay.core.memory import Memory
from relay.core.server_clock import ServerClock
from relay.core.update import DeadLetterHorizon
from relay.observability.metrics import Metrics
from relay.path.lane_run import LaneRun
from relay.path.limits import LaneLimits
from relay.path.outlets import Outlets
from relay.timing.clock import monotonic


@pytest.mark.parametrize(("stored_ago_s", "expected"), [(300, 300), (-3600, 120)], ids=["as usual", "clock set back"])
def test_the_age_of_the_oldest_update(stored_ago_s, expected):
    """It counts from when the update was stored; if that is in the future, from when it was delivered."""
    source = SimpleNamespace(trouble=None, top_up=lambda: None)
    limits = LaneLimits(capacity=8, ack_wait_s=5.0, memory=Memory(), clock=ServerClock())
    run = LaneRun(
        *(0, lambda *_, **__: source, DeadLetterHorizon(), Outlets(lambda: None), asyncio.Event()),
        limits=limits,
        metrics=Metrics(lanes=1),
    )
    run.lane.admit([FakeDelivery(1, stored_at_s=time.time() - stored_ago_s)], monotonic() - 120)
    assert expected == round(run.report().oldest_at_hand_s)
