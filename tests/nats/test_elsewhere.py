"""Streams in another JetStream domain, behind a leaf node, or in another account, whose API is imported."""

import json

import pytest
from cli_kit import make_command
from elsewhere_kit import leaf_node, other_account
from relay_kit import ACKED, TERMED, Scene, new_job

from relay.client import StatusClient, UpdateProgress
from relay.contract.subjects import Reason
from relay.overview.reader import SnapshotReader
from relay.producer import JobStatus, JobStatusUpdate, StatusPublisher

PLACES = {
    "leaf": leaf_node,
    "account": other_account,
    "leaf_longer_acks": lambda: leaf_node(longer_acks=True),
    "account_longer_acks": lambda: other_account(longer_acks=True),
}


@pytest.fixture(params=PLACES)
async def place(request):
    async with PLACES[request.param]() as place:
        yield place


@pytest.fixture
def command(monkeypatch, tmp_path):
    return make_command(monkeypatch, tmp_path)


async def test_relay_and_commands(place, facilitator, command):
    """Everything works as with streams at hand: the relay, each command, the producer and the client."""
    settings = {**place.settings, "NATS_URL": place.server.url}
    made = await command("provision", **settings)
    assert (0, 9, "") == (made.code, len(made.out.splitlines()), made.err)
    async with Scene(place.server, facilitator, **place.settings) as scene:
        environ = {f"RELAY_{name}": value for name, value in settings.items()}
        job, bad = new_job(0), new_job(0)
        async with scene.relay() as relay:
            await relay.serving.wait()
            letter = await scene.publish(bad, "nonsense", dead_letter=Reason.UNKNOWN_STATUS)
            assert [ACKED, ACKED, TERMED] == await scene.settled(
                *await scene.publish_life(job, ("received", "completed")), letter
            )
            async with StatusPublisher.from_environment(environ) as publisher:
                stored = await publisher.publish(JobStatusUpdate(uuid=new_job(), status=JobStatus.ACCEPTED))
            async with StatusClient.from_environment(environ) as client:
                assert UpdateProgress.ACKNOWLEDGED is (await client.status(job)).progress
            told = [
                await command(*words.split(), **settings)
                for words in (
                    "provision --check",
                    f"query {job} --json",
                    f"query {bad} --history --json",
                    f"publish {new_job()} received",
                    "dlq list --json",
                    "dlq show 1",
                    "dlq purge 1 --yes",
                )
            ]
            assert ([0] * len(told), "1 dead letter: unknown_status 1\n") == (
                [each.code for each in told],
                "".join(each.err for each in told),
            )
            assert "acknowledged" == json.loads(told[1].out)["progress"]
            assert "dead_lettered" == json.loads(told[2].out)["progress"]
            assert 0 == (await SnapshotReader(scene.nc).read()).dead_letters.total  # as `relay top` does
            doctor = await command("doctor", "--json", **settings)
            levels = {finding["check"]: finding["verdict"] for finding in json.loads(doctor.out)["findings"]}
            assert {"ok"} == {levels[name] for name in ("nats", "permissions", "topology", "account")}
        assert 4 == stored.sequence
        async with scene.relay():  # which takes over from the first one
            assert [ACKED] == await scene.settled(await scene.publish(job))
            await scene.dust_settled()
