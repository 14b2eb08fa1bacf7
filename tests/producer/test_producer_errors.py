"""StatusPublisher: if an update is not stored, or this is not known, the error says why and what to do."""

import asyncio
import math
import time
from functools import partial

import pytest
from producer_kit import update
from relay_kit import new_job

from relay.contract.errors import ConfigurationError
from relay.contract.subjects import STATUS_STREAM, api_stream_info
from relay.local.server import DEFAULT_MAX_PAYLOAD, NatsServer
from relay.nats.jetstream import api_request
from relay.producer import (
    FlushIncomplete,
    InvalidUpdate,
    JobStatusUpdate,
    Limits,
    NotInEventLoop,
    NotReady,
    PublisherFull,
    PublishHeldBack,
    PublishRefused,
    PublishTimedOut,
    StatusPublisher,
    SyncStatusPublisher,
    UpdateTooLarge,
)
from relay.producer.options import DEFAULT_LIMITS
from relay.topology.provision import provision

A, B = new_job(), new_job()


class StrangeUpdate:
    """Has the members of an update."""

    uuid, status = A, "accepted"


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
    for size in (1, DEFAULT_MAX_PAYLOAD - 10_000):
        with pytest.raises(PublishRefused) as caught:
            await publisher.publish(update(B, output="x" * size))
        codes.append((caught.value.err_code, str(caught.value).rpartition("; ")[2]))
    full = (10077, "the stream JOB_STATUS is full: raise its limits, and publish again")
    assert [full, (10054, "shorten its metadata")] == codes
    with pytest.raises(UpdateTooLarge, match=f"the max_payload of nats-server is .*output {DEFAULT_MAX_PAYLOAD + 2} "):
        await publisher.publish(update(B, output="x" * DEFAULT_MAX_PAYLOAD))


async def test_truncated(nats_server, provisioned):
    """With `truncate` an update gets through that is too large for the publisher, the server or the stream."""
    output = {"docker_process_stdout": "x" * (DEFAULT_MAX_PAYLOAD + 5000), "docker_process_stderr": ""}

    async def size_stored(number: int, limits: Limits = DEFAULT_LIMITS) -> int:
        large = update(A, "completed", miner_response=output, number=number)
        async with StatusPublisher(nats_server.url, limits=limits, on_too_large="truncate") as publisher:
            sequence = (await publisher.publish(large)).sequence
        return len((await provisioned.jetstream().get_msg(STATUS_STREAM, sequence)).data or b"")

    config = (await api_request(provisioned, api_stream_info(STATUS_STREAM)))["config"]
    assert DEFAULT_MAX_PAYLOAD / 4 < await size_stored(1) < DEFAULT_MAX_PAYLOAD
    await api_request(provisioned, f"$JS.API.STREAM.UPDATE.{STATUS_STREAM}", config | {"max_msg_size": 9000})
    assert 4000 < await size_stored(2) < 9000
    assert 4900 < await size_stored(3, Limits(max_bytes=5000)) <= 5000


