"""StatusPublisher: if an update is not stored, or this is not known, the error says why and what to do."""

import asyncio
import math
import time

import pytest
from producer_kit import update
from relay_kit import new_job

from relay.contract.errors import ConfigurationError
from relay.contract.subjects import STATUS_STREAM, api_stream_info
from relay.local.server import DEFAULT_MAX_PAYLOAD, NatsServer
from relay.nats.connection import api_request
from relay.producer import (
    Limits,
    PublisherFull,
    PublishHeldBack,
    PublishRefused,
    PublishTimedOut,
    StatusPublisher,
    UpdateTooLarge,
)
from relay.topology.provision import provision

A, B = new_job(), new_job()
QUICK = Limits(timeout_s=1)
TWO = 2 * len(update(A).to_json())


async def test_no_puback_in_time(played):
    """Without a PubAck the error says that the update may be stored; the job's later ones fail and name it."""
    connecting = played.publisher.submit(update(B))
    await played.acknowledge()
    await connecting
    waiting = [played.publisher.submit(update(A, status), timeout_s=0.3) for status in ("accepted", "completed")]
    first, second = await asyncio.gather(*waiting, return_exceptions=True)
    await played.hear()
    assert (PublishTimedOut, True) == (type(first), first.maybe_stored)
    assert f"accepted of job {A} was not confirmed within 0.3 s: no PubAck within" in str(first)
    assert "it may be stored" in str(first)
    assert (PublishHeldBack, f"accepted of job {A}") == (type(second), second.earlier)
    assert played.silent


async def test_server_away_beyond_the_deadline(nats_server, publisher):
    """Without a server the error says so, and that the update is not stored; when the server is up, the next one is."""
    await nats_server.stop()
    with pytest.raises(PublishTimedOut, match=r"no NATS connection to .*it is not stored") as caught:
        await publisher.publish(update(A), timeout_s=0.5)
    assert not caught.value.maybe_stored
    await nats_server.start()
    assert 1 == (await publisher.publish(update(A))).sequence


async def test_no_stream(publisher, provisioned):
    """If no stream captures updates, the error says so, and that the update is not stored."""
    await publisher.publish(update(A))
    await api_request(provisioned, f"$JS.API.STREAM.DELETE.{STATUS_STREAM}")
    with pytest.raises(PublishTimedOut, match=r"no stream captures this subject.* run `relay provision`") as caught:
        await publisher.publish(update(B), timeout_s=0.3)
    assert not caught.value.maybe_stored


USERS = """
authorization { users: [
    {user: runner, password: pass, permissions: {publish: "job.status.*", subscribe: "_INBOX_runner.>"}}
    {user: admin, password: pass}
] }
"""


async def test_permissions(topology, connect):
    """A job runner only needs to publish and to receive answers; a missing permission is named in the error."""
    async with NatsServer(extra_config=USERS) as server:
        admin = await connect(server.url, user="admin", password="pass")
        await provision(admin, topology)
        await admin.close()
        environ = {"RELAY_NATS_URL": server.url, "RELAY_NATS_USER": "runner", "RELAY_NATS_PASSWORD": "pass"}
        prefix = {"RELAY_NATS_INBOX_PREFIX": "_INBOX_runner"}
        async with StatusPublisher.from_environment(environ | prefix) as publisher:
            assert 1 == (await publisher.publish(update(A))).sequence
            began_s = time.monotonic()
        assert time.monotonic() - began_s < 2  # `close` sends no request that the server would not answer
        async with StatusPublisher.from_environment(environ, limits=QUICK) as publisher:
            with pytest.raises(PublishTimedOut, match=r": permissions violation for subscription"):
                await publisher.publish(update(A))
        async with StatusPublisher(server.url, limits=QUICK, user="runner", password="wrong") as publisher:
            with pytest.raises(PublishTimedOut, match=r"no NATS connection to .*: Authorization"):
                await publisher.publish(update(A))


