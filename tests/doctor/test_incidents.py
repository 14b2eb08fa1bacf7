"""Eight things that break for real: `relay doctor`, as the relay's own NATS user, names each and the way out."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from guarded_nats import ANYBODY, USERS, let_anybody_in, variables
from incidents import INCIDENTS, WITHIN_S, Incident, Site
from relay_kit import Scene, new_job

from relay.doctor.checks import run_checks
from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer
from relay.service.intervals import DEFAULTS

IMPATIENT = replace(DEFAULTS, canary_after_s=1.0, topology_look_s=0.5)


@pytest.fixture
async def scene(
    users_have_passwords: None,  # noqa: ARG001
    tmp_path: Path,
    facilitator: FacilitatorSimulator,
) -> AsyncIterator[Scene]:
    """A relay at a server with the users of deploy/nats/users.conf, which has relayed an update."""
    config = tmp_path / "nats-server.conf"
    config.write_text(f'jetstream {{store_dir: "store"}}\nmax_payload: 8MB\n{let_anybody_in(USERS)}')
    quick = {"LEASE_TTL": "2", "BACKOFF_MAX": "0.1"}
    async with (
        NatsServer(config_file=config) as server,
        Scene(server, facilitator, **variables(ANYBODY), **quick) as scene,
        scene.relay(intervals=IMPATIENT, **variables("relay")),
    ):
        await scene.settled(await scene.publish(new_job()))
        yield scene


@pytest.fixture
def site(scene: Scene, monkeypatch, tmp_path: Path) -> Site:
    async def set_clock(ahead_s: float) -> None:
        real_s = time.time
        monkeypatch.setattr(time, "time", lambda: real_s() + ahead_s)

    return Site(scene.server, tmp_path / "nats-server.conf", scene.facilitator, scene.nc, set_clock)


async def examine(scene: Scene) -> list[dict[str, Any]]:
    found = await run_checks(scene.settings_of(**variables("relay")), None)
    return [{**asdict(each), "verdict": each.level} for each in found]


@pytest.mark.parametrize("incident", INCIDENTS, ids=lambda incident: incident.name)
async def test_the_doctor_names_it(incident: Incident, scene, site):
    """Within a minute it is named, with the way out."""
    await incident.happens(site)
    found = []
    try:
        async with asyncio.timeout(WITHIN_S):
            while not incident.is_named(found := await examine(scene)):
                pass
    except TimeoutError:
        pytest.fail(f"not named in {[each for each in found if each['verdict'] != 'ok']}")


async def test_nothing_is_named(scene):
    """While all is well, nothing of it is named."""
    found = await examine(scene)
    assert [] == [incident.name for incident in INCIDENTS if incident.is_named(found)]
