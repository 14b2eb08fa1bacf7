import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any
from uuid import UUID

import nats.errors
import pytest
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError

from relay.contract import subjects
from relay.contract.errors import JetStreamError, PublishUnconfirmed, UnsafeChange, UnsuitableServer
from relay.local.server import DEFAULT_MAX_PAYLOAD, NatsServer
from relay.nats.err_codes import CONSUMER_OFFLINE
from relay.nats.jetstream import api_request, publish_confirmed
from relay.topology import lane_change
from relay.topology import provision as provision_module
from relay.topology.consumer_state import lane_consumers
from relay.topology.plan import LANE_CAPACITY
from relay.topology.provision import DEAD_LETTER_ROOM, check, provision

STREAMS = ("JOB_STATUS", "JOB_DLQ", "JOB_ADVISORIES", "JOB_REQUESTS", "KV_RELAY_LEASES")
PULL_ALL = b'{"batch":500,"no_wait":true}'
UUID_A = "11111111-2222-4333-8444-555555555555"


async def stream_config(nc, name) -> dict[str, Any]:
    return (await api_request(nc, subjects.api_stream_info(name)))["config"]


async def consumer_info(nc, name) -> dict[str, Any]:
    return await api_request(nc, subjects.api_consumer_info(subjects.STATUS_STREAM, name))


async def update_stream(nc, name, **fields) -> None:
    await api_request(nc, subjects.api_stream_update(name), await stream_config(nc, name) | fields)


async def update_consumer(nc, name, **fields) -> None:
    config = (await consumer_info(nc, name))["config"] | fields
    request = subjects.api_consumer_create(subjects.STATUS_STREAM, name, config["filter_subject"])
    await api_request(nc, request, {"stream_name": subjects.STATUS_STREAM, "config": config, "action": "update"})


async def everything(nc) -> dict[str, Any]:
    """All stream and consumer configurations on the server."""
    streams = (await api_request(nc, "$JS.API.STREAM.LIST"))["streams"] or []
    found = {info["config"]["name"]: info["config"] for info in streams}
    if subjects.STATUS_STREAM in found:
        consumers = (await api_request(nc, subjects.api_consumer_list(subjects.STATUS_STREAM)))["consumers"] or []
        found |= {info["name"]: info["config"] for info in consumers}
    return found


async def publish(nc, uuids, body=b"{}") -> None:
    for uuid in uuids:
        await publish_confirmed(nc, f"job.status.{uuid}", body)


async def relayed(nc, lanes: Iterable[int]) -> list[tuple[str, bytes]]:
    """Token and body of each update that the lane consumers deliver, in stream order; the updates are acknowledged."""
    updates = []
    for lane in lanes:
        inbox = await nc.subscribe("pulled.here")
        # Without waiting: the server answers 404 as soon as there is nothing more.
        await nc.publish(subjects.api_pull("JOB_STATUS", subjects.lane_consumer(lane)), PULL_ALL, reply="pulled.here")
        while (message := await inbox.next_msg(timeout=10)).reply:
            updates.append((message.metadata.sequence.stream, subjects.token_of_stored(message.subject), message.data))
            await message.ack_sync(timeout=10)
        await inbox.unsubscribe()
    return [(token, body) for _, token, body in sorted(updates)]


async def test_everything_is_created_from_nothing(nc, topology):
    """Provisioning an empty server creates every stream and lane consumer, and says so."""
    plan = await provision(nc, topology)
    created = [f"created stream {name}" for name in STREAMS]
    created += [f"created consumer relay-lane-{lane}" for lane in range(4)]
    assert tuple(created) == plan.lines
    assert {*STREAMS, *(f"relay-lane-{lane}" for lane in range(4))} == set(await everything(nc))


