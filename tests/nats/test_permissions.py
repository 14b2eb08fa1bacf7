"""What each user of deploy/nats/users.conf may do on a real nats-server, and what is refused."""

import asyncio
import json
from typing import Any

import pytest
from guarded_nats import (
    ANYBODY,
    ROLES,
    guarded_server,
    password,
    passwords,
    scene_of,
    settings,
    signed_in,
    until_heard,
    variables,
    violations,
)
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from relay_kit import Scene, new_job, update

from relay.contract.errors import BrokerUnavailable, LocalServerError, NotPermitted, PublishUnconfirmed
from relay.contract.settings import DeliverySettings, NatsSettings
from relay.contract.subjects import (
    ADVISORY_STREAM,
    DLQ_STREAM,
    REQUEST_STREAM,
    STATUS_STREAM,
    Reason,
    advisory_subject,
    api_message_delete,
    api_stream_info,
    lane_consumer,
)
from relay.nats.connection import close, connect
from relay.nats.jetstream import api_request, publish_confirmed
from relay.topology.provision import check, provision, topology_of

JOB = "123e4567-e89b-42d3-a456-426614174000"
ADVISORY = advisory_subject(lane_consumer(0))

PUBLISH = {
    f"job.status.{JOB}": {"producer", "runner", "operator"},
    f"job.query.{JOB}": {"producer", "runner", "operator", "observer"},
    f"job.history.{JOB}": {"producer", "runner", "operator", "observer"},
    # Taking job requests, and nothing else of them.
    "$JS.API.CONSUMER.MSG.NEXT.JOB_REQUESTS.runner": {"runner", "operator"},
    "$JS.ACK.JOB_REQUESTS.runner.1.1.1.1.0": {"runner"},
    "$JS.API.CONSUMER.CREATE.JOB_REQUESTS.runner": {"operator"},
    "$JS.API.CONSUMER.DELETE.JOB_REQUESTS.runner": {"operator"},
    "$JS.API.STREAM.MSG.DELETE.JOB_REQUESTS": {"operator"},
    "relay.report": {"relay", "operator", "observer"},
    "relay.lane.0": {"relay", "operator"},
    "$SRV.PING": {"operator", "observer"},
    "$SRV.PING.job-status.ID": {"relay", "operator", "observer"},
    # Only the relay publishes these.
    f"job.dlq.{JOB}": {"relay"},
    f"job.request.{JOB}": {"relay"},
    f"job.cheated.{JOB}": {"relay"},
    f"job.relayed.{JOB}": {"relay"},
    "$KV.RELAY_LEASES.lane.0": {"relay"},
    "$JS.ACK.JOB_STATUS.relay-lane-0.1.1.1.1.0": {"relay"},
    "$JS.ACK._.hash.JOB_STATUS.relay-lane-0.1.1.1.1.0": {"relay"},
    "$JS.API.CONSUMER.MSG.NEXT.JOB_STATUS.relay-lane-0": {"relay"},
    # No user may publish these.
    "job.status.0.stored": set(),
    ADVISORY: set(),
    "_INBOX.x.y": set(),
    "_INBOX_relay.x.y": set(),
    # Reading.
    "$JS.API.STREAM.INFO.JOB_STATUS": {"relay", "operator", "observer"},
    "$JS.API.STREAM.MSG.GET.JOB_STATUS": {"relay", "operator", "observer"},
    "$JS.API.STREAM.MSG.GET.JOB_REQUESTS": {"operator", "observer"},
    "$JS.API.CONSUMER.INFO.JOB_STATUS.relay-lane-0": {"relay", "operator", "observer"},
    "$JS.API.CONSUMER.LIST.JOB_STATUS": {"relay", "operator", "observer"},
    # Changing.
    "$JS.API.STREAM.MSG.DELETE.JOB_ADVISORIES": {"relay", "operator"},
    "$JS.API.STREAM.MSG.DELETE.JOB_STATUS": {"operator"},
    "$JS.API.STREAM.MSG.DELETE.JOB_DLQ": {"operator"},
    "$JS.API.STREAM.CREATE.MINE": {"operator"},
    "$JS.API.STREAM.UPDATE.JOB_STATUS": {"operator"},
    "$JS.API.STREAM.UPDATE.JOB_DLQ": {"operator"},
    "$JS.API.STREAM.PURGE.JOB_STATUS": {"operator"},
    "$JS.API.STREAM.DELETE.JOB_STATUS": {"operator"},
    "$JS.API.CONSUMER.CREATE.JOB_STATUS.spy": {"operator"},
    "$JS.API.CONSUMER.DELETE.JOB_STATUS.relay-lane-0": {"operator"},
    "$JS.SNAPSHOT.ACK.JOB_STATUS.x": {"operator"},
    "$JS.SNAPSHOT.RESTORE.JOB_STATUS.x": {"operator"},
    "$SYS.REQ.SERVER.PING": set(),
}
"""On each subject, the users whose messages reach the relay's account; no other user's do."""

