"""The findings of `relay doctor` for a snapshot."""

from dataclasses import replace

import msgspec
import pytest
from snapshot_kit import LANES, WORKER, report, snapshot

from relay.contract.report import ConnectionReport, LaneReport, LostOwner
from relay.contract.subjects import LEASE_STREAM
from relay.dead_letters.reasons import ReasonCounts
from relay.doctor.findings import Finding, Level, fail, ok
from relay.doctor.nats_checks import judge_account, soften_server_failures
from relay.doctor.state_checks import STATE_CHECKS, check_state
from relay.overview.snapshot import LaneSnapshot, Snapshot

OTHER = "host-2-b"
WELL = snapshot()
STUCK = LaneReport(0, at_hand=0, out=0, held=False, oldest_at_hand_s=0.0, trouble="the consumer is gone")
CONFUSED = LaneReport(0, at_hand=3, out=0, held=False, oldest_at_hand_s=1.0, trouble=None, unexplained=3)


def oldest(age_s: float) -> Snapshot:
    lane = LaneSnapshot(0, WORKER, waiting=3, delivered=2, oldest_s=age_s)
    return snapshot(lanes=(lane, LaneSnapshot(1, WORKER)))


def driven_by(*owners: str | None, **changes: str) -> Snapshot:
    return snapshot(lanes=tuple(LaneSnapshot(lane, owner, **changes) for lane, owner in enumerate(owners)))


def found(seen: Snapshot, check: str) -> str:
    return "; ".join(finding.found for finding in check_state(seen) if finding.check == check)


def test_well():
    """If nothing is wrong, every check has one finding, ok and without advice, in the order of STATE_CHECKS."""
    assert [(name, Level.OK, "") for name in STATE_CHECKS] == [
        (finding.check, finding.level, finding.remedy) for finding in check_state(WELL)
    ]


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (snapshot(workers=frozenset(), reports={}), {"workers": "fail", "lanes": "warn"}),
        (snapshot(workers=frozenset()), {"workers": "fail", "lanes": "warn"}),
        (snapshot(workers=frozenset({WORKER, OTHER})), {"workers": "warn"}),
        (snapshot(reports={}, silent_s={WORKER: 3.1}), {"workers": "fail"}),
        (snapshot(workers=frozenset({WORKER, OTHER}), silent_s={OTHER: 3.1}), {"workers": "warn"}),
        (snapshot(reports={}), {"workers": "warn"}),
        (snapshot(report(missing=["stores nothing; x"], intake="stores nothing; x")), {"intake": "fail"}),
        (snapshot(stream={"idle_s": 61.0}), {"intake": "warn"}),
        (snapshot(stream={"idle_s": None}), {"intake": "warn"}),
        (snapshot(report(missing=["the Facilitator is away"])), {"workers": "fail"}),
        (snapshot(may_ask_workers=False, reports={}), {"workers": "warn"}),
        (snapshot(report(slow_consumer=2)), {"workers": "warn"}),
        (snapshot(report(lanes=[STUCK, *LANES[1:]])), {"lanes": "fail"}),
        (snapshot(report(lanes=[CONFUSED, *LANES[1:]])), {"lanes": "fail"}),
        (driven_by(WORKER, None), {"lanes": "fail"}),
        (driven_by(WORKER, OTHER), {"lanes": "warn"}),
        (driven_by(WORKER, trouble="its consumer is missing"), {"lanes": "fail", "backlog": "warn"}),
        (oldest(59.9), {}),
        (oldest(60.0), {"backlog": "warn"}),
        (oldest(600.0), {"backlog": "fail"}),
        (snapshot(dead_letters=ReasonCounts(1, 1, {"refused": 1})), {"dead letters": "warn"}),
        (snapshot(advisories=1), {"advisories": "warn"}),
        (snapshot(stream={"bytes": 79, "max_bytes": 100}), {}),
        (snapshot(stream={"bytes": 80, "max_bytes": 100}), {"storage": "warn"}),
        (snapshot(stream={"bytes": 95, "max_bytes": 100}), {"storage": "fail"}),
        (snapshot(stream={"messages": 95, "max_messages": 100}), {"storage": "fail"}),
        (snapshot(stream={"replicas": 1}), {"copies": "warn"}),
        (snapshot(stream={"behind": ("n2",)}), {"copies": "warn"}),
        (snapshot(stream={"replicas": 3, "copies": 2}), {"copies": "warn"}),
        (snapshot(stream={"replicas": 3, "copies": 3}), {}),
        (snapshot(server_ahead_s=1.0), {}),
        (snapshot(server_ahead_s=1.1), {"clock": "warn"}),
        (snapshot(server_ahead_s=-5.0), {"clock": "warn"}),
        (snapshot(report(server_ahead_s=-7200.0)), {"clock": "warn"}),
        (snapshot(report(server_ahead_s=0.9)), {}),
        (snapshot(report(connections=[ConnectionReport(32, 0, "refused")])), {"workers": "warn"}),
        (snapshot(report(missing=["refused"], connections=[ConnectionReport(32, 0, "refused")])), {"workers": "fail"}),
        (snapshot(report(connections=[ConnectionReport(32, 32, None, 9.9)])), {}),
        (snapshot(report(connections=[ConnectionReport(32, 32, None, 10.0)])), {"workers": "warn"}),
        (snapshot(report(connections=[ConnectionReport(32, 32, None, 30.0)])), {"workers": "fail"}),
        (snapshot(report(lost_owner=LostOwner(OTHER, 2, 60.0))), {"workers": "warn"}),
        (snapshot(report(lost_owner=LostOwner(OTHER, 2, 3601.0))), {}),
        (snapshot(report(lost_owner=LostOwner(WORKER, 2, 60.0))), {}),
        (snapshot(server_ahead_s=5.0, clock_error_s=4.5), {}),
    ],
)
def test_levels(seen, expected):
    """Each fault is found only by its own check, at its level, from its threshold on."""
    findings = sorted(check_state(seen), key=lambda finding: [*Level].index(finding.level))
    assert expected == {finding.check: str(finding.level) for finding in findings if finding.level is not Level.OK}