async def test_the_contract_is_what_the_server_has(provisioned):
    """The status stream and its consumers have the subjects, limits and metadata that the contract promises."""
    stream = await stream_config(provisioned, "JOB_STATUS")
    expected = {
        "subjects": ["job.status.*", "relay.canary"],
        "subject_transform": {"src": "job.status.*", "dest": "job.status.{{partition(4,1)}}.{{wildcard(1)}}"},
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "max_age": 7 * 86_400 * 10**9,
        "max_msg_size": DEFAULT_MAX_PAYLOAD - DEAD_LETTER_ROOM,
        "duplicate_window": 120 * 10**9,
    }
    assert expected == {key: stream[key] for key in expected}
    consumer = (await consumer_info(provisioned, "relay-lane-3"))["config"]
    expected = {
        "durable_name": "relay-lane-3",
        "filter_subject": "job.status.3.*",
        "ack_policy": "explicit",
        "ack_wait": 5 * 10**9,
        "max_deliver": 50,
        "max_ack_pending": LANE_CAPACITY,
        "deliver_policy": "all",
    }
    assert expected == {key: consumer[key] for key in expected}
    assert "job.dlq.<token>" == consumer["metadata"][subjects.DLQ_METADATA_KEY]


async def test_a_second_run_leaves_everything(provisioned, topology):
    """A second provisioning changes nothing, and reports each thing as left alone."""
    before = await everything(provisioned)
    plan = await provision(provisioned, topology)
    assert {"left"} == {line.split()[0] for line in plan.lines}
    assert plan.in_place
    assert before == await everything(provisioned)


@pytest.mark.parametrize(("silences", "ends"), [(2, contextlib.nullcontext()), (3, pytest.raises(JetStreamError))])
async def test_consumers_that_nobody_answers_for_yet(nc, topology, monkeypatch, silences, ends):
    """On a busy cluster nobody may answer for consumers that were just made: they are asked about again."""
    left = iter(range(silences))

    async def elected_late(client):
        if next(left, None) is not None:
            raise JetStreamError("CONSUMER.LIST", 503, CONSUMER_OFFLINE, "nobody answers")
        return await lane_consumers(client)

    monkeypatch.setattr(provision_module, "lane_consumers", elected_late)
    with ends:
        await provision(nc, topology)
        assert (await check(nc, topology)).is_done


async def test_a_restarted_server_still_has_everything(nats_server, nc, topology, connect):
    """What was provisioned survives a restart of the server."""
    await provision(nc, topology)
    await nats_server.restart()
    client = await connect(nats_server.url)
    assert () == (await check(client, topology)).differences


async def test_several_at_once_agree(nc, topology):
    """If several processes provision at the same time, each succeeds."""
    await asyncio.gather(*(provision(nc, topology) for _ in range(3)))
    assert (await check(nc, topology)).in_place


async def test_check_reports_what_is_missing_and_changes_nothing(nc, topology):
    """A check of an empty server names everything as missing and creates none of it."""
    plan = await check(nc, topology)
    missing = [f"stream {name} is missing" for name in STREAMS]
    missing += [f"consumer relay-lane-{lane} is missing" for lane in range(4)]
    assert tuple(missing) == plan.differences
    assert not plan.in_place
    assert {} == await everything(nc)


async def test_drift_is_found_by_check_and_mended_by_provision(provisioned, topology):
    """Fields that were changed are reported with both values, and provisioning corrects them."""
    await update_stream(provisioned, "JOB_STATUS", max_age=3600 * 10**9, discard="old")
    await update_consumer(provisioned, "relay-lane-1", ack_wait=90 * 10**9)
    differences = (
        "stream JOB_STATUS differs: discard old -> new, max_age 1h -> 7d",
        "consumer relay-lane-1 differs: ack_wait 90s -> 5s",
    )
    assert differences == (await check(provisioned, topology)).differences
    lines = (await provision(provisioned, topology)).lines
    assert "changed consumer relay-lane-1: ack_wait 90s -> 5s" in lines
    assert (await check(provisioned, topology)).in_place


async def test_a_change_of_settings_is_carried_out(provisioned, topology):
    """New settings for acknowledgement, deliveries and leases change exactly the fields that they concern."""
    changed = replace(topology, ack_wait_s=10, max_deliver=7, lease_ttl_s=7.5)
    lines = (await provision(provisioned, changed)).lines
    assert "changed stream KV_RELAY_LEASES: max_age 5s -> 7500ms, duplicate_window 5s -> 7500ms" in lines
    assert "changed consumer relay-lane-0: ack_wait 5s -> 10s, max_deliver 50 -> 7" in lines
    assert "left stream JOB_STATUS" in lines