SUBSCRIBE = {
    "job.status.*": (f"job.status.{JOB}", {"operator", "observer"}),
    "job.relayed.*": (f"job.relayed.{JOB}", {"runner", "operator", "observer"}),
    "job.dlq.*": (f"job.dlq.{JOB}", {"operator", "observer"}),
    "job.request.*": (f"job.request.{JOB}", {"operator"}),
    # Other subscribers to these could answer instead of the relay.
    "job.query.*": (f"job.query.{JOB}", {"relay", "operator"}),
    "relay.report": ("relay.report", {"relay"}),
    "relay.lane.0": ("relay.lane.0", {"relay"}),
    "$SRV.PING": ("$SRV.PING", {"relay"}),
    "$KV.RELAY_LEASES.>": ("$KV.RELAY_LEASES.lane.0", {"relay", "operator"}),
    ADVISORY: (ADVISORY, {"relay", "operator"}),
    # Messages of others.
    ">": ("job.status.any", set()),
    "_INBOX.>": ("_INBOX.of.operator", {"operator"}),
    "_INBOX_relay.>": ("_INBOX_relay.of.relay", {"relay"}),
    "$JS.ACK.>": ("$JS.ACK.JOB_STATUS.relay-lane-0.1.1.1.1.0", set()),
    "$JS.API.>": ("$JS.API.CONSUMER.MSG.NEXT.JOB_STATUS.relay-lane-0", set()),
}
"""For each subscription, the users that receive a message of the relay's account with it; no others do."""


@pytest.mark.parametrize("role", ROLES)
async def test_publishing(guarded, role):
    """Each role can publish what its work needs, and nothing else that has a subscriber in the relay's account."""
    async with signed_in(guarded, ANYBODY) as anybody, signed_in(guarded, role) as client:
        everything = await anybody.subscribe(">")
        await until_heard(anybody)
        for subject in PUBLISH:
            await client.publish(subject, b"{}")
        await until_heard(client)
        await until_heard(anybody)
        heard = await subjects_of(everything)
    assert [subject for subject, roles in PUBLISH.items() if role in roles] == list(filter(heard.__contains__, PUBLISH))


@pytest.mark.parametrize("role", ROLES)
async def test_subscribing(guarded, role):
    """Each role receives what its work needs, and nobody receives messages to another user's inbox."""
    async with signed_in(guarded, ANYBODY) as anybody, signed_in(guarded, role) as client:
        subscriptions = {pattern: await client.subscribe(pattern) for pattern in SUBSCRIBE}
        await until_heard(client)
        for subject, _ in SUBSCRIBE.values():
            await anybody.publish(subject, b"{}")
        await until_heard(anybody)
        await until_heard(client)
        heard = [
            pattern
            for pattern, subscription in subscriptions.items()
            if SUBSCRIBE[pattern][0] in await subjects_of(subscription)
        ]
    assert [pattern for pattern, (_, roles) in SUBSCRIBE.items() if role in roles] == heard


async def subjects_of(subscription: Subscription) -> list[str]:
    """The subjects of the messages that a subscription has received so far."""
    return [(await subscription.next_msg()).subject for _ in range(subscription.pending_msgs)]


@pytest.mark.parametrize("role", ["producer", "observer"])
async def test_an_answer_can_be_sent_nowhere_else(guarded, facilitator, role):
    """A request with one of the relay's subjects as reply subject stores nothing there, and takes no lane."""
    questions = (f"job.query.{JOB}", f"job.history.{JOB}", "relay.report", "$JS.API.INFO", "$SRV.PING")
    places = ("$KV.RELAY_LEASES.lane.0", f"job.dlq.{JOB}", f"job.request.{JOB}", "job.status-closed.x", "relay.lane.0")
    async with (
        scene_of(guarded, facilitator, LEASE_TTL="2") as scene,
        scene.relay(**variables("relay")),
        signed_in(guarded, role) as client,
    ):
        await scene.owned(lambda: len(scene.owners) == 4)
        owners = scene.owners
        heard = [await scene.nc.subscribe(place) for place in places[1:]]
        await until_heard(scene.nc)
        for question in questions:
            for place in places:
                await client.publish(question, b"", reply=place)
        await until_heard(client)
        answered = await asked_in_order(client)
        stored = [await api_request(scene.nc, api_stream_info(stream)) for stream in (DLQ_STREAM, REQUEST_STREAM)]
        assert owners == scene.owners
    assert answered
    assert [0] * len(heard) == [subscription.pending_msgs for subscription in heard]
    assert [0, 0] == [info["state"]["messages"] for info in stored]