async def test_larger_than_all_that_may_wait(nats_server):
    """An update that can never be taken is an error that names the limit, and not one that waiting could end."""
    size = len(update(A).to_json())
    async with StatusPublisher(nats_server.url, limits=Limits(max_bytes=size - 1)) as small:
        for publish in (small.publish, small.submit):
            with pytest.raises(UpdateTooLarge) as caught:
                await publish(update(A))
    assert (
        f"accepted of job {A} is not stored: it has {size} bytes, and max_bytes of this publisher is {size - 1}. The"
        " largest parts are none, because the metadata is empty: shorten them, or let the publisher do it with"
        ' on_too_large="truncate"'
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
    """If the queue is full, `submit` fails at once and nothing is taken; a PubAck makes room."""
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


async def test_waits_for_room(nats_server, played):
    """`publish` waits for room, in the order of the calls; it is full only for those whose time is over.

    Those of the same job that wait behind such a one fail with it, and one that is cancelled leaves the line.
    """
    async with StatusPublisher(nats_server.url, limits=Limits(max_updates=1)) as publisher:
        first = publisher.submit(update(A))
        heard = await played.hear()

        def wait(job: str, status: str, timeout_s: float = 10) -> asyncio.Task[object]:
            return asyncio.create_task(publisher.publish(update(job, status), timeout_s=timeout_s))

        late, behind = wait(B, "received", 0.2), wait(B, "accepted")
        cancelled, second = wait(A, "received"), wait(A, "completed")
        await asyncio.sleep(0)  # let them begin
        with pytest.raises(PublisherFull):
            publisher.submit(update(A, "failed"))
        cancelled.cancel()
        full, held_back = await asyncio.gather(late, behind, return_exceptions=True)
        assert (PublisherFull, PublishHeldBack) == (type(full), type(held_back))
        await played.acknowledge(heard)
        await played.acknowledge(sequence=2)
        assert (1, 2) == ((await first).sequence, (await second).sequence)
        assert (True, True) == (cancelled.cancelled(), played.silent)


async def test_flush(nats_server, played):
    """`flush` returns when everything is confirmed, and names what failed, or still waits when its time is over."""
    async with StatusPublisher(nats_server.url, limits=Limits(max_updates=1, close_timeout_s=0)) as publisher:
        await publisher.flush()
        publisher.submit(update(A))
        with pytest.raises(FlushIncomplete) as caught:
            await publisher.flush(timeout_s=0.05)
        assert (f"accepted of job {A}",) == caught.value.unpublished
        await played.acknowledge()
        waiting = asyncio.create_task(publisher.publish(update(B)))
        await publisher.flush()
        await played.refuse(503, 10077)
        with pytest.raises(PublishRefused):
            await waiting
        publisher.submit(update(B, "failed"))
        flushing = asyncio.create_task(publisher.flush())
        await played.refuse(503, 10077)
        with pytest.raises(FlushIncomplete, match=f"failed of job {B}"):
            await flushing


async def test_on_error(nats_server, played):
    """`on_error` gets each update that fails and that nobody waits for, and may fail itself."""
    failed: list[tuple[JobStatusUpdate, type[Exception]]] = []

    def fail(about: JobStatusUpdate, error: Exception) -> None:
        failed.append((about, type(error)))
        raise ZeroDivisionError

    async with StatusPublisher(nats_server.url, on_error=fail) as publisher:
        waiting = [publisher.submit(update(A)), publisher.submit(update(A, "completed"))]
        awaited = asyncio.create_task(publisher.publish(update(A, "failed")))
        await played.refuse(503, 10077)
        await asyncio.wait([*waiting, awaited])
        assert isinstance(awaited.exception(), PublishHeldBack)
    assert [(update(A), PublishRefused), (update(A, "completed"), PublishHeldBack)] == failed


async def test_check(nats_server, provisioned):
    """`check` tells a stream that stores updates from a missing stream and a missing server, and stores nothing."""
    async with StatusPublisher(nats_server.url) as publisher:
        await publisher.check()
        assert 0 == (await api_request(provisioned, api_stream_info(STATUS_STREAM)))["state"]["last_seq"]
        await api_request(provisioned, f"$JS.API.STREAM.DELETE.{STATUS_STREAM}")
        with pytest.raises(NotReady, match="no stream captures this subject"):
            await publisher.check(1)
        await nats_server.stop()
        with pytest.raises(NotReady, match="updates cannot be published now: the connection to NATS was lost"):
            await publisher.check(0.2)


async def test_check_is_refused(played):
    """`check` says so if the server answers with another error than that it expects."""
    checking = asyncio.create_task(played.publisher.check())
    await played.refuse(503, 10077)
    with pytest.raises(NotReady, match="err_code 10077"):
        await checking


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"uuid": A, "status": "accepted"}, "this is a dict, not a JobStatusUpdate of relay.producer"),
        (StrangeUpdate(), "this is a StrangeUpdate"),
        (update(A, output="\ud800"), "cannot be written as JSON"),
    ],
)
async def test_no_update(nats_server, wrong, problem):
    """What is no update, or cannot be written as JSON, is refused with our error, in both publishers."""
    publisher, sync_publisher = StatusPublisher(nats_server.url), SyncStatusPublisher(nats_server.url)
    for publish in (publisher.publish, partial(asyncio.to_thread, sync_publisher.publish)):
        with pytest.raises(InvalidUpdate, match=problem):
            await publish(wrong)
    await asyncio.to_thread(sync_publisher.close)


@pytest.mark.parametrize("kind", [StatusPublisher, SyncStatusPublisher])
def test_arguments(kind):
    """Wrong arguments are refused when a publisher is made, or at the call."""
    for wrong in ({"on_too_large": "cut"}, {"on_error": "print"}):
        with pytest.raises(ConfigurationError, match=next(iter(wrong))):
            kind(**wrong)
    for wrong in (0, -1, math.nan, "5"):
        with pytest.raises(ConfigurationError, match="timeout_s"):
            kind().submit(update(A), timeout_s=wrong)


def test_submit_outside_of_a_loop():
    """`submit` of a StatusPublisher where no loop runs says which publisher to use."""
    with pytest.raises(NotInEventLoop, match="use SyncStatusPublisher"):
        StatusPublisher().submit(update(A))
