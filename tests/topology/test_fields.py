"""The table of fields against a real server: each is known, and each harmful one is found, named, and put back."""

from typing import Any

import pytest
from relay_kit import Scene, said

from relay.contract import subjects
from relay.contract.errors import UnsafeChange
from relay.nats.jetstream import api_request
from relay.service.intervals import Intervals
from relay.topology.fields import CONSUMER_FIELDS, STREAM_FIELDS, Owner
from relay.topology.plan import Actual, make_plan
from relay.topology.provision import DEAD_LETTER_ROOM, Topology, check, provision, wanted

NS = 1_000_000_000
MINUTE = 60 * NS
ALL_STREAM_OPTIONS: list[dict[str, Any]] = [
    {
        "description": "d",
        "max_consumers": 5,
        "discard": "new",
        "max_msgs_per_subject": 9,
        "discard_new_per_subject": True,
        "no_ack": True,
        "compression": "s2",
        "first_seq": 7,
        "subject_transform": {"src": ">", "dest": "to.>"},
        "republish": {"src": ">", "dest": "copy.>"},
        "allow_direct": True,
        "deny_delete": True,
        "deny_purge": True,
        "consumer_limits": {"max_ack_pending": 5, "inactive_threshold": NS},
        "allow_atomic": True,
        "allow_batched": True,
        "placement": {"tags": []},
        "metadata": {"a": "b"},
    },
    {"allow_msg_ttl": True, "subject_delete_marker_ttl": MINUTE, "allow_rollup_hdrs": True},
    {"allow_msg_counter": True},
    {"allow_msg_schedules": True},
    {"persist_mode": "async"},
    {"sources": [{"name": "ALL_0"}], "subjects": []},
    {"mirror": {"name": "ALL_0"}, "subjects": [], "mirror_direct": True},
]
"""Options that streams can have; some exclude each other."""
PUSH = {
    "deliver_subject": "push",
    "deliver_group": "g",
    "idle_heartbeat": NS,
    "rate_limit_bps": 9,
    "ack_policy": "none",
}
ALL_CONSUMER_OPTIONS: list[dict[str, Any]] = [
    {
        "description": "d",
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": 3,
        "filter_subject": "a.b",
        "max_waiting": 3,
        "headers_only": True,
        "max_batch": 4,
        "max_expires": NS,
        "max_bytes": 5,
        "inactive_threshold": MINUTE,
        "num_replicas": 1,
        "mem_storage": True,
        "pause_until": "2030-01-01T00:00:00Z",
        "priority_groups": ["g"],
        "priority_policy": "pinned_client",
        "priority_timeout": NS,
        "sample_freq": "100",
    },
    {"backoff": [NS], "max_deliver": 5, "filter_subjects": ["a.b", "a.c"]},
    {"deliver_policy": "by_start_time", "opt_start_time": "2020-01-01T00:00:00Z"},
    PUSH,
    {"deliver_subject": "push", "idle_heartbeat": NS, "flow_control": True},
]
NOT_TO_BE_HAD = {"template_owner", "direct", "sourcing"}
"""An older server's, and those of the server's own consumers."""


async def test_every_field_that_the_server_returns_is_known(nc):
    """All options of streams and consumers are set and read back: the table has each field, and no other."""
    streams, consumers = set(), set()
    for number, options in enumerate(ALL_STREAM_OPTIONS):
        name = f"ALL_{number}"
        config = {"name": name, "subjects": [f"{number}.>"]} | options
        streams |= (await api_request(nc, subjects.api_stream_create(name), config))["config"].keys()
    await api_request(nc, subjects.api_stream_create("CONSUMED"), {"name": "CONSUMED", "subjects": ["a.*"]})
    for number, options in enumerate(ALL_CONSUMER_OPTIONS):
        config = {"name": f"c{number}", "durable_name": f"c{number}", "ack_policy": "explicit"} | options
        request = f"$JS.API.CONSUMER.CREATE.CONSUMED.c{number}" + (".a.b" if "filter_subject" in options else "")
        created = await api_request(nc, request, {"stream_name": "CONSUMED", "config": config})
        consumers |= created["config"].keys()
    assert (STREAM_FIELDS.keys() | CONSUMER_FIELDS.keys()) - NOT_TO_BE_HAD == streams | consumers
    assert streams <= STREAM_FIELDS.keys()
    assert consumers <= CONSUMER_FIELDS.keys()


