"""What probes and metrics show in various situations of a relay."""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from polling import until
from process_kit import ask
from relay_kit import ACKED, Scene, counters, gauges, lane_changes, new_job

from relay.contract.environment import load_settings
from relay.core.server_clock import ServerClock
from relay.facilitator.websocket import WebSocket
from relay.leases.lane_count import LaneCount
from relay.leases.ownership import Ownership
from relay.local.faults import stall
from relay.local.ledger import DROPPED
from relay.observability.metrics import Metrics
from relay.path.backlog import Backlog
from relay.service.app import Relay
from relay.topology.provision import provision, topology_of

TIMEOUT_S = 10
NOBODY = "ws://127.0.0.1:1/ws/v0/"
LANES_CHANGED_TO = {
    "4": "in lanes 2 to 3 updates wait for relays that know them",
    "1": "in lane 1 there are no updates any more",
}
"""The relay has two lanes. What it reports when their number is changed to this one."""


async def look_until(looked_at: Backlog | LaneCount, condition: Callable[[], bool]) -> None:
    """Look until the condition holds, as the relay does every five seconds."""

    async def look() -> bool:
        await looked_at._look()
        return condition()

    await until(look)


def looking_at_backlog(scene: Scene, relay: Relay) -> Callable[..., Any]:
    return partial(look_until, Backlog(scene.nc, relay.worker_status.lanes, relay.metrics))


def of(relay: Relay, name: str, lanes: int = 4) -> list[float | None]:
    """The values of a gauge, lane by lane; None where it has none."""
    now = gauges(relay)
    return [now.get(f"{name} {lane}") for lane in range(lanes)]


async def test_backlog_that_is_not_pulled(nats_server, facilitator):
    """With the Facilitator away, lag and age include updates that were not pulled; both are 0 when all is settled."""
    async with Scene(nats_server, facilitator) as scene:
        await facilitator.away()
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        updates = [await scene.publish(new_job(lane)) for lane in (1, 1, 3)]
        async with scene.relay() as relay:
            until = looking_at_backlog(scene, relay)
            await until(lambda: of(relay, "relay_lag") == [0, 2, 0, 1])
            # The age is on the server's clock, which is this machine's, and in milliseconds.
            oldest_s = of(relay, "relay_oldest_unrelayed_seconds")
            assert loop.time() - began_s + 0.01 > max(oldest_s)
            assert min(oldest_s[1], oldest_s[3]) > 0
            assert [0, 0] == [oldest_s[0], oldest_s[2]]
            assert of(relay, "relay_at_hand") == [0, 0, 0, 0]
            await until(lambda: of(relay, "relay_oldest_unrelayed_seconds")[3] > 0.3)
            await facilitator.back()
            assert await scene.settled(*updates) == [ACKED] * 3
            await until(lambda: of(relay, "relay_lag") == [0, 0, 0, 0])
            assert of(relay, "relay_oldest_unrelayed_seconds") == [0, 0, 0, 0]


async def test_one_stuck_job(nats_server, facilitator):
    """A job that is retried again and again is the lane's whole lag and determines its age, while other jobs go on."""
    async with Scene(nats_server, facilitator, MAX_ATTEMPTS="1000") as scene, scene.relay() as relay:
        until = looking_at_backlog(scene, relay)
        stuck = new_job(0)
        facilitator.unknown_jobs.add(stuck)
        await scene.publish(stuck)
        others = [await scene.publish(new_job(0)) for _ in range(50)]
        assert await scene.settled(*others) == [ACKED] * 50
        await until(lambda: of(relay, "relay_lag") == [1, 0, 0, 0])
        first_s = of(relay, "relay_oldest_unrelayed_seconds")[0]
        await until(lambda: of(relay, "relay_oldest_unrelayed_seconds")[0] > first_s > 0)
        facilitator.unknown_jobs.clear()
        await until(lambda: of(relay, "relay_lag") == [0, 0, 0, 0])


@pytest.mark.parametrize("ahead_s", [-7200, 7200])
async def test_clock_hours_off(nats_server, facilitator, after, monkeypatch, ahead_s):
    """With this machine's clock two hours off, ages and latencies are right, and the difference is reported."""
    real_s, told = time.time, after(ServerClock, "told")
    monkeypatch.setattr(time, "time", lambda: real_s() + ahead_s)
    quick = {"MAX_ATTEMPTS": "1000", "RECEIPTS": "true"}
    async with Scene(nats_server, facilitator, **quick) as scene, scene.relay() as relay:
        receipts = await scene.nc.subscribe("job.relayed.*")
        until = looking_at_backlog(scene, relay)
        await told(lambda: relay.worker_status.server_clock.ahead_s != 0)
        stuck = new_job(2)
        facilitator.unknown_jobs.add(stuck)
        update = await scene.publish(stuck)
        await until(lambda: (of(relay, "relay_oldest_unrelayed_seconds")[2] or 0) > 0.3)
        assert of(relay, "relay_oldest_unrelayed_seconds")[2] < TIMEOUT_S
        facilitator.unknown_jobs.clear()
        await scene.settled(update)
        assert -ahead_s == round(gauges(relay)["relay_nats_clock_ahead_seconds"])
        assert 0 < relay.metrics.timings()["end_to_end"].sum_s < 2 * TIMEOUT_S
        relayed_ms = json.loads((await receipts.next_msg(timeout=TIMEOUT_S)).data)["relayed_ms"]
        assert 0 < relayed_ms < 2000 * TIMEOUT_S


