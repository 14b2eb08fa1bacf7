from dataclasses import replace
from typing import Any

import pytest

from relay.contract import subjects
from relay.topology.comparison import Change, differences, merged
from relay.topology.drift import find_drift
from relay.topology.plan import Actual, Kind, Plan, Step, Verb, Wanted, make_plan

NS = 1_000_000_000
DAY = 86_400 * NS


def stream(**fields: Any) -> dict[str, Any]:
    """The wanted configuration of the status stream, with changes."""
    config = {"name": "JOB_STATUS", "subjects": ["job.status.*"], "storage": "file", "retention": "limits"}
    return config | {"subject_transform": subjects.lane_transform(4)} | fields


def consumer(lane: int, **fields: Any) -> dict[str, Any]:
    """The wanted configuration of a lane consumer, with changes."""
    config = {"name": f"relay-lane-{lane}", "filter_subject": f"job.status.{lane}.*", "ack_policy": "explicit"}
    return config | {"replay_policy": "instant", "mem_storage": False, "ack_wait": 5 * NS} | fields


def wanted(lanes: int = 4) -> Wanted:
    status = stream(subject_transform=subjects.lane_transform(lanes))
    return Wanted(lanes, {"JOB_STATUS": status}, {f"relay-lane-{lane}": consumer(lane) for lane in range(lanes)})


def stream_info(messages: int = 0, **fields: Any) -> dict[str, Any]:
    """The server's answer about a status stream whose last update has the sequence 100."""
    return {"config": stream(**fields), "state": {"messages": messages, "last_seq": 100}}


def consumer_info(lane: int, pending: int = 0, ack_pending: int = 0, **fields: Any) -> dict[str, Any]:
    config = consumer(lane, deliver_policy="all") | fields
    delivered = {"stream_seq": 50}
    return {"config": config, "delivered": delivered, "num_pending": pending, "num_ack_pending": ack_pending}


def actual(
    status: Any = None, *changed: Any, lanes: int = 4, last_stored: int = 50, captured_by: Any = ("JOB_STATUS",)
) -> Actual:
    """A server with everything in place, except `status` and the `changed` lane consumers."""
    consumers = {f"relay-lane-{lane}": consumer_info(lane) for lane in range(lanes)}
    consumers |= {info["config"]["name"]: info for info in changed}
    stored = dict.fromkeys(consumers, last_stored)
    return Actual({"JOB_STATUS": status or stream_info()}, consumers, stored, {"job.status.*": captured_by})


def test_nothing_there_means_everything_is_created_streams_first():
    """On an empty server everything is created, each stream before its consumers, which start at the first update."""
    plan = make_plan(wanted(2), Actual({}, {}, {}, {}))
    assert ("created stream JOB_STATUS", "created consumer relay-lane-0", "created consumer relay-lane-1") == plan.lines
    assert ["all", "all"] == [step.config["deliver_policy"] for step in plan.steps[1:]]
    assert "stream JOB_STATUS is missing" == plan.differences[0]
    assert not plan.in_place


@pytest.mark.parametrize(
    ("found", "left"), [(14 * DAY, 14 * DAY), (0, 0), (7 * DAY, 7 * DAY), (1 * DAY, 7 * DAY)], ids=str
)
def test_a_longer_life_of_updates_is_kept(found, left):
    """If an operator has raised the status stream's max_age, it stays so, also when other fields are changed."""
    want = Wanted(4, wanted().streams | {"JOB_STATUS": stream(max_age=7 * DAY)}, wanted().consumers)
    alone = make_plan(want, actual(stream_info(max_age=found)))
    assert (left == found) == alone.in_place
    with_another = make_plan(want, actual(stream_info(max_age=found, subjects=["job.status.>"])))
    assert left == with_another.steps[0].config["max_age"]


def test_everything_in_place_means_nothing_to_do():
    """What is as wanted is left alone, and a check finds no difference."""
    plan = make_plan(wanted(), actual())
    assert {Verb.LEFT} == {step.verb for step in plan.steps}
    assert (True, ()) == (plan.in_place, plan.differences)