@pytest.mark.parametrize(
    "seen", [WELL, oldest(700.0), snapshot(stream={"replicas": 1}), snapshot(report(missing=["x"])), driven_by(OTHER)]
)
def test_remedies(seen):
    """Every finding that is not ok says what to do."""
    assert [] == [finding for finding in check_state(seen) if (finding.level == "ok") != (finding.remedy == "")]


def test_a_silent_worker_whose_entry_stays_for_ever():
    """In a bucket that forgets nobody a worker without a report is not called dead after no time at all."""
    seen = snapshot(reports={}, silent_s={WORKER: 0.3})
    leases = replace(seen.streams[LEASE_STREAM], max_age_s=0.0)
    [silent] = [
        each
        for each in check_state(replace(seen, streams={**seen.streams, LEASE_STREAM: leases}))
        if each.check == "workers"
    ]
    assert (Level.WARN, f"no report from {WORKER}") == (silent.level, silent.found)
    assert "`relay provision` sets max_age again" in silent.remedy


def test_a_silent_owner_in_words():
    """A worker that neither answers nor renews its leases is named with its lanes, and what happens to them."""
    [silent] = [each for each in check_state(snapshot(reports={}, silent_s={WORKER: 4.0})) if each.check == "workers"]
    assert silent.found.startswith(f"no sign of life of {WORKER} for 4.0 s: it died, hangs, or is cut off from NATS; ")
    assert silent.found.endswith("lanes 0, 1, 2, 3 stand still meanwhile")
    assert silent.remedy.endswith("takes its lanes 6 s (RELAY_LEASE_TTL) after that sign")


def test_other_settings_in_words():
    """Settings with which workers run, and that are others here, are warnings, each with those workers."""
    seen = snapshot(report(settings={"RELAY_REPLICAS": 3, "RELAY_LANES": 4}), report(OTHER, settings={}))
    found = [each.found for each in check_state(seen, {"RELAY_REPLICAS": 1, "RELAY_LANES": 4}) if each.level != "ok"]
    assert [f"RELAY_REPLICAS is 1 here, and 3 where {WORKER} runs"] == found


def test_no_quorum():
    """If most servers of a cluster cannot be used, the way out is that of a lost quorum, not to look after each."""
    away, here = fail("nats", "refused", "check it"), ok("nats", "fine")
    assert "2 of 3 servers cannot be used" in soften_server_failures([away, here, away])[-1].found
    assert ["warn", "ok", "ok"] == [each.level for each in soften_server_failures([away, here, here])]
    assert [away, away] == soften_server_failures([away, away])