async def test_clock_off_and_not_corrected(nats_server, facilitator, monkeypatch):
    """If a difference is small, or not known yet, no latency is less than what passed since the delivery."""
    real_s = time.time
    monkeypatch.setattr(time, "time", lambda: real_s() - 1000)
    monkeypatch.setattr(ServerClock, "told", lambda *_: None)
    async with Scene(nats_server, facilitator, RECEIPTS="true") as scene, scene.relay() as relay:
        receipts = await scene.nc.subscribe("job.relayed.*")
        await scene.settled(*[await scene.publish(new_job()) for _ in range(3)])
        relayed_ms = [json.loads((await receipts.next_msg(timeout=TIMEOUT_S)).data)["relayed_ms"] for _ in range(3)]
        assert 0 < min(relayed_ms)
        assert 0 < relay.metrics.timings()["end_to_end"].sum_s


async def test_age_while_nats_is_away(nats_server, facilitator):
    """While NATS cannot be asked, a lane's oldest update grows older, and settled updates stay settled."""
    async with Scene(nats_server, facilitator, LEASE_TTL="60", MAX_ATTEMPTS="1000") as scene, scene.relay() as relay:
        until = looking_at_backlog(scene, relay)
        stuck = new_job(2)
        facilitator.unknown_jobs.add(stuck)
        await scene.publish(stuck)
        await until(lambda: of(relay, "relay_lag") == [0, 0, 1, 0])
        await nats_server.kill()
        seen_s = of(relay, "relay_oldest_unrelayed_seconds")[2]
        await until(lambda: of(relay, "relay_oldest_unrelayed_seconds")[2] > seen_s + 0.1)
        assert [0, 0] == of(relay, "relay_oldest_unrelayed_seconds")[:2]
        await nats_server.start()
        facilitator.unknown_jobs.clear()
        await until(lambda: of(relay, "relay_lag") == [0, 0, 0, 0])


async def test_nats_away_is_said_once(nats_server, facilitator, after):
    """While NATS is away, this is reported once, not for each lane; the reconnect is counted."""
    back, shared = after(Relay, "_on_reconnected"), after(Ownership, "_rebalance")
    async with Scene(nats_server, facilitator, LEASE_TTL="1") as scene, scene.relay() as relay:
        await shared(lambda: relay.worker_status.missing() == [])
        assert (1, 1) == (gauges(relay)["relay_nats_connected"], gauges(relay)["relay_facilitator_connected"])
        away = f"the connection to NATS at {nats_server.url} is lost; trying to reconnect"
        await nats_server.kill()
        await shared(lambda: relay.worker_status.missing() != [])
        assert [True] == [each.startswith(away) for each in relay.worker_status.missing()]
        assert (0, 0) == (gauges(relay)["relay_nats_connected"], gauges(relay)["relay_ready"])
        await nats_server.start()
        await back(lambda: counters(relay)["relay_nats_reconnects"] == 1)
        await scene.reconnected()
        assert await scene.settled(await scene.publish(new_job())) == [ACKED]
        await shared(lambda: relay.worker_status.missing() == [])
        assert (1, 1) == (gauges(relay)["relay_nats_connected"], gauges(relay)["relay_ready"])


async def test_nats_away_at_the_start(nats_server, facilitator, monkeypatch):
    """A relay that is started while NATS is away is there soon after NATS, however long retries of updates wait."""
    waits = asyncio.Event()
    monkeypatch.setattr(Relay, "_wait_for", lambda *_: waits.set())

    async def bring_back() -> None:
        await waits.wait()
        await nats_server.start()

    async with Scene(nats_server, facilitator) as scene:
        await nats_server.stop()
        back = asyncio.create_task(bring_back())
        async with asyncio.timeout(TIMEOUT_S), scene.relay(BACKOFF_INITIAL="3600", BACKOFF_MAX="3600"):
            await back
            await scene.reconnected()
            assert await scene.settled(await scene.publish(new_job())) == [ACKED]