def test_a_changed_field_is_named_with_both_values():
    """A difference is reported with both values, in one form for a change that was made and one for a finding."""
    plan = make_plan(wanted(), actual(None, consumer_info(2, ack_wait=90 * NS)))
    assert "changed consumer relay-lane-2: ack_wait 90s -> 5s" in plan.lines
    assert ("consumer relay-lane-2 differs: ack_wait 90s -> 5s",) == plan.differences


@pytest.mark.parametrize(
    ("old", "text"),
    [
        (7 * 86_400 * NS, "7d"),
        (36 * 3_600 * NS, "36h"),
        (120 * NS, "2m"),
        (90 * NS, "90s"),
        (1_500_000_000, "1500ms"),
        (1, "1ns"),
        (0, "0"),
        (None, "unset"),
    ],
)
def test_durations_are_printed_in_human_units(old, text):
    """A duration is printed in the largest unit in which it is a whole number."""
    assert (Change("max_age", text, "3d"),) == differences({"max_age": 3 * 86_400 * NS}, {"max_age": old})


@pytest.mark.parametrize(
    ("field", "old", "new", "text"),
    [
        ("discard", "old", "new", "discard old -> new"),
        ("allow_direct", True, False, "allow_direct true -> false"),
        ("subjects", ["a", "b"], ["c"], "subjects [a, b] -> [c]"),
        ("max_msgs", 10, -1, "max_msgs 10 -> -1"),
        ("backoff", [1, 2], [], "backoff [1, 2] -> []"),
        ("subject_transform", subjects.lane_transform(4), subjects.lane_transform(6), "lanes 4 -> 6"),
        ("subject_transform", None, subjects.lane_transform(6), "lanes none -> 6"),
        ("metadata", {"k": "a", "mine": "x"}, {"k": "b"}, "metadata k a -> b"),
        ("metadata", None, {"k": "b"}, "metadata k unset -> b"),
    ],
)
def test_values_are_readable(field, old, new, text):
    """Other values are printed as a person would write them."""
    assert [text] == [str(change) for change in differences({field: new}, {field: old})]


@pytest.mark.parametrize("value", [False, 0, "", [], {}])
def test_what_the_server_leaves_out_is_empty(value):
    """A false, zero or empty field that the server's answer omits is no difference."""
    assert () == differences({"field": value}, {})


def test_what_is_not_meant_is_no_difference():
    """Fields and metadata that only the server has, such as its `_nats` keys, are left alone."""
    assert () == differences({"a": 1, "metadata": {"k": "v"}}, {"a": 1, "b": 2, "metadata": {"k": "v", "_nats.v": "1"}})


def test_a_change_keeps_what_is_not_meant():
    """A change is sent with all actual fields, except the server's own metadata."""
    found = {"a": 1, "max_bytes": 9, "metadata": {"_nats.v": "1", "team": "x", "k": "old"}}
    assert {"a": 2, "max_bytes": 9, "metadata": {"team": "x", "k": "v"}} == merged(
        {"a": 2, "metadata": {"k": "v"}}, found
    )


def refusals(lanes: int, found: Actual) -> str:
    plan = make_plan(wanted(lanes), found)
    assert not plan.in_place
    assert plan.refusals == plan.differences[: len(plan.refusals)]
    return "; ".join(plan.refusals)


@pytest.mark.parametrize("lanes", [3, 5])
@pytest.mark.parametrize("unsettled", [{"pending": 2}, {"ack_pending": 2}])
def test_lanes_are_not_changed_while_updates_are_unsettled(lanes, unsettled):
    """While an update is pending or unacknowledged, a change of lanes is refused, with the lane and what to do."""
    expected = (
        f"lanes 4 -> {lanes} while 2 updates are not settled (relay-lane-1: 2): a job's later updates would overtake "
        "them in another lane; let `relay serve` finish with RELAY_LANES=4, then provision again"
    )
    assert expected == refusals(lanes, actual(stream_info(5), consumer_info(1, **unsettled)))


