"""The canary: does the status stream store what is published?"""

import datetime as dt
import json
import resource
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from dead_letter_kit import change_stream
from process_kit import ask
from relay_kit import Scene, gauges, new_job

from relay.contract.errors import PublishUnconfirmed
from relay.contract.subjects import CANARY_SUBJECT, STATUS_STREAM, api_stream_info, status_subject
from relay.nats.frames import FrameClient
from relay.nats.jetstream import api_request, publish_confirmed
from relay.overview.reader import SnapshotReader
from relay.service.intervals import DEFAULTS
from relay.topology.intake import Intake, idle_s

IMPATIENT = replace(DEFAULTS, canary_after_s=1.0)
UPDATE_BYTES = 400_000


def at(second: int) -> str:
    return f"2026-11-28T20:46:{second:02}.087500940Z"


@pytest.mark.parametrize(
    ("created", "last_seq", "last_ts", "expected"),
    [
        (at(10), 0, "0001-01-01T00:00:00Z", 20),
        (at(10), 7, at(25), 5),
        (at(28), 7, at(25), 2),
        (at(10), 7, at(31), None),
    ],
    ids=["nothing stored yet", "stored", "restored", "clock set back"],
)
def test_idle(created, last_seq, last_ts, expected):
    """A stream is idle since it stored something or was made, whichever is later, on the server's clock.

    If that lies in the future, nobody knows.
    """
    info = {"created": created, "ts": at(30), "state": {"last_seq": last_seq, "last_ts": last_ts}}
    assert expected == idle_s(info)


async def canaries(scene: Scene) -> int:
    info = await api_request(scene.nc, api_stream_info(STATUS_STREAM), {"subjects_filter": CANARY_SUBJECT})
    return (info["state"].get("subjects") or {}).get(CANARY_SUBJECT, 0)


async def test_canary_is_no_update(nats_server, facilitator, after):
    """Two workers on an idle stream publish canaries, which are neither delivered, nor sent, nor counted."""
    looked = after(Intake, "_try")
    tried: list[int] = []
    async with (
        Scene(nats_server, facilitator) as scene,
        scene.relay(intervals=replace(DEFAULTS, canary_after_s=0.2)) as relay,
        scene.relay(intervals=replace(DEFAULTS, canary_after_s=0.2)),
    ):
        reader = SnapshotReader(scene.nc)
        await scene.settled(await scene.publish(new_job()))
        before = await reader.read()
        await looked(lambda: bool(tried.append(1)) or len(tried) >= 3)
        now = await reader.read()
        assert 1 <= await canaries(scene)
        assert 0 == await scene.unsettled()
        assert before.streams[STATUS_STREAM].last_sequence < now.streams[STATUS_STREAM].last_sequence
        assert (True, 1) == ((await relay.worker_status.readiness())["ready"], gauges(relay)["relay_intake_up"])
    assert 1 == len(facilitator.rows)


class SetBack:
    """The client of a server whose clock was set back by an hour after it had stored its latest message."""

    def __init__(self, client: FrameClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def request(self, *args: Any, **options: Any) -> Any:
        message = await self._client.request(*args, **options)
        answer = json.loads(message.data)
        if "state" not in answer:
            return message
        earlier = dt.datetime.fromisoformat(answer["ts"]) - dt.timedelta(hours=1)
        return SimpleNamespace(data=json.dumps(answer | {"ts": earlier.isoformat()}).encode())


async def test_clock_set_back(nats_server, facilitator):
    """A message from the future does not show that the stream stores anything now, so it is tried."""
    async with Scene(nats_server, facilitator) as scene:
        await scene.publish(new_job())
        intake = Intake(SetBack(scene.nc), canary_after_s=20.0)
        before = intake.stores
        await intake._look()
        assert (None, 1, True) == (before, await canaries(scene), intake.stores)


async def test_disk_full_for_updates_only(nats_server, facilitator, after):
    """After one failed write JOB_STATUS stores nothing more, while leases still are stored. Within seconds /readyz and
    the metric say so; after a restart of the server the worker is ready again. (The doctor: test_incidents.py.)
    """
    looked = after(Intake, "_look")
    async with Scene(nats_server, facilitator) as scene, scene.relay(intervals=IMPATIENT) as relay:
        await scene.settled(await scene.publish(new_job()))
        _, most = resource.prlimit(nats_server.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(nats_server.pid, resource.RLIMIT_FSIZE, (UPDATE_BYTES // 2, most))
        with pytest.raises(PublishUnconfirmed):
            await publish_confirmed(scene.nc, status_subject(new_job()), b"x" * UPDATE_BYTES, timeout_s=1)
        resource.prlimit(nats_server.pid, resource.RLIMIT_FSIZE, (most, most))
        await looked(lambda: relay.worker_status.missing() != [])
        answer = await ask(relay.http_port, "/readyz")
        assert (503, 0) == (answer.status, gauges(relay)["relay_intake_up"])
        assert "stream JOB_STATUS stores nothing" in answer.body
        await nats_server.restart()
        await scene.reconnected()
        await looked(lambda: relay.worker_status.missing() == [])
        assert 1 == gauges(relay)["relay_intake_up"]
        await scene.settled(await scene.publish(new_job()))


async def test_stream_full(nats_server, facilitator, after):
    """A stream that is full by its own limit is named with the limit; the worker is ready when it is raised."""
    looked = after(Intake, "_look")
    async with Scene(nats_server, facilitator) as scene, scene.relay(intervals=IMPATIENT) as relay:
        await scene.settled(await scene.publish(new_job()))
        await change_stream(scene.nc, STATUS_STREAM, max_msgs=1)
        await looked(lambda: relay.worker_status.missing() != [])
        assert "maximum messages exceeded (err_code 10077); raise the limit" in relay.worker_status.missing()[0]
        await change_stream(scene.nc, STATUS_STREAM, max_msgs=-1)
        await looked(lambda: relay.worker_status.missing() == [])