async def test_place_among_the_workers(nats_server, facilitator, after):
    """Two workers learn from the leases which of them is which; before that, each takes one of many places."""
    alone = Relay(load_settings({"RELAY_HTTP_PORT": "0"}, None), None)
    with contextlib.closing(alone._health):
        assert 100 == alone._place().workers
    shared = after(Ownership, "_rebalance")
    async with Scene(nats_server, facilitator, LEASE_TTL="1") as scene, scene.relay() as first, scene.relay() as second:
        await shared(lambda: sorted([first._place(), second._place()]) == [(0, 2), (1, 2)])


async def test_standing_by(nats_server, facilitator, after):
    """A worker without a lane is ready, even with the Facilitator away; a worker with a lane is not."""
    shared = after(Ownership, "_rebalance")
    async with Scene(nats_server, facilitator, LANES="1", LEASE_TTL="1") as scene, scene.relay() as first:
        await shared(lambda: of(first, "relay_lane_owned", 1) == [1])
        await looking_at_backlog(scene, first)(lambda: of(first, "relay_lag", 1) == [0])
        async with scene.relay(FACILITATOR_URL=NOBODY) as second:
            await shared(lambda: second.worker_status.missing() == [])
            assert ([0], 1) == (of(second, "relay_lane_owned", 1), gauges(second)["relay_ready"])
            unseen = [of(second, name, 1) for name in ("relay_lag", "relay_oldest_unrelayed_seconds")]
            assert [[None], [None]] == unseen, "only the owner of a lane knows this"
            lost = after(Metrics, "connection_lost")
            await facilitator.away(DROPPED)
            await lost(lambda: first.worker_status.missing() != [])
            assert [True] == ["the Facilitator" in each for each in first.worker_status.missing()]
            assert [] == second.worker_status.missing()


async def test_lanes_change_hands(nats_server, facilitator, after):
    """Each lane that is taken is counted by how: it was free, handed over, or its lease had expired."""
    shared = after(Ownership, "_rebalance")
    async with Scene(nats_server, facilitator, LEASE_TTL="1") as scene, scene.relay() as first:
        await shared(lambda: of(first, "relay_lane_owned") == [1, 1, 1, 1])
        assert 4 == lane_changes(first)["relay_takeovers free"]
        async with scene.relay_process() as second:
            await scene.owned(lambda: len(scene.lanes_of(second)) == 2)
            await shared(lambda: sum(of(first, "relay_lane_owned")) == 2)
            assert 2 == lane_changes(first)["relay_lanes_left given_up"]
            second.kill()
            await shared(lambda: of(first, "relay_lane_owned") == [1, 1, 1, 1])
            assert 2 == lane_changes(first)["relay_takeovers expired"]
        async with scene.relay() as third:
            await shared(lambda: sum(of(third, "relay_lane_owned")) == 2)
            assert 2 == lane_changes(third)["relay_takeovers handed_over"]


@pytest.mark.parametrize("lanes", ["4", "1"])
async def test_lanes_changed_meanwhile(nats_server, facilitator, capsys, lanes):
    """If the number of lanes is changed under a relay, the relay goes on and is not ready; it logs once what this means
    and what to do. It is ready again when the number is the old one.
    """
    async with Scene(nats_server, facilitator, LANES="2") as scene, scene.relay() as relay:
        until = partial(look_until, relay.worker_status._parts.lane_count)
        await until(lambda: relay.worker_status.missing() == [])
        await provision(scene.nc, topology_of(load_settings(scene.environment | {"RELAY_LANES": lanes}, None).delivery))
        said = (
            f"stream JOB_STATUS has {lanes} lanes now, and this relay goes by 2: {LANES_CHANGED_TO[lanes]}; "
            f"restart every relay with RELAY_LANES={lanes}"
        )
        await until(lambda: said in relay.worker_status.missing())
        assert 200 == (await ask(relay.http_port, "/livez")).status
        assert 0 == gauges(relay)["relay_ready"]
        await relay.worker_status._parts.lane_count._look()  # and is still so
        await scene.provision()
        await until(lambda: relay.worker_status.missing() == [])
    assert 1 == capsys.readouterr().out.count(said)


async def test_window_use(nats_server, facilitator, after):
    """Unanswered updates are shown as a share of the window."""
    sent = after(WebSocket, "send")
    async with Scene(nats_server, facilitator, FACILITATOR_WINDOW="4") as scene, scene.relay() as relay:
        with facilitator.inject(stall()):
            for _ in range(3):
                await scene.publish(new_job())
            await sent(lambda: gauges(relay)["relay_in_flight"] == 3)
            assert 0.75 == gauges(relay)["relay_window_use_ratio"]


async def test_event_loop_lag(nats_server, facilitator, after):
    """The lag of the event loop is measured repeatedly, with a timer."""
    lagged = after(Metrics, "loop_lagged")
    async with Scene(nats_server, facilitator) as scene, scene.relay() as relay:
        samples = b"relay_event_loop_lag_seconds_count "
        await lagged(lambda: int(float(relay.metrics.render().split(samples)[1].split(b"\n")[0])) >= 2)
        assert samples in await relay.worker_status.exposition()