async def test_shorter_leases_must_be_asked_for(provisioned, topology):
    """A lower RELAY_LEASE_TTL may just be missing from the environment: it is refused, unless it is asked for."""
    shorter = replace(topology, lease_ttl_s=2.5)
    before = await everything(provisioned)
    with pytest.raises(UnsafeChange, match=r"RELAY_LEASE_TTL 5 -> 2\.5 \(max_age of KV_RELAY_LEASES\): if 5 is right"):
        await provision(provisioned, shorter)
    assert before == await everything(provisioned)
    lines = (await provision(provisioned, shorter, downgrade=True)).lines
    assert "changed stream KV_RELAY_LEASES: max_age 5s -> 2500ms, duplicate_window 5s -> 2500ms" in lines


async def test_what_an_operator_added_stays(provisioned, topology):
    """Fields that the relay does not set do not count as drift, and a change does not reset them."""
    await update_stream(provisioned, "JOB_STATUS", max_bytes=10**9, description="ours", metadata={"team": "x"})
    assert (await check(provisioned, topology)).in_place
    await update_stream(provisioned, "JOB_STATUS", max_age=3600 * 10**9)
    await provision(provisioned, topology)
    config = await stream_config(provisioned, "JOB_STATUS")
    assert (10**9, "ours", "x") == (config["max_bytes"], config["description"], config["metadata"]["team"])


async def test_a_consumer_keeps_its_place_through_a_change(provisioned, topology):
    """A changed lane consumer does not deliver settled updates again."""
    await publish_confirmed(provisioned, f"job.status.{UUID_A}", b"{}")
    await relayed(provisioned, range(4))
    name = subjects.lane_consumer(subjects.lane_of(UUID_A, 4))
    await provision(provisioned, replace(topology, ack_wait_s=11))
    info = await consumer_info(provisioned, name)
    assert (1, 0, 0) == (info["ack_floor"]["stream_seq"], info["num_pending"], info["num_ack_pending"])


async def refused(nc, topology) -> str:
    """The text of the refusal; checks that nothing was changed."""
    before = await everything(nc)
    with pytest.raises(UnsafeChange) as caught:
        await provision(nc, topology)
    assert before == await everything(nc)
    return "; ".join(caught.value.refusals)


@pytest.mark.parametrize("lanes", [2, 6])
async def test_lanes_stay_while_updates_are_pending(provisioned, topology, lanes):
    """The number of lanes is not changed while an update waits in one of them."""
    await publish_confirmed(provisioned, f"job.status.{UUID_A}", b"{}")
    refusal = await refused(provisioned, replace(topology, lanes=lanes))
    assert f"lanes 4 -> {lanes} while 1 updates are not settled" in refusal


async def test_lanes_stay_while_updates_are_unacknowledged(provisioned, topology):
    """The number of lanes is not changed while an update is delivered and not acknowledged."""
    await publish_confirmed(provisioned, f"job.status.{UUID_A}", b"{}")
    lane = subjects.lane_consumer(subjects.lane_of(UUID_A, 4))
    subscription = await provisioned.jetstream().pull_subscribe_bind(lane, subjects.STATUS_STREAM)
    await subscription.fetch(1, timeout=2)
    assert "not settled" in await refused(provisioned, replace(topology, lanes=6))


async def test_lanes_stay_while_a_lane_cannot_say_what_is_settled(provisioned, topology):
    """The number of lanes is not changed while a lane's consumer is missing and updates are stored."""
    await publish_confirmed(provisioned, f"job.status.{UUID_A}", b"{}")
    await relayed(provisioned, range(4))
    await api_request(provisioned, subjects.api_consumer_delete("JOB_STATUS", "relay-lane-2"))
    assert "relay-lane-2 is missing" in await refused(provisioned, replace(topology, lanes=6))


@pytest.mark.parametrize("lanes", [1, 3, 6, 9])
async def test_lanes_change_when_all_is_settled(provisioned, topology, lanes):
    """If all is settled, the lanes change: later updates are filed anew, and old ones are not delivered again."""
    uuids = [str(UUID(int=n)) for n in range(40)]
    await publish(provisioned, uuids, b"old")
    assert [(uuid, b"old") for uuid in uuids] == await relayed(provisioned, range(4))
    await provision(provisioned, replace(topology, lanes=lanes))
    infos = (await api_request(provisioned, subjects.api_consumer_list("JOB_STATUS")))["consumers"]
    assert {f"relay-lane-{lane}" for lane in range(lanes)} == {info["name"] for info in infos}
    await publish(provisioned, uuids, b"new")
    assert [(uuid, b"new") for uuid in uuids] == await relayed(provisioned, range(lanes))


