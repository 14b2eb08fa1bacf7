"""How `relay doctor` judges the state of the relay."""

from dataclasses import replace

import msgspec
import pytest

from relay.contract.report import ConnectionReport, LaneReport, Report
from relay.dead_letters.reasons import ReasonCounts
from relay.doctor.state import STATE_CHECKS, judge
from relay.overview.snapshot import LaneState, Overview, StreamState

A, B = "host-1-a", "host-2-b"
LANE = LaneReport(0, at_hand=0, out=0, held=False, oldest_at_hand_s=0.0, trouble=None)
REPORT = Report(A, "1.0", 60.0, [], [LANE], [ConnectionReport(32, 0, None)], {}, {}, 0, {})
STREAM = StreamState("JOB_STATUS", 10, 4096, 10, -1, -1, 7 * 86_400, copies=3)
WELL = Overview(
    taken_s=0.0,
    server_ahead_s=0.002,
    clock_error_s=0.001,
    lanes=(LaneState(0, A), LaneState(1, A)),
    streams={"JOB_STATUS": STREAM},
    workers=frozenset({A}),
    reports={A: REPORT},
    asked=True,
    letters=ReasonCounts(),
    advisories=0,
    published=10,
)


def verdicts(seen: Overview) -> dict[str, str]:
    """The gravest verdict of each check that is not ok."""
    graver = {finding.check: str(finding.verdict) for finding in judge(seen) if finding.verdict == "warn"}
    return graver | {finding.check: "fail" for finding in judge(seen) if finding.verdict == "fail"}


def told(seen: Overview, check: str) -> str:
    return "; ".join(finding.found for finding in judge(seen) if finding.check == check)


def oldest(age_s: float) -> Overview:
    return replace(WELL, lanes=(LaneState(0, A, waiting=3, delivered=2, oldest_s=age_s), LaneState(1, A)))


def holding(**changes) -> Overview:
    return replace(WELL, streams={"JOB_STATUS": replace(STREAM, **changes)})


def test_well():
    """Where nothing is wrong every check says ok, in one order, and what is ok has no remedy."""
    assert [(name, "ok", "") for name in STATE_CHECKS] == [
        (finding.check, finding.verdict, finding.remedy) for finding in judge(WELL)
    ]


def reporting(**changes) -> Overview:
    return replace(WELL, reports={A: msgspec.structs.replace(REPORT, **changes)})


STUCK = msgspec.structs.replace(LANE, trouble="the consumer is gone")


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (replace(WELL, workers=frozenset(), reports={}), {"workers": "fail", "lanes": "warn"}),
        (replace(WELL, workers=frozenset({A, B})), {"workers": "warn"}),
        (reporting(missing=["the Facilitator is away"]), {"workers": "fail"}),
        (replace(WELL, asked=False, reports={}), {"workers": "warn"}),
        (reporting(lanes=[STUCK]), {"lanes": "fail"}),
        (replace(WELL, lanes=(LaneState(0, A), LaneState(1, None))), {"lanes": "fail"}),
        (replace(WELL, lanes=(LaneState(0, A), LaneState(1, B))), {"lanes": "warn"}),
        (replace(WELL, lanes=(LaneState(0, A, trouble="its consumer is missing"),)), {"lanes": "fail"}),
        (oldest(59.9), {}),
        (oldest(60.0), {"backlog": "warn"}),
        (oldest(600.0), {"backlog": "fail"}),
        (replace(WELL, letters=ReasonCounts(1, 1, {"refused": 1})), {"dead letters": "warn"}),
        (replace(WELL, advisories=1), {"advisories": "warn"}),
        (holding(bytes=79, max_bytes=100), {}),
        (holding(bytes=80, max_bytes=100), {"storage": "warn"}),
        (holding(bytes=95, max_bytes=100), {"storage": "fail"}),
        (holding(messages=95, max_messages=100), {"storage": "fail"}),
        (holding(copies=1), {"copies": "warn"}),
        (holding(behind=("n2",)), {"copies": "warn"}),
        (replace(WELL, server_ahead_s=1.0), {}),
        (replace(WELL, server_ahead_s=1.1), {"clock": "warn"}),
        (replace(WELL, server_ahead_s=-5.0), {"clock": "warn"}),
        (replace(WELL, server_ahead_s=5.0, clock_error_s=4.5), {}),
    ],
)
def test_verdicts(seen, expected):
    """Each fault is found by its own check and by no other, as grave as it is, from its threshold on."""
    assert expected == verdicts(seen)


@pytest.mark.parametrize("seen", [WELL, oldest(700.0), holding(copies=1), reporting(missing=["x"])])
def test_remedies(seen):
    """Whatever is not ok says what to do."""
    assert [] == [finding for finding in judge(seen) if (finding.verdict == "ok") != (finding.remedy == "")]


def test_backlog_in_words():
    """What is not settled is counted, with the oldest, its lane, and when JetStream will remove it."""
    assert "5 not settled, the oldest for 6 d (lane 0); JetStream removes it in 24 h, relayed or not" == told(
        oldest(6 * 86_400.0), "backlog"
    )


def test_dead_letters_in_words():
    """Dead letters are counted by reason; if there are too many to look at all, it says of how many it speaks."""
    seen = replace(WELL, letters=ReasonCounts(70_000, 10_000, {"refused": 9_999, "": 1}))
    assert "70000 in JOB_DLQ: of the newest 10000: refused 9999, without a reason 1" == told(seen, "dead letters")


def test_shares_in_words():
    """It is said who drives which lanes."""
    seen = replace(WELL, lanes=(LaneState(0, A), LaneState(1, B), LaneState(2, A)), workers=frozenset({A, B}))
    assert f"3 lanes, each driven: lanes 0, 2 by {A}; lane 1 by {B}" == told(seen, "lanes")


def test_clock_in_words():
    """The direction of a wrong clock is said, as seen from this machine."""
    assert "this machine's is 5.0 s ahead of that of NATS" in told(replace(WELL, server_ahead_s=-5.0), "clock")
    assert "this machine's is 5.0 s behind that of NATS" in told(replace(WELL, server_ahead_s=5.0), "clock")
