"""Faults of the network on both sides of the relay: slow, in small pieces, silently gone, cut within a message.

Tests that expect each update to be sent once check the Facilitator's replies: one success for each update.
"""

import contextlib
import gc
import random

import pytest
from load_kit import steadily_published
from relay_kit import PROBE, Scene, counters
from rough_proxy import RoughProxy, Way, port_of

from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer
from relay.nats import connection as connection_to_nats
from relay.service.intervals import DEFAULTS, Intervals

REPLY_TIMEOUT_S = 0.5
CLOSE_TIMEOUT_S = 2
"""How long the relay waits for the other side's close frame before it closes the socket."""

# nats-py leaves the socket of a connection that is cut during the handshake to the garbage collector, which warns.
pytestmark = pytest.mark.filterwarnings("ignore:.*StreamWriter:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collected():
    """Collect a test's garbage before the next test, so that warnings belong to the right one."""
    yield
    gc.collect()


@contextlib.asynccontextmanager
async def between(target, *, service_time_s=0.001, proxied=None, intervals=DEFAULTS, **variables):
    """A scene and a relay in this process that reaches `target` (`nats` or `facilitator`) through a proxy."""
    async with (
        NatsServer() as server,
        FacilitatorSimulator(service_time_s=service_time_s) as facilitator,
        Scene(server, facilitator, **{"ACK_WAIT": "1"} | variables) as scene,
        RoughProxy(port_of(server.url if target == "nats" else facilitator.url), **proxied or {}).serving() as proxy,
    ):
        url = {"NATS_URL": proxy.nats_url} if target == "nats" else {"FACILITATOR_URL": proxy.facilitator_url}
        async with scene.relay(intervals=intervals, **url) as relay:
            yield scene, proxy, relay


async def stored(scene, count):
    """Wait until the Facilitator has stored this many updates."""
    await scene.facilitator.wait_for(lambda facilitator: len(facilitator.rows) >= count, 20)


def sent_once(scene, connections=1):
    """The replies of a Facilitator that saw each update once, over this many connections."""
    return {"success": len(scene.published), PROBE: connections}


# The Facilitator's side.


async def test_facilitator_byte_by_byte():
    """Handshake and frames are read correctly if each byte arrives by itself."""
    async with between("facilitator", proxied={"slice_bytes": 1}) as (scene, _, _):
        await scene.publish_lives(5)
        broken = await scene.broken_promises(20)
    assert [] == broken
    assert sent_once(scene) == dict(scene.facilitator.replies)


async def test_facilitator_far_away():
    """If answers take long to arrive, the relay waits for them, and sends more updates meanwhile."""
    async with between("facilitator", proxied={"delay_s": 0.1}) as (scene, _, relay):
        await scene.publish_lives(20)
        broken = await scene.broken_promises(20)
    assert [] == broken
    assert sent_once(scene) == dict(scene.facilitator.replies)
    assert 0 == counters(relay)["relay_retries"]


async def test_facilitator_half_open_under_load():
    """If the Facilitator vanishes silently, the connection is closed at the reply timeout, and no update is blamed."""
    variables = {"FACILITATOR_REPLY_TIMEOUT": f"{REPLY_TIMEOUT_S}", "MAX_ATTEMPTS": "1"}
    async with between("facilitator", **variables) as (scene, proxy, relay):
        await scene.publish_lives(40)
        await stored(scene, 60)
        proxy.go_silent()
        await scene.facilitator.wait_for(
            lambda facilitator: facilitator.accepted == 2, REPLY_TIMEOUT_S + CLOSE_TIMEOUT_S + 2
        )
        broken = await scene.broken_promises(20)
    assert [] == broken
    assert 0 == counters(relay)["relay_retries"]


async def test_facilitator_half_open_while_idle():
    """If the Facilitator vanishes while nothing is sent, the keepalive notices it before an update is sent."""
    often = Intervals(facilitator_ping_s=0.3)
    async with between("facilitator", intervals=often, FACILITATOR_REPLY_TIMEOUT=f"{REPLY_TIMEOUT_S}") as (
        scene,
        proxy,
        _,
    ):
        await scene.publish_lives(1)
        await scene.dust_settled()
        proxy.go_silent()
        await scene.facilitator.wait_for(lambda facilitator: facilitator.accepted == 2, 8)
        await scene.publish_lives(1)
        broken = await scene.broken_promises()
    assert [] == broken
    assert sent_once(scene, connections=2) == dict(scene.facilitator.replies)


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize(("way", "within_a_frame"), [(Way.UP, 70), (Way.DOWN, 20)], ids=["update", "answer"])
async def test_facilitator_cut_in_mid_frame(way, within_a_frame, reset):
    """Half an update is sent again whole, half an answer is ignored, and a cut costs one attempt at most."""
    async with between("facilitator") as (scene, proxy, relay):
        await scene.publish_lives(40)
        await stored(scene, 60)
        await proxy.cut_after(way, within_a_frame, reset=reset)
        broken = await scene.broken_promises(20)
    assert [] == broken
    assert 2 == scene.facilitator.accepted
    assert counters(relay)["relay_retries"] <= 1


# The side of NATS.


async def test_nats_in_slices():
    """Deliveries and acknowledgements stay intact if NATS's bytes arrive a few at a time, in both directions."""
    async with between("nats", proxied={"slice_bytes": 5}) as (scene, proxy, _):
        await scene.publish_lives(5)
        broken = await scene.broken_promises(20)
    assert [] == broken
    assert sent_once(scene) == dict(scene.facilitator.replies)
    assert 1 == proxy.connections


async def test_nats_far_away():
    """With a slow connection to NATS updates are still relayed, each sent once."""
    async with between("nats", proxied={"delay_s": 0.05}) as (scene, _, _):
        await scene.publish_lives(20)
        broken = await scene.broken_promises(20)
    assert [] == broken
    assert sent_once(scene) == dict(scene.facilitator.replies)


async def test_nats_cut_in_mid_message():
    """If the connection to NATS is cut again and again, within any message, no update is sent twice."""
    rng = random.Random(1)
    async with between("nats") as (scene, proxy, _):
        async with steadily_published(scene, backlog=100):
            for cut in range(4):
                await stored(scene, 100 * (cut + 1))
                await proxy.cut_after(rng.choice(list(Way)), rng.randrange(1, 500), reset=rng.random() < 0.5)
        broken = await scene.broken_promises(20)
    assert [] == broken
    assert sent_once(scene) == dict(scene.facilitator.replies)
    assert 5 == proxy.connections


@pytest.mark.parametrize("lease", ["kept", "lost"])
async def test_nats_half_open(monkeypatch, capsys, lease):
    """If NATS vanishes silently under load, missing pongs reveal it, whether the lanes are lost meanwhile or not; if
    they are kept, nothing is sent twice.
    """
    monkeypatch.setitem(connection_to_nats._TIMING, "ping_interval", 0.4)
    async with between("nats", LEASE_TTL="5" if lease == "kept" else "0.5") as (scene, proxy, _):
        async with steadily_published(scene, backlog=100):
            await stored(scene, 60)
            proxy.go_silent()
            await proxy.joined(2)
            await stored(scene, len(scene.facilitator.rows) + 200)
        broken = await scene.broken_promises(20)
    assert [] == broken
    assert (lease == "lost") == ("lane lost" in capsys.readouterr().out)
    if lease == "kept":
        assert sent_once(scene) == dict(scene.facilitator.replies)


async def test_acknowledgements_lost():
    """Updates whose acknowledgements are lost come again, and are acknowledged without being sent again."""
    async with between("nats", ACK_WAIT="0.5") as (scene, proxy, _):
        proxy.edit = lambda sent: sent.replace(b"PUB $JS.ACK.", b"PUB $XX.ACK.")  # a subject without subscribers
        updates = await scene.publish_lives(20)
        await stored(scene, len(updates))
        lost = await scene.unsettled()
        proxy.edit = lambda sent: sent
        broken = await scene.broken_promises(20)
    assert [] == broken
    assert len(updates) == lost
    assert sent_once(scene) == dict(scene.facilitator.replies)