async def test_lanes_change_although_a_server_hears_late_of_the_closed_stream(provisioned, topology, monkeypatch):
    """A server of a cluster that has not heard of the new subject yet says that there are no responders."""
    confirmed, refusals = lane_change.publish_confirmed, [nats.errors.NoRespondersError] * 2

    async def heard_late(*arguments):
        if refusals:
            raise PublishUnconfirmed("job.status-closed", "no stream captures this subject") from refusals.pop()
        return await confirmed(*arguments)

    monkeypatch.setattr(lane_change, "publish_confirmed", heard_late)
    await provision(provisioned, replace(topology, lanes=6))
    assert [] == refusals
    assert 6 == (await api_request(provisioned, subjects.api_consumer_list("JOB_STATUS")))["total"]


async def test_lanes_that_come_back_do_not_repeat_what_was_settled(provisioned, topology):
    """After fewer lanes and then more again, new consumers start after the updates of earlier ones."""
    uuids = [str(UUID(int=n)) for n in range(20)]
    await publish(provisioned, uuids, b"old")
    await relayed(provisioned, range(4))
    for lanes in (1, 3, 4):
        await provision(provisioned, replace(topology, lanes=lanes))
    await publish(provisioned, uuids, b"new")
    assert [(uuid, b"new") for uuid in uuids] == await relayed(provisioned, range(4))


async def test_lanes_stay_when_an_update_slips_in(nats_server, topology, connect):
    """An update that arrives between the check and the change stops it, and the intake is open afterwards."""
    client = await connect(nats_server.url)
    await provision(client, topology)
    other = await connect(nats_server.url)
    original = client.request

    async def request(subject, *args, **kwargs):
        # The last request before the intake is closed is for the stream's configuration.
        if subject == subjects.api_stream_update("JOB_STATUS"):
            client.request = original
            await publish_confirmed(other, f"job.status.{UUID_A}", b"{}")
        return await original(subject, *args, **kwargs)

    client.request = request
    assert "an update arrived meanwhile" in await refused(client, replace(topology, lanes=6))
    assert "JOB_STATUS" == (await publish_confirmed(other, f"job.status.{UUID_A}", b"{}")).stream


async def test_lanes_are_changed_by_one_at_a_time(nc, topology):
    """If several processes change the lanes at once, one succeeds, and the others are refused and change nothing."""
    await provision(nc, topology)
    changes = [provision(nc, replace(topology, lanes=6)) for _ in range(3)]
    outcomes = await asyncio.gather(*changes, return_exceptions=True)
    assert [UnsafeChange, UnsafeChange] == [type(outcome) for outcome in outcomes if isinstance(outcome, Exception)]
    assert (await check(nc, replace(topology, lanes=6))).in_place
    assert "relay-changing-lanes" not in await everything(nc)


async def test_an_interrupted_lane_change_is_completed_by_the_next(provisioned, topology):
    """If an earlier run left the stream's intake closed, provisioning opens it, with the old lanes or with new ones."""
    await update_stream(provisioned, "JOB_STATUS", subjects=["job.status-closed.for-lane-change"])
    with pytest.raises(PublishUnconfirmed, match="no stream captures"):
        await publish_confirmed(provisioned, f"job.status.{UUID_A}", b"{}")
    await provision(provisioned, replace(topology, lanes=5))
    assert 2 == (await publish_confirmed(provisioned, f"job.status.{UUID_A}", b"{}")).sequence
    await update_stream(provisioned, "JOB_STATUS", subjects=["job.status-closed.for-lane-change"])
    await provision(provisioned, replace(topology, lanes=5))
    assert 3 == (await publish_confirmed(provisioned, f"job.status.{UUID_A}", b"{}")).sequence


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"storage": "memory"}, "stream JOB_STATUS has storage memory, the relay needs file"),
        ({"retention": "workqueue"}, "stream JOB_STATUS has retention workqueue, the relay needs limits"),
        ({"subjects": [], "mirror": {"name": "ELSEWHERE"}}, "stream JOB_STATUS has mirror "),
    ],
)
async def test_a_stream_that_cannot_be_changed_is_refused(nc, topology, fields, refusal):
    """A stream with the relay's name and another storage, retention or origin is left alone, with the reason."""
    await api_request(nc, subjects.api_stream_create("ELSEWHERE"), {"name": "ELSEWHERE", "subjects": ["elsewhere"]})
    config = {"name": "JOB_STATUS", "subjects": ["job.status.*"]} | fields
    await api_request(nc, subjects.api_stream_create("JOB_STATUS"), config)
    assert refusal in await refused(nc, topology)