def test_an_update_that_the_server_has_not_counted_yet_is_unsettled():
    """A stored update after the last delivered one forbids a change of lanes, even if nothing is counted as pending."""
    assert "while 4 updates are not settled" in refusals(5, actual(stream_info(5), last_stored=51))


def test_lanes_are_not_changed_while_an_advisory_waits():
    """An update that JetStream gave up on is not counted as pending, and still forbids a change of lanes."""
    found = actual(stream_info(5))
    advisories = {"config": {"name": "JOB_ADVISORIES"}, "state": {"messages": 2}}
    found = replace(found, streams=dict(found.streams) | {"JOB_ADVISORIES": advisories})
    assert "JOB_ADVISORIES tells of 2 updates that reached max_deliver" in refusals(5, found)


def test_more_lanes_start_behind_what_is_settled():
    """Consumers of new lanes start after the last stored update; the others keep their position."""
    plan = make_plan(wanted(6), actual(stream_info(5)))
    assert ("changed stream JOB_STATUS: lanes 4 -> 6", "left consumer relay-lane-0") == plan.lines[:2]
    created = [(s.name, s.config["deliver_policy"], s.config["opt_start_seq"]) for s in plan.steps[-2:]]
    assert [("relay-lane-4", "by_start_sequence", 101), ("relay-lane-5", "by_start_sequence", 101)] == created
    assert (4, 6, 100) == (plan.lane_change.old, plan.lane_change.new, plan.lane_change.last_sequence)


def test_fewer_lanes_delete_the_surplus_last():
    """Surplus consumers are deleted after the stream has stopped filing updates under them."""
    plan = make_plan(wanted(3), actual(stream_info(5)))
    assert ("changed stream JOB_STATUS: lanes 4 -> 3", "deleted consumer relay-lane-3") == (
        plan.lines[0],
        plan.lines[-1],
    )
    assert "consumer relay-lane-3 is one too many" == plan.differences[-1]


def test_a_surplus_consumer_with_updates_is_not_deleted():
    """A consumer of no lane that still has updates is refused, also if the number of lanes does not change."""
    assert "relay-lane-4 would be deleted, but 3 updates" in refusals(4, actual(None, consumer_info(4, pending=3)))


def test_a_missing_lane_is_not_guessed_settled():
    """A change of lanes is refused while an old lane has no consumer and updates are stored."""
    assert "while relay-lane-3 is missing" in refusals(6, actual(stream_info(1), lanes=3))
    assert () == make_plan(wanted(6), actual(stream_info(0), lanes=3)).refusals


def test_a_stream_that_never_had_lanes_is_refused():
    """A stream that files updates under no lane, and has no lane's consumer, is changed only if it is empty."""
    told = "holds 3 updates that are filed under no lane"
    assert told in refusals(4, actual(stream_info(3, subject_transform=None), lanes=0))
    assert () == make_plan(wanted(), actual(stream_info(0, subject_transform=None), lanes=0)).refusals
    other = stream_info(3, subject_transform={"src": "job.status.*", "dest": "job.{{wildcard(1)}}"})
    assert told in refusals(4, actual(other))


def test_lost_lanes_come_back():
    """A stream in use that has lost its transform gets it back, but with no other number of lanes than it had."""
    lost = stream_info(3, subject_transform=None)
    plan = make_plan(wanted(), actual(lost))
    assert ((), ("stream JOB_STATUS differs: lanes none -> 4",)) == (plan.refusals, plan.differences)
    assert "by its consumers there were 4: run `relay provision` with RELAY_LANES=4 first" in refusals(8, actual(lost))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"storage": "memory"}, "has storage memory, the relay needs file"),
        ({"retention": "interest"}, "has retention interest, the relay needs limits"),
        ({"mirror": {"name": "X"}}, "has mirror "),
        ({"sealed": True}, "has sealed "),
    ],
)
def test_what_cannot_change_in_a_stream_is_refused(fields, text):
    """A difference in storage, retention or origin of a stream is refused."""
    assert f"stream JOB_STATUS {text}" in refusals(4, actual(stream_info(**fields)))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"filter_subject": "job.status.7.*"}, "has filter_subject job.status.7.*, the relay needs job.status.0.*"),
        ({"ack_policy": "none"}, "has ack_policy none, the relay needs explicit"),
        ({"replay_policy": "original"}, "has replay_policy original, the relay needs instant"),
        ({"mem_storage": True}, "has mem_storage true, the relay needs false"),
        ({"deliver_subject": "x"}, "has deliver_subject"),
        ({"deliver_policy": "last"}, "has deliver_policy last, so it skips updates"),
    ],
)
def test_what_cannot_change_in_a_consumer_is_refused(fields, text):
    """A difference in what a consumer reads or how it acknowledges is refused, with what to do."""
    refusal = refusals(4, actual(None, consumer_info(0, **fields)))
    assert f"consumer relay-lane-0 {text}" in refusal
    assert "`nats consumer rm JOB_STATUS relay-lane-0`" in refusal


