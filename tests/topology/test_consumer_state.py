"""How old the oldest update of a lane is."""

from dataclasses import replace

from relay_kit import Scene, new_job

from relay.topology import consumer_state
from relay.topology.consumer_state import OldestUpdates, find_consumer_state


async def test_age_after_the_clock_was_set_back(nats_server, facilitator, monkeypatch):
    """An update that was stored in the future is as old as it has been seen; another one is seen anew."""
    ages: list[float | None] = []
    async with Scene(nats_server, facilitator) as scene:
        first = await scene.publish(new_job(0))
        await scene.publish(new_job(0))
        state = await find_consumer_state(scene.nc, 0, timeout_s=5)
        state = replace(state, told_at_s=state.told_at_s - 3600, ack_floor=first.sequence - 1)
        oldest = OldestUpdates(scene.nc, timeout_s=5)
        for now_s in (0.0, 10.0, 90.0, 200.0):
            monkeypatch.setattr(consumer_state, "monotonic", lambda now_s=now_s: now_s)
            ages.append(await oldest.age_s(0, state))
        ages.append(await oldest.age_s(0, replace(state, ack_floor=first.sequence)))
    assert [0.0, 10.0, 90.0, 200.0, 0.0] == ages
