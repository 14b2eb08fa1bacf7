"""All faults at random for a while, then calm, then the oracle. A longer run, which prints a summary:

ROUGH_S=1200 ROUGH_SEED=7 python -m pytest tests/faults/test_rough_minute.py -s --timeout 1500
"""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter

import pytest
from load_kit import steadily_published
from relay_kit import Scene
from rough_proxy import RoughProxy, Way, port_of
from test_workers import Crew

from relay.local.facilitator import FacilitatorSimulator
from relay.local.faults import DROP_AFTER_STORING, DROP_BEFORE_STORING, answer_late, close_with, refuse, stall
from relay.local.server import NatsServer

ROUGH_S = float(os.environ.get("ROUGH_S", "6"))
SEED = int(os.environ.get("ROUGH_SEED", "1"))
HIT_ONE_IN = 20
"""One in this many updates is treated badly by the Facilitator."""
WORKERS = 2
PATIENCE_S = 30
REPLY_TIMEOUT_S = 0.5
VARIABLES = {
    "LEASE_TTL": "1",
    "ACK_WAIT": "1",
    "FACILITATOR_REPLY_TIMEOUT": f"{REPLY_TIMEOUT_S}",
    # No update is bad, but by chance the same one may be hit several times.
    "MAX_ATTEMPTS": "1000",
}
FAULTS = [
    # With all of these, each update has one answer, in order; otherwise answers could not be matched.
    *(DROP_BEFORE_STORING, DROP_AFTER_STORING, answer_late(0.2), stall(0.2), stall(2 * REPLY_TIMEOUT_S)),
    *map(close_with, (1001, 1009, 1011, 1012, 3000)),
    *map(refuse, ("job.not_found", "server_error", "auth.not_authenticated")),
]
BLOWS = [
    *("NATS cut", "NATS cut in mid-message"),
    *("Facilitator cut", "Facilitator cut in mid-frame", "Facilitator half-open"),
    *("worker killed", "worker told to stop", "worker asleep"),
]


class Rough:
    """Two workers whose connections go through proxies, and the faults that hit them."""

    def __init__(self, scene: Scene, crew: Crew, nats: RoughProxy, facilitator: RoughProxy) -> None:
        self.blows: Counter[str] = Counter()
        self.rng = random.Random(SEED)
        self._deck: list[str] = []
        """The faults to come; each kind comes once before any comes again."""
        self._scene = scene
        self._crew = crew
        self._nats = nats
        self._facilitator = facilitator

    async def stored_more(self, updates: int) -> None:
        due = len(self._scene.facilitator.rows) + updates
        await self._scene.facilitator.wait_for(lambda facilitator: len(facilitator.rows) >= due, PATIENCE_S)

    async def mistreat_updates(self) -> None:
        """Let some updates be refused, dropped or left unanswered, until cancelled."""
        while True:
            nth = self.rng.randrange(1, 2 * HIT_ONE_IN)
            injection = self._scene.facilitator.inject(self.rng.choice(FAULTS), nth=nth)
            await self._scene.facilitator.wait_for(lambda _, injection=injection: injection.hits == 1, PATIENCE_S)

    async def strike(self) -> None:
        self._deck = self._deck or self.rng.sample(BLOWS, len(BLOWS))
        blow = self._deck.pop()
        self.blows[blow] += 1
        proxy = self._nats if blow.startswith("NATS") else self._facilitator
        if blow.endswith("cut"):
            proxy.cut(reset=self.rng.random() < 0.5)
        elif "cut in mid" in blow:
            await proxy.cut_after(self.rng.choice(list(Way)), self.rng.randrange(1, 500))
        elif blow.endswith("half-open"):
            proxy.go_silent()
        else:
            await self._strike_a_worker(blow)

    async def _strike_a_worker(self, blow: str) -> None:
        worker = self.rng.choice(self._crew.alive)
        if blow == "worker asleep":
            worker.send_signal(signal.SIGSTOP)
            try:
                await self.stored_more(30)
            finally:
                worker.send_signal(signal.SIGCONT)
        else:
            await self._crew.end(worker, signal.SIGKILL if blow == "worker killed" else signal.SIGTERM)
            await self._crew.join()


@contextlib.asynccontextmanager
async def rough_scene():
    async with (
        NatsServer() as server,
        FacilitatorSimulator(service_time_s=0.001) as facilitator,
        Scene(server, facilitator, **VARIABLES) as scene,
        RoughProxy(server.port).serving() as to_nats,
        RoughProxy(port_of(facilitator.url)).serving() as to_facilitator,
        contextlib.AsyncExitStack() as stack,
    ):
        scene.environment["RELAY_NATS_URL"] = to_nats.nats_url
        scene.environment["RELAY_FACILITATOR_URL"] = to_facilitator.facilitator_url
        crew = Crew(scene, stack)
        for _ in range(WORKERS):
            await crew.join()
        yield scene, Rough(scene, crew, to_nats, to_facilitator)


@pytest.mark.timeout(120 + 2 * ROUGH_S)
async def test_rough_minute():
    """While one update in twenty is mistreated, connections break and workers die, no update is lost or reordered."""
    async with rough_scene() as (scene, rough):
        async with steadily_published(scene, backlog=200), asyncio.TaskGroup() as group:
            mistreating = group.create_task(rough.mistreat_updates())
            calm_s = time.monotonic() + ROUGH_S
            while time.monotonic() < calm_s:
                await rough.stored_more(rough.rng.randrange(20, 100))
                await rough.strike()
            mistreating.cancel()
        broken = await scene.broken_promises(60)
    if "ROUGH_S" in os.environ:
        print(f"{len(scene.published)} updates, {dict(rough.blows)}, {scene.facilitator!r}")  # noqa: T201 - on request
    assert [] == broken
    assert scene.facilitator.replies["injected"] > 0
    assert scene.facilitator.accepted > WORKERS
