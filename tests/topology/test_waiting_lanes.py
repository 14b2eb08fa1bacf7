"""New lanes that wait for old ones, and whose consumers are deleted meanwhile."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from test_provision import consumer_info, publish, relayed, stream_config

from relay.contract import subjects
from relay.nats.jetstream import api_request
from relay.topology.lane_growth import RAISED_KEY, WAITS_KEY, lanes_before, raised_from
from relay.topology.provision import provision, resume_lanes

JOBS = [str(UUID(int=number)) for number in range(20)]


async def delete_consumer(nc, lane: int) -> None:
    await api_request(nc, subjects.api_consumer_delete("JOB_STATUS", subjects.lane_consumer(lane)))


async def wait_of(nc, lane: int) -> tuple[bool, str | None]:
    """Whether the consumer is paused, and for which lane it waits."""
    info: dict[str, Any] = await consumer_info(nc, subjects.lane_consumer(lane))
    waits: str | None = info["config"]["metadata"].get(WAITS_KEY)
    return info.get("paused", False), waits and waits.partition(" ")[0]


async def test_a_waiting_consumer_that_is_deleted_waits_again(nc, topology):
    """Made anew, it waits as well, so that no update of its jobs overtakes older ones; also if the lanes are raised
    again meanwhile. When nothing waits any more, the lanes flow, and everything was delivered once.
    """
    await provision(nc, replace(topology, lanes=2))
    await publish(nc, JOBS, b"old")
    for lanes, deleted in ((4, [(2, "0")]), (8, [(6, "2"), (3, "1")])):
        await provision(nc, replace(topology, lanes=lanes))
        for lane, before in deleted:
            await delete_consumer(nc, lane)
            await provision(nc, replace(topology, lanes=lanes))
            assert (True, before) == await wait_of(nc, lane)
    await publish(nc, JOBS, b"new")
    delivered: list[tuple[str, bytes]] = []
    while waiting := await resume_lanes(nc):
        delivered += await relayed(nc, [lane for lane in range(8) if not (await wait_of(nc, lane))[0]])
        assert len(await resume_lanes(nc)) < len(waiting)
    delivered += await relayed(nc, range(8))
    assert sorted([(job, body) for job in JOBS for body in (b"new", b"old")]) == sorted(delivered)
    assert all(delivered.index((job, b"old")) < delivered.index((job, b"new")) for job in JOBS)
    assert [(False, None)] * 8 == [await wait_of(nc, lane) for lane in range(8)]


async def test_what_the_stream_notes(nc, topology):
    """It notes from which numbers lanes were raised while any waited; fewer lanes end that. Other labels are kept."""
    await provision(nc, replace(topology, lanes=2))
    config = await stream_config(nc, "JOB_STATUS")
    await api_request(nc, subjects.api_stream_update("JOB_STATUS"), config | {"metadata": {"team": "jobs"}})
    noted: list[str | None] = []
    for lanes in (4, 8, 3):
        await provision(nc, replace(topology, lanes=lanes))
        metadata: dict[str, str] = (await stream_config(nc, "JOB_STATUS"))["metadata"]
        assert "jobs" == metadata["team"]
        noted.append(metadata.get(RAISED_KEY))
    assert ["2", "4", None] == noted


@pytest.mark.parametrize(("lane", "before"), [(0, None), (1, None), (2, 2), (3, 2), (4, 4), (7, 4)])
def test_lanes_before(lane, before):
    """A lane was made by the last raise from a number that it exceeds."""
    assert before == lanes_before(lane, (2, 4))


@pytest.mark.parametrize("text", ["", "0", "0 2", "2,4", "x", "-2", "2 ", "22222"])
def test_notes_that_nobody_understands(text):
    """They count as none: the metadata of a stream can be changed by anybody."""
    assert () == raised_from({"metadata": {RAISED_KEY: text}})