@pytest.mark.parametrize(
    ("info", "level", "part"),
    [
        ({"storage": 5, "limits": {"max_storage": -1}}, "ok", "no limit of its own"),
        ({"storage": 79, "limits": {"max_storage": 100}}, "ok", "(79%)"),
        ({"storage": 80, "limits": {"max_storage": 100}}, "warn", "(80%)"),
        ({"storage": 0, "limits": {"max_storage": 0}}, "fail", "may store nothing"),
        ({"limits": {}, "tiers": {"R3": {"storage": 990, "limits": {"max_storage": 330}}}}, "fail", "(100%)"),
        ({"limits": {}, "tiers": {"R3": {"storage": 990, "limits": {"max_storage": -1}}}}, "ok", "no limit of its own"),
        ({"limits": {}, "tiers": {"R1": {"storage": 0, "limits": {"max_storage": 330}}}}, "fail", "none with R3"),
        ({"limits": {}, "tiers": {"R1": {"storage": 33, "limits": {"max_storage": 330}}}}, "ok", "(10%)"),
    ],
)
def test_account(info, level, part):
    """What the account stores is compared with its limit; if it has tiers, with those of the tiers that are in use."""
    finding = judge_account(info, 3)
    assert (level, True) == (finding.level, part in finding.found)


def test_workers_that_cannot_announce_themselves():
    """If the leases cannot be stored, the workers that run are not called dead, and what they report is shown."""
    seen = snapshot(report(missing=["the lanes cannot be shared out: no room"]), workers=frozenset())
    assert f"{WORKER}: the lanes cannot be shared out: no room; 1 run, and none can announce" in found(seen, "workers")


def test_backlog_in_words():
    """Unsettled updates are counted, with the age of the oldest, its lane, and when JetStream will remove it."""
    expected = "5 not settled, the oldest for 6 d (lane 0); JetStream removes it in 24 h, relayed or not"
    assert expected == found(oldest(6 * 86_400.0), "backlog")
    unread = LaneSnapshot(1, WORKER, trouble="consumer relay-lane-1 is missing")
    seen = replace(oldest(1.0), lanes=(oldest(1.0).lanes[0], unread))
    assert "5 not settled, the oldest for 1.0 s (lane 0), without lane 1, which cannot be read" == found(
        seen, "backlog"
    )


def test_most_frequent_reason():
    """The advice is for the most frequent reason; if they cannot be counted, the workers' own counts are used."""
    counts = ReasonCounts(3, uncounted="they cannot be counted by reason")
    seen = snapshot(report(dead_letters={"refused": 1, "invalid_json": 2}), dead_letters=counts)
    [finding] = [each for each in check_state(seen) if each.check == "dead letters"]
    expected = "by reason; the workers have written invalid_json 2, refused 1)"
    assert (True, True) == (finding.found.endswith(expected), finding.remedy.startswith("invalid_json means that "))


def test_full_lanes_in_words():
    """If lanes have no memory left, the backlog names them and the setting."""
    lanes = [msgspec.structs.replace(lane, full=lane.lane in {1, 3}) for lane in LANES]
    seen = replace(oldest(70.0), reports={WORKER: report(lanes=lanes)})
    [finding] = [finding for finding in check_state(seen) if finding.check == "backlog"]
    assert finding.found.endswith("; the memory of lanes 1, 3 is full, so the rest waits in JetStream")
    assert "RELAY_MEMORY_MB" in finding.remedy


def test_dead_letters_in_words():
    """Dead letters are counted by reason; if only the newest were counted, the text says how many."""
    seen = snapshot(dead_letters=ReasonCounts(70_000, 10_000, {"refused": 9_999, "": 1}))
    assert "70000 in JOB_DLQ: of the newest 10000: refused 9999, without a reason 1" == found(seen, "dead letters")


def test_owners_in_words():
    """The text says which worker drives which lanes."""
    seen = replace(driven_by(WORKER, OTHER, WORKER), workers=frozenset({WORKER, OTHER}), reports={})
    expected = Finding("lanes", Level.OK, f"3 lanes, each driven: lanes 0, 2 by {WORKER}; lane 1 by {OTHER}")
    assert expected in check_state(seen)


@pytest.mark.parametrize(("ahead_s", "expected"), [(-5.0, "5.0 s ahead of"), (5.0, "5.0 s behind")])
def test_clock_in_words(ahead_s, expected):
    """The text says in which direction this machine's clock is wrong."""
    assert f"this machine's clock is {expected} that of NATS" in found(snapshot(server_ahead_s=ahead_s), "clock")
