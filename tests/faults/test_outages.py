"""Outages of the Facilitator in virtual time: when are all workers back, and how often do they try to connect?

Real workers of the relay, with leases, lanes and connections, as in test_simulation.py.
"""

import random
import uuid
from bisect import bisect_left

import pytest
from simulation.schedule import Fault, Kind, Publish, Schedule, Temper
from simulation.world import World

from relay.contract.subjects import lane_of

BACK_WITHIN_S = 5.0
TRIES_PER_S = 20
LOST_S = 5.0
"""When the outage begins."""
HANDSHAKE_S = 0.5
"""For connecting, signing in and sending; a message takes 1 ms, and some take 0.4 s longer."""


def outage(workers, kind, lasts_s, code=None):
    """A schedule: a worker for each lane, an outage, and shortly before its end an update for each lane."""
    rng = random.Random(workers)
    starts = [Fault(number * 0.01, Kind.START, number, 0.0, 0, None) for number in range(workers)]
    return Schedule(
        workers,
        lanes=workers,
        capacity=16,
        window=32,
        connections=1,
        ack_wait_s=60.0,
        lease_ttl_s=9.0,
        memory_bytes=64 * 2**20,
        publishes=tuple(_update(rng, lane, workers, LOST_S + lasts_s - 0.1) for lane in range(workers)),
        faults=(*starts, Fault(LOST_S, kind, 0, lasts_s, 0, code)),
    )


def _update(rng, lane, lanes, at_s):
    while lane_of(job := str(uuid.UUID(int=rng.getrandbits(128), version=4)), lanes) != lane:
        pass
    return Publish(at_s, f"lane-{lane}", job, "accepted", Temper.WELL, 0.0)


def most_in_a_second(times):
    return max(bisect_left(times, begin + 0.999) - number for number, begin in enumerate(times))


@pytest.mark.parametrize("kind", [Kind.FACILITATOR_AWAY, Kind.FACILITATOR_DOWN, Kind.FACILITATOR_HANGS_UP])
@pytest.mark.parametrize(("workers", "lasts_s"), [(1, 3.0), (1, 300.0), (3, 10.0), (30, 10.3)])
def test_back_soon(kind, workers, lasts_s):
    """However the Facilitator is away, and however long, every worker sends within 5 s of its return.

    Connections are refused, or dropped at the sign-in, or dropped as soon as they are made. All together try to connect
    at most 20 times in any second, also in the moment in which all lose it.
    """
    world = World(outage(workers, kind, lasts_s))
    result = world.run()
    tried = [at_s for at_s in world.facilitator.tried_s if at_s > world.began_s + LOST_S]
    assert [] == result.broken
    assert LOST_S + lasts_s <= result.took_s <= LOST_S + lasts_s + BACK_WITHIN_S + HANDSHAKE_S
    assert most_in_a_second(tried) <= TRIES_PER_S