def test_a_consumer_that_starts_at_a_sequence_is_ours():
    """A consumer that an earlier change of lanes made is left alone."""
    made = consumer_info(3, deliver_policy="by_start_sequence", opt_start_seq=7)
    assert make_plan(wanted(), actual(None, made)).in_place


def test_a_subject_of_another_stream_is_refused():
    """A stream that overlaps with our subjects is refused, with its name."""
    found = actual(captured_by=("JOB_STATUS", "EVERYTHING"))
    expected = "stream EVERYTHING captures part of job.status.*, which JOB_STATUS needs: change its subjects"
    assert expected == refusals(4, found)


def test_a_deleted_thing_has_its_line():
    """Each action has its own line of text."""
    steps = tuple(Step(verb, Kind.CONSUMER, "c") for verb in Verb)
    assert ("created consumer c", "changed consumer c", "left consumer c", "deleted consumer c") == Plan(steps).lines


@pytest.mark.parametrize(
    ("fields", "suffices"),
    [
        ({"num_replicas": 1}, True),
        ({"max_msg_size": 10**6}, True),
        ({"subjects": ["job.status.*", "relay.canary"]}, True),
        ({"subjects": ["job.other.*"]}, False),
        ({"subject_transform": subjects.lane_transform(2)}, False),
        ({"discard": "old"}, False),
    ],
)
def test_what_keeps_a_relay_from_starting(fields, suffices):
    """Another value of a setting does not; what the promise needs does."""
    needed = {"num_replicas": 3, "max_msg_size": 8 * 10**6, "discard": "new"}
    asked = Wanted(4, {"JOB_STATUS": stream(**needed)}, wanted().consumers)
    plan = make_plan(asked, actual(stream_info(**needed | fields)))
    assert (suffices, False) == (plan.suffices, plan.is_done)


def test_running_with_other_settings():
    """A relay with other settings than the streams have names each once, with the way out."""
    asked = Wanted(
        4, {"JOB_STATUS": stream(num_replicas=3)}, {n: c | {"max_deliver": 20} for n, c in wanted().consumers.items()}
    )
    found = actual(
        stream_info(num_replicas=1), *(consumer_info(lane, max_deliver=50, ack_wait=2 * NS) for lane in range(4))
    )
    drift = find_drift(asked, found)
    lanes = "relay-lane-0, relay-lane-1, relay-lane-2, relay-lane-3"
    assert () == drift.troubles
    assert (
        "RELAY_REPLICAS is 3 here, and 1 in JOB_STATUS",
        f"RELAY_ACK_WAIT is 5s here, and 2s in {lanes}",
        f"RELAY_MAX_DELIVER is 20 here, and 50 in {lanes}",
    ) == tuple(text.partition(", which")[0] for text in drift.warnings)
    assert 2.0 == drift.ack_wait_s


def test_consumer_without_ack_wait():
    """A lane's consumer that somebody made without acknowledgements has none; that of the others counts."""
    infos = [consumer_info(lane, ack_wait=2 * NS) for lane in range(4)]
    del infos[0]["config"]["ack_wait"]
    assert 2.0 == find_drift(wanted(), actual(stream_info(), *infos)).ack_wait_s
