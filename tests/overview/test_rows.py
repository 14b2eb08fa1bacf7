"""How urgent the rows of lanes and workers are: as the checks of the doctor say it."""

import msgspec
import pytest
from snapshot_kit import LANES, WORKER, report, snapshot

from relay.contract.report import ConnectionReport
from relay.overview.rows import Urgency, lane_rows, worker_rows
from relay.overview.snapshot import LaneSnapshot


@pytest.mark.parametrize(
    ("changes", "urgency", "words"),
    [
        ({}, Urgency.NONE, ""),
        ({"held": True}, Urgency.NONE, " (waits for what an earlier owner had)"),
        ({"trouble": "JOB_DLQ is full"}, Urgency.BROKEN, " (JOB_DLQ is full)"),
        (
            {"unexplained": 2, "held": True},
            Urgency.BROKEN,
            " (the Facilitator says that it has 2 updates that cannot have reached it)",
        ),
    ],
)
def test_lane_is_as_its_owner_reports(changes, urgency, words):
    """What the owner of a lane reports of it is in the lane's row, and in no other."""
    lanes = [msgspec.structs.replace(LANES[0], **changes), *LANES[1:]]
    row, *others = lane_rows(snapshot(report(lanes=lanes)), None)
    assert (WORKER + words, urgency) == (row.owner, row.urgency)
    assert {(WORKER, Urgency.NONE)} == {(other.owner, other.urgency) for other in others}


@pytest.mark.parametrize(
    ("changes", "urgency", "words"),
    [
        ({"workers": frozenset()}, Urgency.LOOK, f"{WORKER} (is stopping, or dead)"),
        ({"reports": {}}, Urgency.LOOK, f"{WORKER} (does not answer)"),
        ({"reports": {}, "may_ask_workers": False}, Urgency.NONE, WORKER),
        ({"lanes": (LaneSnapshot(0, None),)}, Urgency.BROKEN, "nobody"),
        ({"lanes": (LaneSnapshot(0, WORKER, trouble="its consumer is missing"),)}, Urgency.BROKEN, "its consumer is"),
        ({"lanes": (LaneSnapshot(0, WORKER, oldest_s=60.0),)}, Urgency.LOOK, WORKER),
        ({"lanes": (LaneSnapshot(0, "gone", oldest_s=600.0),)}, Urgency.BROKEN, "gone (is stopping, or dead)"),
    ],
)
def test_lane(changes, urgency, words):
    """The worst of owner and age decides."""
    row = lane_rows(snapshot(**changes), None)[0]
    assert (urgency, words) == (row.urgency, row.owner[: len(words)])


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, [("signed in", Urgency.NONE)]),
        ({"missing": ["x"]}, [("signed in; missing: x", Urgency.BROKEN)]),
        ({"missing": ["x"], "connections": []}, [("x", Urgency.BROKEN)]),
        (
            {"missing": ["away"], "connections": [ConnectionReport(32, 0, None), ConnectionReport(32, 0, "away")]},
            [("signed in", Urgency.NONE), ("away", Urgency.BROKEN)],
        ),
        ({"connections": [ConnectionReport(32, 1, None, 9.9)]}, [("signed in", Urgency.NONE)]),
        ({"connections": [ConnectionReport(32, 1, None, 10)]}, [("has not answered for 10 s", Urgency.LOOK)]),
        ({"connections": [ConnectionReport(32, 1, None, 30)]}, [("has not answered for 30 s", Urgency.BROKEN)]),
    ],
)
def test_worker(changes, shown):
    """A row is good only if the connection is signed in and answers, and the worker misses nothing."""
    assert shown == [(row.state, row.urgency) for row in worker_rows(snapshot(report(**changes)), None)]
