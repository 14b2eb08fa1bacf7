"""What NATS refuses to a worker: /readyz, the metrics and the doctor say it, and all goes on when it is permitted."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from dead_letter_kit import change_stream
from relay_kit import ACKED, Scene, counters, gauges, missing, new_job, said

from relay.contract.settings import DeliverySettings
from relay.contract.subjects import REQUEST_STREAM
from relay.doctor.checks import run_checks
from relay.local.server import NatsServer
from relay.nats import frames
from relay.nats.jetstream import api_request
from relay.service.intervals import DEFAULTS
from relay.topology.provision import provision, topology_of

ALL = '">"'
MAY_NOT_PUBLISH = '{allow: ">", deny: ["job.request.*", "job.relayed.*", "$JS.API.STREAM.INFO.*", "$JS.ACK.>"]}'
MAY_NOT_HEAR = (
    '{allow: ">", deny: ["$KV.RELAY_LEASES.>", "$JS.EVENT.>", "job.query.*", "relay.report", "relay.lane.*"]}'
)
REFUSED = (
    'permissions violation for publish to "job.request.',
    "publish on $js.ack.>, so no update can be settled",
    "publish on job.relayed.>, so there are no receipts",
    "subscribe to $kv.relay_leases.>, so lanes that others give up",
    "subscribe to $js.event.advisory.",
    "subscribe to job.query.*, so this worker answers no questions",
    "subscribe to relay.report, so `relay top` and `relay doctor` do not see",
    "subscribe to relay.lane.0, so other workers",
    "nobody sees whether streams and consumers are",
    "nobody sees whether stream JOB_STATUS stores",
)
ANYBODY = {"NATS_USER": "anybody", "NATS_PASSWORD": "p"}
GUEST = {"NATS_USER": "guest", "NATS_PASSWORD": "p"}


def users(publish: str = ALL, subscribe: str = ALL) -> str:
    return (
        "accounts { RELAY { jetstream: enabled, users: [ {user: anybody, password: p}, {user: guest, password: p,"
        f"permissions {{publish: {publish}, subscribe: {subscribe}}}}} ] }}, SYS {{}} }}\nsystem_account: SYS\n"
    )


def server(folder: Path) -> NatsServer:
    """A server with a user `guest`, whose permissions are in a file that `permit` writes anew."""
    config = folder / "nats.conf"
    (folder / "users.conf").write_text(users())
    config.write_text('jetstream: {store_dir: "store"}\ninclude "users.conf"\n')
    return NatsServer(config_file=config)


def permit(folder: Path, nats_server: NatsServer, publish: str = ALL, subscribe: str = ALL) -> None:
    (folder / "users.conf").write_text(users(publish, subscribe))
    os.kill(nats_server.pid, signal.SIGHUP)


async def doctor(scene: Scene, check: str) -> str:
    found = await run_checks(scene.settings, None, timeout_s=20, connect_timeout_s=20)
    return "\n".join(f"{each.level}: {each.found}" for each in found if each.check == check)


async def fill(scene: Scene) -> None:
    await change_stream(scene.nc, REQUEST_STREAM, max_msgs=1)
    await scene.nc.jetstream().publish("job.request.first", b"")


async def delete(scene: Scene) -> None:
    await api_request(scene.nc, f"$JS.API.STREAM.DELETE.{REQUEST_STREAM}")


async def make_room(scene: Scene) -> None:
    await change_stream(scene.nc, REQUEST_STREAM, max_msgs=-1)


async def make_anew(scene: Scene) -> None:
    await provision(scene.nc, topology_of(DeliverySettings()))


@pytest.mark.parametrize(
    ("spoil", "causes", "mend"),
    [
        (fill, ("maximum messages exceeded", "maximum messages exceeded"), make_room),
        (delete, ("no stream captures this subject", "stream JOB_REQUESTS is missing"), make_anew),
    ],
    ids=["full", "gone"],
)
async def test_pushes(nats_server, facilitator, spoil, causes, mend):
    """While a push cannot be stored, the worker is not ready and says why; then the push is stored. Updates flow.

    `causes`: what /readyz and the doctor name.
    """
    async with Scene(nats_server, facilitator) as scene, scene.relay() as relay:
        await scene.settled(await scene.publish(new_job()))
        await spoil(scene)
        await facilitator.push_job_request(job := new_job())
        assert causes[0] in await missing(relay, "job requests of the Facilitator cannot be stored")
        assert 0 == gauges(relay)["relay_pushes_up"]
        assert causes[1] in await doctor(scene, "workers")
        assert [ACKED] == await scene.settled(await scene.publish(new_job()))
        await mend(scene)
        await said(relay, lambda told: told["ready"])
        assert 1 == gauges(relay)["relay_pushes_up"]
        assert await scene.nc.jetstream().get_last_msg(REQUEST_STREAM, f"job.request.{job}")


async def test_permissions(tmp_path: Path, facilitator, monkeypatch):
    """Everything that is refused is named, with what it means, and what cannot be looked at any more. When it is
    permitted, without a new connection, the worker does all of it, and only publishes stay named that nobody can try.
    """
    monkeypatch.setattr(frames, "_SUBSCRIBE_AGAIN_S", 0.1)
    looking = replace(DEFAULTS, canary_after_s=2.0, topology_look_s=0.2)
    async with (
        server(tmp_path) as nats_server,
        Scene(nats_server, facilitator, **ANYBODY, RECEIPTS="true") as scene,
        scene.relay(**GUEST, intervals=looking) as relay,
    ):
        await said(relay, lambda told: told["ready"])
        permit(tmp_path, nats_server, MAY_NOT_PUBLISH, MAY_NOT_HEAR)
        await said(relay, lambda told: "subscribe" in str(told))
        update = await scene.publish(new_job())
        await facilitator.push_job_request(new_job())
        told = await said(relay, lambda told: all(each in str(told) for each in REFUSED))
        assert not told["ready"]
        assert "job.request" not in str(told["warnings"])
        assert 6 <= gauges(relay)["relay_not_permitted"]
        permit(tmp_path, nats_server)
        await said(relay, lambda told: not any(each in str(told.get("warnings")) for each in ("subscribe", "nobody")))
        assert [ACKED] == await scene.settled(update)
        assert "job.relayed.>" in await doctor(scene, "workers")


async def test_too_many_subscriptions(tmp_path: Path, facilitator, monkeypatch):
    """A server that allows too few subscriptions is named, over a connection that stays; with more all goes on."""
    monkeypatch.setattr(frames, "_SUBSCRIBE_AGAIN_S", 0.1)
    nats_server = server(tmp_path)
    config = tmp_path / "nats.conf"
    enough = config.read_text()
    config.write_text(f"{enough}max_subscriptions: 10\n")
    async with nats_server, Scene(nats_server, facilitator, **ANYBODY) as scene, scene.relay(**GUEST) as relay:
        await missing(relay, "fewer subscriptions than a worker needs")
        assert 0 == counters(relay)["relay_nats_reconnects"]
        config.write_text(enough)
        await nats_server.restart()
        await scene.reconnected()
        await said(relay, lambda told: told["ready"])
        assert [ACKED] == await scene.settled(await scene.publish(new_job()))