async def test_a_stream_on_our_subjects_is_refused(nc, topology):
    """A foreign stream that captures some of the relay's subjects is named."""
    await api_request(nc, subjects.api_stream_create("ALL_JOBS"), {"name": "ALL_JOBS", "subjects": ["job.status.>"]})
    expected = "stream ALL_JOBS captures part of job.status.*, which JOB_STATUS needs: change its subjects"
    assert expected == await refused(nc, topology)


async def test_updates_without_a_lane_are_refused(nc, topology):
    """A status stream with updates that are filed under no lane is refused, because they would never be relayed."""
    await api_request(
        nc, subjects.api_stream_create("JOB_STATUS"), {"name": "JOB_STATUS", "subjects": ["job.status.*"]}
    )
    await publish_confirmed(nc, f"job.status.{UUID_A}", b"{}")
    assert "holds 1 updates that are filed under no lane" in await refused(nc, topology)


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"filter_subject": "job.status.9.*"}, "has filter_subject job.status.9.*, the relay needs job.status.0.*"),
        ({"ack_policy": "all"}, "has ack_policy all, the relay needs explicit"),
        ({"deliver_policy": "new"}, "has deliver_policy new, so it skips updates"),
        ({"deliver_subject": "push.here"}, "has deliver_subject push.here: a push consumer cannot be pulled from"),
    ],
)
async def test_a_consumer_that_cannot_be_changed_is_refused(provisioned, topology, fields, refusal):
    """A lane consumer that reads other subjects, skips updates or pushes is left alone, with the reason."""
    await api_request(provisioned, subjects.api_consumer_delete("JOB_STATUS", "relay-lane-0"))
    config = {"durable_name": "relay-lane-0", "filter_subject": "job.status.0.*", "ack_policy": "explicit"} | fields
    request = subjects.api_consumer_create("JOB_STATUS", "relay-lane-0", config["filter_subject"])
    await api_request(provisioned, request, {"stream_name": "JOB_STATUS", "config": config, "action": "create"})
    assert f"consumer relay-lane-0 {refusal}" in await refused(provisioned, topology)


async def test_what_the_server_made_of_it_is_read_back(proxied, connect, topology):
    """If the server stores another value than requested, both are reported."""
    proxied.edit = lambda sent: sent.replace(b'"max_deliver":50', b'"max_deliver":49')
    client = await connect(proxied.url)
    with pytest.raises(UnsuitableServer, match="consumer relay-lane-0 differs: max_deliver 49 -> 50"):
        await provision(client, topology)


async def test_a_server_without_room_for_updates_is_refused(topology, connect):
    """If max_payload leaves no room for dead letters, the server is refused, with both numbers."""
    async with NatsServer(max_payload=20_000) as server:
        client = await connect(server.url)
        with pytest.raises(UnsuitableServer, match="max_payload 20000; the relay needs more than 32768 bytes"):
            await provision(client, topology)
        await client.close()


async def test_key_value_clients_can_use_the_lease_bucket(provisioned):
    """nats-py's KeyValue binds to the bucket: create, update by revision, delete, and a conflict is an error."""
    leases = await provisioned.jetstream().key_value("RELAY_LEASES")
    first = await leases.create("lane.0", b"worker-1")
    second = await leases.update("lane.0", b"worker-1", last=first)
    assert b"worker-1" == (await leases.get("lane.0")).value
    with pytest.raises(KeyWrongLastSequenceError):
        await leases.update("lane.0", b"worker-2", last=first)
    await leases.delete("lane.0", last=second)
    assert second < await leases.create("lane.0", b"worker-2")