@pytest.mark.usefixtures("nc")
async def test_credentials_that_cannot_be_used(nats_server, tmp_path):
    """An invalid credentials file makes each publish fail at once, and is named."""
    creds = tmp_path / "runner.creds"
    creds.write_text("nothing")
    async with StatusPublisher(nats_server.url, creds=creds) as publisher:
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="RELAY_NATS_CREDS"):
                await publisher.publish(update(A))


async def test_provisioned_in_time(nats_server, nc, topology):
    """A stream that is created while a publish waits for it stores the update."""
    async with StatusPublisher(nats_server.url) as publisher:
        waiting = publisher.submit(update(A))
        await provision(nc, topology)
        assert 1 == (await waiting).sequence


@pytest.mark.parametrize(("code", "err_code"), [(503, 10077), (503, 10023), (400, 10054), (500, 10999)])
async def test_refused(played, code, err_code):
    """A permanent refusal is not tried again; the error has its code, and says that nothing is stored."""
    waiting = played.publisher.submit(update(A))
    await played.refuse(code, err_code)
    with pytest.raises(PublishRefused, match=f"accepted of job {A} is not stored: the server refused it") as caught:
        await waiting
    assert err_code == caught.value.err_code
    assert played.silent


async def test_refused_for_now(played):
    """A temporary refusal, such as a stream without a leader, is tried again."""
    waiting = played.publisher.submit(update(A))
    await played.refuse(503, 10008)
    await played.acknowledge()
    assert 1 == (await waiting).sequence


async def test_refused_by_a_real_stream(publisher, provisioned):
    """A full stream, an update too large for the stream, and one too large for the server are distinguished."""
    info = await api_request(provisioned, api_stream_info(STATUS_STREAM))
    await api_request(provisioned, f"$JS.API.STREAM.UPDATE.{STATUS_STREAM}", info["config"] | {"max_msgs": 1})
    await publisher.publish(update(A))
    codes = []
    for size in (1, DEFAULT_MAX_PAYLOAD - 10_000, DEFAULT_MAX_PAYLOAD):
        with pytest.raises(PublishRefused) as caught:
            await publisher.publish(update(B, output="x" * size))
        codes.append((caught.value.err_code, str(caught.value).rpartition("; ")[2]))
    full = (10077, "the stream JOB_STATUS is full: raise its limits, and publish again")
    assert [full, *[(10054, "shorten its metadata")] * 2] == codes


async def test_larger_than_all_that_may_wait(nats_server):
    """An update that can never be taken is an error that names the limit, and not one that waiting could end."""
    size = len(update(A).to_json())
    async with StatusPublisher(nats_server.url, limits=Limits(max_bytes=size - 1)) as small:
        for publish in (small.publish, small.submit):
            with pytest.raises(UpdateTooLarge) as caught:
                await publish(update(A))
    assert (
        f"accepted of job {A} is not stored: it has {size} bytes, and the limit max_bytes of this publisher is"
        f" {size - 1}; shorten its metadata, or raise max_bytes if NATS takes messages of that size"
    ) == str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("timeout_s", value) for value in (-1, 0, math.nan)),
        ("max_updates", 0),
        ("max_bytes", 0),
        ("close_timeout_s", -0.1),
    ],
)
def test_limits_that_cannot_work(name, value):
    """A limit with which nothing could be published is refused when it is made, with its name."""
    with pytest.raises(ConfigurationError, match=f"{name}={value!r} is not allowed: a number"):
        Limits(**{name: value})


@pytest.mark.parametrize("limits", [Limits(max_updates=2), Limits(max_bytes=TWO)])
async def test_full(nats_server, played, limits):
    """If the queue is full, a publish fails at once and is not accepted; a PubAck makes room."""
    async with StatusPublisher(nats_server.url, limits=limits) as publisher:
        first, second = publisher.submit(update(A)), publisher.submit(update(B))
        with pytest.raises(PublisherFull, match=r"2 updates of \d+ bytes wait to be published") as caught:
            publisher.submit(update(A))
        assert 2 == caught.value.waiting
        for _ in range(2):
            await played.acknowledge()
        await asyncio.gather(first, second)
        third = publisher.submit(update(B, "completed"))
        await played.acknowledge(sequence=3)
        assert 3 == (await third).sequence
