"""Thousands of schedules of faults, each made from one seed, with the whole relay in virtual time.

    SEED=17 python -m pytest tests/faults/test_simulation.py -k replay -s       one schedule, printed line by line
    COUNT=20000 python -m pytest tests/faults/test_simulation.py -k schedules   this many schedules

A failing schedule is shrunk as far as it still fails, and printed as `make sim SEED=...` prints it.
"""

import hashlib
import itertools
import os
import random
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from simulation.bugs import BUGS
from simulation.schedule import Fault, Kind, Publish, Schedule, Temper, make_schedule, shrink
from simulation.world import Result, run

COUNT = int(os.environ.get("COUNT", "200"))
FIRST_SEED = int(os.environ.get("FIRST_SEED", "0"))
CHUNKS = 4
PER_BUG = 120
"""A planted bug must be found within this many schedules."""
SEED = os.environ.get("SEED", "1")
REACHED = (
    *("hears +ACK", "hears -NAK", "hears +WPI", "hears +TERM"),
    *("is killed", "stands still", "goes on", "is told to stop", "has ended"),
    *("lane taken", "lane given up", "lane lost", "the lanes cannot be shared out"),
    *("lost alone with", "lost in company with", "refuses this validator", "must be made anew"),
    *(": invalid_json", ": refused", ": job_not_found", ": connection_dropped", ": unexplained_duplicate"),
    *("answers job.integrity_error, wrongly,", "the dead letters cannot be reached"),
    *("cannot look at a held lane's consumer", "answers job.confused", "consumers are deleted and made anew"),
    *("consumers change their leader", "JetStream answers late", "signal=START_OVER", "signal=CONSUMER_GONE"),
    *("a lane cannot be pulled", "the consumer was made anew", "no heartbeat for the pulls of a lane"),
)
_HERE = Path(__file__).parent


def story(schedule: Schedule, result: Result) -> str:
    """A schedule and its result, as text."""
    return "\n".join([str(schedule), "", *map(str, result.lines), *(f"BROKEN: {what}" for what in result.broken)])


def failure(schedule: Schedule) -> str:
    """The smallest part of a schedule that still fails, as text."""
    small = shrink(schedule, lambda candidate: bool(run(candidate).broken))
    told = story(small, run(small))
    return f"the promise was broken; all of it: make sim SEED={schedule.seed}\nthe least that breaks it:\n{told}"


def digest(seed: int) -> str:
    """A short digest of a run."""
    schedule = make_schedule(seed)
    return hashlib.sha256(story(schedule, run(schedule)).encode()).hexdigest()


@pytest.mark.timeout(60 + COUNT)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_schedules(chunk):
    """In every schedule nothing is lost, each job's updates arrive in order, and all is settled at the end."""
    for seed in range(FIRST_SEED + chunk, FIRST_SEED + COUNT, CHUNKS):
        schedule = make_schedule(seed)
        result = run(schedule)
        if result.broken:
            pytest.fail(failure(schedule), pytrace=False)
        assert [] == result.broken


def test_replay():
    """The schedule of SEED keeps the promise; `-s` prints it line by line."""
    schedule = make_schedule(int(SEED))
    result = run(schedule)
    told = story(schedule, result)
    if "SEED" in os.environ:
        print(told)  # noqa: T201 - on request
    assert [] == result.broken, told


@pytest.mark.parametrize("bug", BUGS, ids=str)
def test_planted_bug(bug):
    """The bug is found within a few schedules, and the same schedules find nothing without it."""
    found = None
    with bug.plant():
        for seed in range(PER_BUG):
            schedule = bug.schedule(seed)
            if run(schedule).broken:
                found = schedule
                break
    assert found is not None, f"not found in {PER_BUG} schedules"
    assert [] == run(found).broken


def test_two_poison_updates_hold_others_up_briefly():
    """Others wait for less than two seconds: it is soon tried again after a drop that shows whose fault it is."""
    good = [(number / 50, f"good{number}", Temper.WELL) for number in range(50, 200)]
    bad = [(2.0, f"bad{number}", Temper.POISON) for number in range(2)]
    publishes = tuple(
        Publish(at_s, name, str(uuid.UUID(int=number, version=4)), "received", temper, known_from_s=0.0)
        for number, (at_s, name, temper) in enumerate(good + bad)
    )
    worker = Fault(0.0, Kind.START, worker=0, for_s=0.0, turns=0, code=None)
    shape = replace(make_schedule(0), lanes=1, capacity=512, window=32, connections=1, ack_wait_s=5.0, lease_ttl_s=9.0)
    result = run(replace(shape, memory_bytes=1 << 30, publishes=publishes, faults=(worker,)))
    stored_s = [line.at_s for line in result.lines if line.what.startswith("stores good")]
    buried = [line for line in result.lines if line.what.startswith("stores the dead letter of bad")]
    assert ([], 2) == (result.broken, len(buried))
    assert max(after - before for before, after in itertools.pairwise(stored_s)) < 2.0


def test_smallest_failure():
    """A failing schedule is shrunk until nothing more can be left out, always with the same result."""
    bug = next(bug for bug in BUGS if str(bug) == "acknowledged before the reply")
    schedule = make_schedule(0)
    with bug.plant():
        small = shrink(schedule, lambda candidate: bool(run(candidate).broken))
        broken = run(small).broken
        without = [
            run(replace(small, publishes=small.publishes[:number] + small.publishes[number + 1 :])).broken
            for number in range(len(small.publishes))
        ]
    assert len(small.publishes) < len(schedule.publishes)
    assert [] != broken
    assert [[] for _ in small.publishes] == without


def test_schedules_reach_what_matters():
    """A hundred schedules cover every way in which an update, a lane and a worker can end."""
    told = "\n".join(line.what for seed in range(100) for line in run(make_schedule(seed)).lines)
    assert set() == {what for what in REACHED if what not in told}


def test_same_seed_same_run():
    """A seed gives the same run each time, also in another process with another hash seed."""
    seeds = [random.Random("any").randrange(10_000) for _ in range(8)]
    here = [digest(seed) for seed in seeds]
    again = [digest(seed) for seed in seeds]
    program = f"import test_simulation as t; print(*(t.digest(seed) for seed in {seeds}))"
    environment = {"PYTHONHASHSEED": "77", "PYTHONPATH": str(_HERE), "PATH": os.environ["PATH"]}
    there = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True, timeout=60
    )
    assert here == again
    assert here == there.stdout.split()