async def test_where_an_operator_can_have_answers_stored(guarded, facilitator):
    """As the page on security says: in leases and dead letters, as it is in the account of the streams; but it can
    acknowledge no update in this way, and so end none.
    """
    ack = f"$JS.ACK.{STATUS_STREAM}.{lane_consumer(0)}.1.1.1.1.0"
    async with scene_of(guarded, facilitator) as scene, signed_in(guarded, "operator") as operator:
        heard = {place: await scene.nc.subscribe(place) for place in ("$KV.RELAY_LEASES.x", f"job.dlq.{JOB}", ack)}
        await until_heard(scene.nc)
        for place in heard:
            await operator.publish("$JS.API.INFO", b"", reply=place)
        await until_heard(operator)
        await until_heard(scene.nc)
        stored = [subscription.pending_msgs for subscription in heard.values()]
    assert [1, 1, 0] == stored
    assert 1 == len([line for line in violations(guarded) if f'Reply "{ack}"' in line]), violations(guarded)


async def asked_in_order(client: Client) -> bool:
    """Whether a job's status and history are answered; then all requests before have been answered, too."""
    answers = [await client.request(f"job.{ask}.{JOB}", timeout=5) for ask in ("query", "history")]
    return all(answer.headers["Nats-Service-Error-Code"] == "404" for answer in answers)


async def test_what_is_not_permitted_is_in_the_error(guarded):
    """A request that is not permitted, or whose answer is not, fails with advice; a missing answer fails otherwise."""
    remedy = "; use credentials that may do it, or have it permitted"
    async with signed_in(guarded, ANYBODY) as anybody:
        await anybody.subscribe("relay.report")
        await until_heard(anybody)
        relay = await connect(settings(guarded, "relay"), name="test")
        with pytest.raises(NotPermitted, match=rf'for publish to "\$JS\.API\.STREAM\.DELETE\.JOB_STATUS"{remedy}'):
            await api_request(relay, "$JS.API.STREAM.DELETE.JOB_STATUS", timeout_s=0.2)
        with pytest.raises(BrokerUnavailable, match=r"no answer to relay\.report within 0\.2 s"):
            await api_request(relay, "relay.report", timeout_s=0.2)
        with pytest.raises(PublishUnconfirmed, match=rf'permissions violation for publish to "job\.status\.{JOB}"'):
            await publish_confirmed(relay, f"job.status.{JOB}", b"{}", timeout_s=0.2)
        await close(relay)
    deaf = await connect(settings(guarded, "relay").model_copy(update={"inbox_prefix": "_INBOX"}), name="test")
    with pytest.raises(NotPermitted, match=rf'for subscription to "_inbox\..*"{remedy}'):
        await api_request(deaf, "$JS.API.INFO", timeout_s=0.2)
    await close(deaf, timeout_s=0.2)


async def test_strangers_are_not_let_in(guarded):
    """Without a name, with no password or with another user's, a connection is refused."""
    for credentials in ({}, *({"user": "relay", "password": each} for each in (password("producer"), ""))):
        with pytest.raises(BrokerUnavailable, match="Authorization Violation"):
            await connect(NatsSettings(urls=(guarded.url,), **credentials), name="test")


@pytest.mark.parametrize("missing", sorted(passwords()))
async def test_no_password_has_a_default(monkeypatch, missing):
    """The server does not start while a password is missing, and names its variable."""
    for name in passwords().keys() - {missing}:
        monkeypatch.setenv(name, "any")
    with pytest.raises(LocalServerError) as refused:
        async with guarded_server():
            pass
    assert missing in str(refused.value)


async def test_the_relay_works_as_relay(guarded, facilitator):
    """Two workers as user `relay` relay, hand over, dead-letter, publish pushes and delete advisories."""
    async with scene_of(guarded, facilitator, LEASE_TTL="2") as scene:
        async with scene.relay(**variables("relay")):
            async with scene.relay(**variables("relay")):
                await scene.publish_lives(4)
                await scene.publish(new_job(), "no such status", dead_letter=Reason.UNKNOWN_STATUS)
                await facilitator.wait_for(lambda facilitator: facilitator.authenticated == 2)
                await facilitator.push_job_request(JOB)
                await facilitator.push_cheated(JOB)
                await scene.dust_settled()
                await forget_an_advisory(scene)
            await scene.publish_lives(4)
            broken = await scene.broken_promises()
        pushed = await api_request(scene.nc, api_stream_info(REQUEST_STREAM))
    assert [] == broken
    assert 2 == pushed["state"]["messages"]
    assert [] == violations(guarded)