async def test_leases_expire(nc, topology):
    """A lease that is not renewed expires after its time to live; then it can be created again."""
    await provision(nc, replace(topology, lease_ttl_s=0.2))
    leases = await nc.jetstream().key_value("RELAY_LEASES")
    first = await leases.create("lane.0", b"worker-1")
    revision = 0
    async with asyncio.timeout(5):
        # An expiry is not announced, so it is tried until it works, as a waiting worker does.
        while not revision:
            # nats-py also reports "not found" when the lease expires between its two requests.
            with contextlib.suppress(KeyWrongLastSequenceError, KeyNotFoundError):
                revision = await leases.create("lane.0", b"worker-2")
    assert (first + 1, b"worker-2") == (revision, (await leases.get("lane.0")).value)


async def test_the_lane_is_the_servers_partition(provisioned):
    """`lane_of` gives the lane under which the server stores an update, for UUIDs and for other tokens."""
    tokens = [str(UUID(int=n * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128)) for n in range(300)]
    tokens += ["x", "not-a-uuid", "\N{LATIN SMALL LETTER E WITH ACUTE}t\N{LATIN SMALL LETTER E WITH ACUTE}", "A" * 200]
    acks = [await publish_confirmed(provisioned, f"job.status.{token}", b"{}") for token in tokens]
    for token, ack in zip(tokens, acks, strict=True):
        answer = await api_request(provisioned, subjects.api_message_get("JOB_STATUS"), {"seq": ack.sequence})
        assert subjects.stored_subject(subjects.lane_of(token, 4), token) == answer["message"]["subject"]


async def test_extra_tokens_are_not_captured(provisioned):
    """No stream captures a publish with too many or too few subject tokens, so its producer gets an error."""
    for subject in (f"job.status.{UUID_A}.extra", f"job.status.0.{UUID_A}", "job.status"):
        with pytest.raises(PublishUnconfirmed, match="no stream captures this subject"):
            await publish_confirmed(provisioned, subject, b"{}")
    assert 0 == (await api_request(provisioned, subjects.api_stream_info("JOB_STATUS")))["state"]["messages"]


async def test_a_full_stream_is_the_producers_error(provisioned):
    """If the stream is full, a publish fails, and what is stored stays."""
    await update_stream(provisioned, "JOB_STATUS", max_bytes=1000)

    async def fill() -> None:
        for _ in range(10):
            await publish_confirmed(provisioned, f"job.status.{UUID_A}", b"x" * 200)

    with pytest.raises(JetStreamError) as caught:
        await fill()
    assert 10077 == caught.value.err_code
    state = (await api_request(provisioned, subjects.api_stream_info("JOB_STATUS")))["state"]
    assert 1 == state["first_seq"]


async def test_an_update_with_no_room_for_its_dead_letter_is_the_producers_error(provisioned):
    """The largest update that the stream takes fits into the dead-letter stream with its additional headers."""
    largest = provisioned.max_payload - DEAD_LETTER_ROOM
    with pytest.raises(JetStreamError) as caught:
        await publish_confirmed(provisioned, f"job.status.{UUID_A}", b"x" * (largest + 1))
    assert 10054 == caught.value.err_code
    await publish_confirmed(provisioned, f"job.status.{UUID_A}", b"x" * largest)
    headers = {"Relay-Error": "e" * (DEAD_LETTER_ROOM - 100)}
    assert "JOB_DLQ" == (await publish_confirmed(provisioned, f"job.dlq.{UUID_A}", b"x" * largest, headers)).stream


async def test_max_deliveries_advisories_are_kept(nc, topology):
    """The advisory for an update that was delivered too often is stored under its consumer's subject."""
    await provision(nc, replace(topology, ack_wait_s=0.1, max_deliver=1))
    await publish_confirmed(nc, f"job.status.{UUID_A}", b"{}")
    lane = subjects.lane_consumer(subjects.lane_of(UUID_A, 4))
    kept = await nc.jetstream().subscribe(subjects.advisory_subject(lane), stream="JOB_ADVISORIES")
    # The server publishes it only while a pull is outstanding.
    pulled = await nc.subscribe("pulled.here")
    pull = subjects.api_pull("JOB_STATUS", lane)
    await nc.publish(pull, b'{"batch":10,"expires":8000000000}', reply="pulled.here")
    advisory = await kept.next_msg(timeout=8)
    assert subjects.advisory_subject(lane) == advisory.subject
    assert b'"stream_seq":1' in advisory.data
    await pulled.unsubscribe()
