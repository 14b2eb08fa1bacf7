"""The trace of an update's walk records only calls of the relay, and its totals are counted from them."""

import json

from bench.walk import Call, recording, report
from relay.contract.subjects import is_job_uuid, status_subject
from relay.local.ledger import parse


def test_only_the_relay_is_recorded():
    """Calls of the relay are recorded in order; those of libraries and of the simulator are not."""
    calls: list[Call] = []
    with recording(calls):
        json.dumps({})
        status_subject("a")
        parse("{}")
        is_job_uuid("b")
    status_subject("c")
    file = "contract/subjects.py"
    assert [Call(0, file, "status_subject"), Call(0, file, "is_job_uuid")] == calls


def test_totals():
    """Calls, distinct files and changes from one file to another are counted."""
    walk = (Call(0, "a.py", "f"), Call(1, "b.py", "g"), Call(1, "b.py", "h"), Call(0, "a.py", "f"))
    assert (
        "4 calls, 2 files entered, 2 changes of file (the walk of 9 of 10 updates)"
        == report(walk, 9, 10).split("\n")[-1]
    )