def test_the_table_says_ours_of_what_is_compared_everywhere(topology):
    """What is wanted in each stream, or in each lane consumer, is ours in the table, and nothing else."""
    want = wanted(topology, 4 * DEAD_LETTER_ROOM)
    everywhere = set.intersection(*(set(config) for config in want.streams.values()))
    assert everywhere == {name for name, field in STREAM_FIELDS.items() if field.owner is Owner.OURS}
    in_consumers = set(want.consumers["relay-lane-0"])
    assert in_consumers == {name for name, field in CONSUMER_FIELDS.items() if field.owner is Owner.OURS}


async def change(nc: Any, name: str, **fields: Any) -> None:
    """Change a stream or consumer as an operator would."""
    if name == subjects.lane_consumer(0):
        info = await api_request(nc, subjects.api_consumer_info(subjects.STATUS_STREAM, name))
        config = info["config"] | fields
        request = subjects.api_consumer_create(subjects.STATUS_STREAM, name, config["filter_subject"])
        await api_request(nc, request, {"stream_name": subjects.STATUS_STREAM, "config": config, "action": "update"})
        return
    config = (await api_request(nc, subjects.api_stream_info(name)))["config"]
    await api_request(nc, subjects.api_stream_update(name), config | fields)


PUT_BACK: list[tuple[str, dict[str, Any]]] = [
    ("JOB_STATUS", {"allow_rollup_hdrs": True}),
    ("JOB_STATUS", {"max_msgs_per_subject": 5, "discard_new_per_subject": True}),
    ("JOB_STATUS", {"discard": "old", "max_bytes": 1_000_000}),
    ("JOB_STATUS", {"max_age": MINUTE * 10}),
    ("JOB_STATUS", {"no_ack": True}),
    ("JOB_STATUS", {"republish": {"src": ">", "dest": "job.dlq.>"}}),
    ("JOB_STATUS", {"republish": {"src": "job.status.*.*", "dest": "{{wildcard(2)}}"}}),
    ("JOB_STATUS", {"consumer_limits": {"inactive_threshold": MINUTE, "max_ack_pending": 1000}}),
    ("JOB_DLQ", {"subject_transform": {"src": "job.dlq.*", "dest": "elsewhere.{{wildcard(1)}}"}}),
    ("JOB_DLQ", {"max_age": MINUTE * 60}),
    ("JOB_DLQ", {"sources": [{"name": "JOB_REQUESTS"}]}),
    ("JOB_ADVISORIES", {"max_msg_size": 10}),
    ("KV_RELAY_LEASES", {"subject_delete_marker_ttl": MINUTE}),
    ("relay-lane-0", {"max_bytes": 1000}),
    ("relay-lane-0", {"headers_only": True}),
    ("relay-lane-0", {"priority_groups": ["g"], "priority_policy": "overflow"}),
    ("relay-lane-0", {"inactive_threshold": MINUTE}),
    ("relay-lane-0", {"backoff": [NS]}),
    ("relay-lane-0", {"deliver_group": "g"}),
]


@pytest.mark.parametrize(("name", "options"), PUT_BACK, ids=str)
async def test_what_breaks_the_promise_is_named_and_put_back(provisioned, topology, name, options):
    """A harmful option of a stream or consumer is found by a check, with its name, and undone by provisioning."""
    await change(provisioned, name, **options)
    found = "; ".join((await check(provisioned, topology)).differences)
    await provision(provisioned, topology)
    assert f"{name} differs" in found
    assert next(iter(options)) in found or "ack_wait" in found
    assert () == (await check(provisioned, topology)).differences


YOURS: list[tuple[str, dict[str, Any]]] = [
    ("JOB_STATUS", {"description": "d", "max_bytes": 10_000_000, "compression": "s2", "metadata": {"team": "a"}}),
    ("JOB_STATUS", {"republish": {"src": ">", "dest": "copies.>"}, "allow_atomic": True, "allow_batched": True}),
    ("JOB_STATUS", {"max_age": 30 * 24 * 60 * MINUTE, "max_consumers": 50}),
    ("JOB_REQUESTS", {"deny_delete": True, "deny_purge": True}),
    ("relay-lane-0", {"max_batch": 50, "max_expires": MINUTE, "sample_freq": "10", "description": "d"}),
    ("relay-lane-0", {"num_replicas": 1}),
]


@pytest.mark.parametrize(("name", "options"), YOURS, ids=str)
async def test_what_an_operator_may_choose_is_kept(provisioned, topology, name, options):
    """Options that cost no update are neither reported nor changed."""
    await change(provisioned, name, **options)
    assert (await check(provisioned, topology)).in_place


CANNOT_BE_UNDONE: list[tuple[str, dict[str, Any]]] = [
    ("JOB_STATUS", {"allow_msg_ttl": True}),
    ("JOB_STATUS", {"allow_msg_ttl": True, "subject_delete_marker_ttl": MINUTE}),
    ("JOB_DLQ", {"deny_purge": True}),
    ("JOB_ADVISORIES", {"deny_delete": True}),
]