async def test_the_relay_answers_as_relay(guarded, facilitator):
    """Two workers as user `relay` answer producers and observers in their own inboxes, and publish receipts."""
    receipts: asyncio.Queue[Msg] = asyncio.Queue()
    quick = variables("relay") | {"RECEIPTS": "true"}
    async with (
        scene_of(guarded, facilitator, LEASE_TTL="2") as scene,
        scene.relay(**quick) as first,
        scene.relay(**quick) as second,
        signed_in(guarded, "producer") as producer,
        signed_in(guarded, "observer") as observer,
    ):
        await scene.owned(lambda: len({taking.worker for taking in scene.owners.values()}) == 2)
        await observer.subscribe("job.relayed.*", cb=receipts.put)
        await until_heard(observer)
        published = [await scene.publish(new_job(lane)) for lane in range(4)]
        async with asyncio.timeout(10):
            told = {(await receipts.get()).subject for _ in published}
        answers = [
            json.loads((await producer.request(f"job.{ask}.{each.job}", timeout=5)).data)
            for each in published
            for ask in ("query", "history") * 2  # the worker that is asked drives the lane, or asks the other
        ]
        workers = {report["worker"] for report in await reports(observer, 2)}
        services = await observer.request("$SRV.PING.job-status", timeout=5)
    assert {f"job.relayed.{each.job}" for each in published} == told
    assert ["acknowledged"] * 8 == [answer["progress"] for answer in answers[::2]]
    assert [1] * 8 == [len(answer["updates"]) for answer in answers[1::2]]
    assert {first.worker_status.report().worker, second.worker_status.report().worker} == workers
    assert "job-status" == json.loads(services.data)["name"]
    assert [] == violations(guarded)


async def reports(client: Client, count: int) -> list[dict[str, Any]]:
    """The answers of this many workers to one question."""
    answers: asyncio.Queue[Msg] = asyncio.Queue()
    inbox = client.new_inbox()
    await client.subscribe(inbox, cb=answers.put)
    await client.publish("relay.report", reply=inbox)
    async with asyncio.timeout(5):
        return [json.loads((await answers.get()).data) for _ in range(count)]


async def forget_an_advisory(scene: Scene) -> None:
    """Let the relay handle an advisory for an update that no longer exists, which it then deletes."""
    deleted = asyncio.Event()

    async def note(message: Msg) -> None:
        if json.loads(message.data)["subject"] == api_message_delete(ADVISORY_STREAM):
            deleted.set()

    await scene.nc.subscribe("$JS.EVENT.ADVISORY.API", cb=note)
    await scene.nc.publish(ADVISORY, json.dumps({"stream_seq": 2**40, "deliveries": 50}).encode())
    async with asyncio.timeout(10):
        await deleted.wait()


async def test_an_operator_provisions(guarded):
    """The user `operator` provisions, changes the lanes and checks; the user `observer` can also check."""
    operator = await connect(settings(guarded, "operator"), name="test")
    observer = await connect(settings(guarded, "observer"), name="test")
    try:
        for lanes in (4, 6):
            wanted = topology_of(DeliverySettings(lanes=lanes))
            await provision(operator, wanted)
        plans = [await check(client, wanted) for client in (operator, observer)]
    finally:
        await close(operator)
        await close(observer)
    assert [True, True] == [plan.in_place for plan in plans]
    assert [] == violations(guarded)


@pytest.mark.parametrize("role", ["operator", "observer"])
async def test_who_watches_updates(guarded, facilitator, role):
    """Operators and observers receive each published update once, also one that is replayed."""
    async with (
        scene_of(guarded, facilitator),
        signed_in(guarded, role) as watching,
        signed_in(guarded, "producer") as producer,
        signed_in(guarded, "operator") as operator,
    ):
        updates = await watching.subscribe("job.status.*")
        await until_heard(watching)
        for client in (producer, operator):
            await client.jetstream().publish(f"job.status.{JOB}", update(JOB))
        await until_heard(watching)
        heard = await subjects_of(updates)
    assert [f"job.status.{JOB}"] * 2 == heard
