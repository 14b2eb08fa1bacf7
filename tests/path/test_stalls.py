"""Lanes whose requests a real nats-server limits, holds back or never gets: adapted to, or reported."""

from typing import Any

import pytest
from relay_kit import ACKED, Scene, missing, new_job, said
from tcp_proxy import TcpProxy

from relay.contract import subjects
from relay.local.server import NatsServer
from relay.nats.jetstream import api_request
from relay.service.intervals import Intervals

SOON = Intervals(stalled_after_s=0.4)
LIMITED = "jetstream: {store_dir: store, limits: {max_request_batch: 100}}"
NS = 1_000_000_000


async def test_a_limit_of_the_server(facilitator):
    """A server that limits the batch of each request is asked for less, and everything is relayed."""
    async with (
        NatsServer(jetstream=False, extra_config=LIMITED) as server,
        Scene(server, facilitator) as scene,
        scene.relay() as relay,
    ):
        updates = [await scene.publish(new_job()) for _ in range(12)]
        assert [ACKED] * 12 == await scene.settled(*updates)
        assert {"ready": True, "missing": []} == await relay.worker_status.readiness()


@pytest.mark.parametrize(
    "limits", [{"max_batch": 1}, {"max_batch": 50}, {"max_expires": NS // 2}, {"max_bytes": 2000}], ids=str
)
async def test_a_limit_of_a_consumer(nats_server, facilitator, limits):
    """A lane's consumer that limits requests is asked for less, and everything is relayed."""
    async with Scene(nats_server, facilitator) as scene:
        await change_lane(scene, **limits)
        async with scene.relay():
            updates = [await scene.publish(new_job(0)) for _ in range(12)]
            assert [ACKED] * 12 == await scene.settled(*updates)


async def change_lane(scene: Scene, **options: Any) -> None:
    name = subjects.lane_consumer(0)
    info = await api_request(scene.nc, subjects.api_consumer_info(subjects.STATUS_STREAM, name))
    request = subjects.api_consumer_create(subjects.STATUS_STREAM, name, subjects.lane_filter(0))
    config = info["config"] | options
    await api_request(scene.nc, request, {"stream_name": subjects.STATUS_STREAM, "config": config, "action": "update"})


async def test_a_paused_lane(nats_server, facilitator):
    """A paused lane with a backlog is not ready and says until when; after the pause everything is relayed."""
    async with Scene(nats_server, facilitator) as scene, scene.relay(intervals=SOON) as relay:
        pause = "$JS.API.CONSUMER.PAUSE.JOB_STATUS.relay-lane-0"
        await api_request(scene.nc, pause, {"pause_until": "2030-01-01T00:00:00Z"})
        waiting = await scene.publish(new_job(0))
        told = await missing(relay, "none was given")
        await api_request(scene.nc, pause, {"pause_until": "2020-01-01T00:00:00Z"})
        assert [ACKED] == await scene.settled(waiting)
        await said(relay, lambda told: told["ready"])
    assert "lane 0" in told
    assert "its consumer is paused until 2030-01-01T00:00:00Z" in told


@pytest.mark.parametrize("answered", [True, False], ids=["answered with 503", "swallowed"])
async def test_a_cause_that_nobody_has_thought_of(nats_server, facilitator, answered):
    """Whatever keeps the server from giving updates: a lane with a backlog that gets nothing is not ready."""
    hindered = True

    def edit(sent: bytes) -> bytes:
        return sent.replace(b"$JS.API.CONSUMER.MSG.NEXT.", b"SWALLOWED.") if hindered else sent

    async with Scene(nats_server, facilitator) as scene:
        if not answered:
            await scene.nc.subscribe("SWALLOWED.>")
        proxy = TcpProxy(nats_server.port, edit)
        async with proxy.serving(), scene.relay(intervals=SOON, NATS_URL=proxy.url) as relay:
            await scene.publish_lives(10)
            told = await said(relay, lambda told: any("none was given for" in each for each in told["missing"]))
            hindered = False
            await said(relay, lambda told: told["ready"])
            assert [] == await scene.broken_promises()
    assert not told["ready"]