@pytest.mark.parametrize(("name", "options"), CANNOT_BE_UNDONE, ids=str)
async def test_what_cannot_be_undone_is_a_warning(provisioned, topology, name, options):
    """If an option cannot be undone and the rest works, provisioning goes on and says what it means."""
    await change(provisioned, name, **options)
    told = (await provision(provisioned, topology)).warnings
    left = await check(provisioned, topology)
    assert f"stream {name} has {next(iter(options))} True: " in "; ".join(told)
    assert "does not let it be undone" in told[0]
    assert (True, True, False, told) == (left.is_done, left.suffices, left.in_place, left.warnings)


@pytest.mark.parametrize(
    "options",
    [
        {"discard": "old", "allow_msg_counter": True},
        {"discard": "old", "allow_msg_schedules": True},
        {"persist_mode": "async"},
    ],
    ids=str,
)
async def test_what_loses_updates_for_good_is_refused(nc, topology, options):
    """A stream that was made with an option that loses updates, and cannot be changed, is refused with the reason."""
    config = {"name": "JOB_STATUS", "subjects": ["job.status.*"]} | options
    await api_request(nc, subjects.api_stream_create("JOB_STATUS"), config)
    with pytest.raises(UnsafeChange) as refused:
        await provision(nc, topology)
    assert f"stream JOB_STATUS has {list(options)[-1]}" in str(refused.value)


@pytest.mark.parametrize("value", [True, 5, "fast", {"a": 1}, ["x"]])
def test_a_field_of_a_newer_server_is_reported(topology, value):
    """A field that the table does not know is a warning, whatever its value, unless the option is off."""
    want = wanted(topology, 4 * DEAD_LETTER_ROOM)
    streams = {
        name: {"config": config, "state": {"messages": 0, "last_seq": 0}} for name, config in want.streams.items()
    }
    made = {name: {"config": config, "num_pending": 0} for name, config in want.consumers.items()}
    made = {name: info | {"config": info["config"] | {"deliver_policy": "all"}} for name, info in made.items()}

    def told(value: Any) -> tuple[str, ...]:
        changed = streams | {
            "JOB_DLQ": {**streams["JOB_DLQ"], "config": want.streams["JOB_DLQ"] | {"brand_new": value}}
        }
        consumer = made | {"relay-lane-1": {"config": made["relay-lane-1"]["config"] | {"newer": value}}}
        return make_plan(want, Actual(changed, consumer, {}, {})).warnings

    assert ["stream JOB_DLQ has brand_new", "consumer relay-lane-1 has newer"] == [
        text.partition(f" {value}, which this version of the relay does not know")[0] for text in told(value)
    ]
    assert [()] * 5 == [told(off) for off in (False, 0, "", None, {})]


async def test_a_pause_is_named_with_its_end(provisioned):
    """A paused consumer is reported with the time until which it is paused; provisioning does not end the pause."""
    pause = {"pause_until": "2030-01-01T00:00:00Z"}
    await api_request(provisioned, "$JS.API.CONSUMER.PAUSE.JOB_STATUS.relay-lane-1", pause)
    await provision(provisioned, Topology(4, 1, 6, 50, 5))
    (told,) = (await check(provisioned, Topology(4, 1, 6, 50, 5))).warnings
    assert "consumer relay-lane-1 is paused until 2030-01-01T00:00:00Z" in told


async def test_a_running_relay_says_what_was_changed(nats_server, facilitator):
    """/readyz names a harmful option that appears while the relay runs, and forgets it after provisioning."""
    rollups = "stream JOB_STATUS differs: allow_rollup_hdrs true -> unset (a message with the header Nats-Rollup"
    async with Scene(nats_server, facilitator) as scene:
        await change(scene.nc, "JOB_STATUS", allow_rollup_hdrs=True)  # it does not keep a relay from starting
        async with scene.relay(intervals=Intervals(topology_look_s=0.02)) as relay:
            told = await said(relay, lambda told: any(rollups in each for each in told["missing"]))
            await scene.provision()
            again = await said(relay, lambda told: told["ready"])
            await change(scene.nc, "JOB_STATUS", allow_msg_ttl=True)
            warned = await said(relay, lambda told: "warnings" in told)
    assert (False, {"ready": True, "missing": []}, True) == (told["ready"], again, warned["ready"])
    assert ["stream JOB_STATUS has allow_msg_ttl True: a message with the header Nats-TTL is removed"] == [
        each.partition(" when")[0] for each in warned["warnings"]
    ]
