"""The content of simulated jobs, and whether the demo's accounting notices faults."""

import functools
from collections import Counter
from random import Random

import pytest

from relay.contract.model import JobStatus
from relay.contract.subjects import Reason, is_job_uuid
from relay.contract.wire import Frame, Repair, Unsendable, decode
from relay.local.jobs import Scenario, StatusMessage, job_updates, job_uuid, make_scenario
from relay.local.ledger import Row
from relay.local.tally import Latency, Tally
from relay.local.traffic import Published
from relay.producer import message_id

A, B = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"
STEPS = ("received", "accepted", "executor_ready", "volumes_ready", "streaming_ready", "execution_done")


@functools.cache
def scenario(jobs: int = 300) -> Scenario:
    return make_scenario(Random(1), jobs)


@pytest.mark.parametrize("seed", range(50))
def test_job_is_plausible(seed):
    """A job is received, goes through each stage once and in order, and ends with one terminal status."""
    statuses = [update.status for update in job_updates(Random(seed), A)]
    stages = [status for status in statuses if not status.terminal]
    assert "received" == statuses[0]
    assert sorted(stages, key=STEPS.index) == stages
    assert len(set(statuses)) == len(statuses)
    assert [status.terminal for status in statuses] == [False] * (len(statuses) - 1) + [True]


def test_jobs_need_no_repair():
    """The relay forwards the updates of simulated jobs unchanged."""
    rng = Random(3)
    for uuid in (job_uuid(rng) for _ in range(200)):
        assert is_job_uuid(uuid)
        for update in job_updates(rng, uuid):
            body = update.to_json()
            assert Frame(body, update.status) == decode(body, uuid)


def test_every_end_occurs():
    """Every terminal status occurs among a few hundred jobs."""
    ends = {job[-1].status for seed in range(300) for job in [job_updates(Random(seed), A)]}
    assert {status for status in JobStatus if status.terminal} == ends


def test_same_seed_same_jobs():
    """A scenario depends only on its seed."""
    first, same, other = (make_scenario(Random(seed), 20) for seed in (5, 5, 6))
    assert first == same
    assert first != other


@pytest.mark.parametrize("jobs", [6, 10, 350])
def test_scenario_has_every_kind_of_failure(jobs):
    """Six jobs are enough for a dead letter with each of the demo's reasons."""
    expected = {
        "unknown_status",
        "uuid_mismatch",
        "invalid_schema",
        "invalid_json",
        "job_not_found",
        "connection_dropped",
    }
    assert expected == scenario(jobs=jobs).dead_letters.keys()


def test_smallest_scenario():
    """One job is enough for a scenario."""
    assert 1 == len(scenario(jobs=1).jobs)


def test_bad_bodies_are_refused_by_the_decoder():
    """The updates with spoiled bytes, and only these, are refused for the reason that the scenario gives."""
    left_to_the_facilitator = {Reason.JOB_NOT_FOUND, Reason.CONNECTION_DROPPED}
    for message in (message for job in scenario().jobs for message in job):
        expected = None if message.dead_letter in left_to_the_facilitator else message.dead_letter
        decoded = decode(message.body, message.uuid)
        assert expected == (decoded.reason if isinstance(decoded, Unsendable) else None), message


def test_scenario_tells_the_facilitator_what_to_do():
    """Exactly the jobs that must be unknown and the updates that must drop the connection are named."""
    made = scenario()
    messages = [message for job in made.jobs for message in job]
    assert {p.uuid for p in messages if p.dead_letter is Reason.JOB_NOT_FOUND} == made.unknown_jobs
    assert {(p.uuid, p.status) for p in messages if p.dead_letter is Reason.CONNECTION_DROPPED} == made.droppers


def test_scenario_has_envelopes_and_repeats():
    """Some updates are in the channel layer's envelope, some come twice with one message id, some twice with two."""
    jobs = [job for job in scenario().jobs if not any(message.dead_letter for message in job)]
    bodies = Counter(message.body for job in jobs for message in job)
    ids = Counter(message.message_id for job in jobs for message in job)
    again = [message for job in jobs for message in job if message.message_id.endswith("-again")]
    assert any(body.startswith(b'{"type":"job_status_update"') for body in bodies)
    assert 2 == max(ids.values())
    assert {2} == {bodies[message.body] for message in again}


def test_only_what_hurts_would_be_repaired():
    """No update of a scenario needs a repair."""
    decoded = [decode(message.body, message.uuid) for job in scenario().jobs for message in job]
    assert set[Repair]() == {repair for each in decoded if isinstance(each, Frame) for repair in each.repairs}


def test_message_id_is_of_the_content():
    """Equal content has the same message id in any spelling; another job, status or metadata has another one."""
    update = job_updates(Random(1), A)[-1]
    spelled = type(update).model_validate_json(update.model_dump_json(exclude_none=True))
    assert message_id(update) == message_id(spelled)
    others = [{"uuid": B}, {"status": JobStatus.SENT}, {"metadata": None}]
    assert 4 == len({message_id(update), *(message_id(update.model_copy(update=change)) for change in others)})


def published(sequence: int, uuid: str = A, status: str = "received", sent_s: float = 0.0) -> Published:
    return Published(StatusMessage(uuid, status, b"", "id"), sequence, duplicate=False, due_s=0.0, sent_s=sent_s)


def row(uuid: str = A, status: str = "received", arrived_s: float = 0.0) -> Row:
    return Row(uuid, status, arrived_s, 1, None)


def tally_of(*events: Published | Row) -> Tally:
    tally = Tally()
    for event in events:
        if isinstance(event, Row):
            tally.note_row(event)
        else:
            tally.note_published(event)
    return tally


def test_tally_counts_what_is_lost():
    """An update that is neither a row nor a dead letter is lost; all others are not."""
    tally = tally_of(published(1), published(2, B), published(3, B, "accepted"), row())
    result = tally.result({2: "refused"})
    assert (3, 1, {"refused": 1}, 1) == (result.published, result.acknowledged, result.dead_lettered, result.lost)
    assert not result.kept_the_promise


def test_tally_counts_what_is_in_both_places():
    """A row of an update with a dead letter breaks the promise, unless the reason leaves open whether there is one."""
    stored = tally_of(published(1), row())
    result = stored.result({1: "refused"})
    assert (1, False) == (result.both, result.kept_the_promise)
    assert stored.result({1: "connection_dropped"}).kept_the_promise
    assert tally_of(published(1), row(), published(2)).result({2: "refused"}).kept_the_promise


def test_tally_counts_what_is_reordered():
    """A row that arrives after a later-published row of its job is reordered; other jobs do not matter."""
    first, second, third = published(1), published(2, B), published(3, A, "accepted")
    assert 1 == tally_of(first, second, third, row(A, "accepted"), row(B), row(A)).result({}).reordered
    assert 0 == tally_of(first, second, third, row(B), row(A), row(A, "accepted")).result({}).reordered


def test_tally_knows_duplicates():
    """A second update with the same job and status is a duplicate, whatever its sequence is."""
    result = tally_of(published(1), row(), published(2, A, "accepted"), row(A, "accepted"), published(3)).result({})
    assert (2, 1, 0, 0) == (result.acknowledged, result.duplicates, result.lost, result.reordered)


def test_tally_ignores_repeats_that_jetstream_recognised():
    """A publish that got the sequence of an earlier one was not stored, so it is not counted."""
    tally = tally_of(published(1), published(1), row())
    assert (1, 1) == (tally.repeated, tally.result({}).published)


def test_row_may_come_before_its_pub_ack():
    """The latency is from sending to arrival, whether the row or the PubAck is heard of first."""
    expected = Latency(p50=250.0, p99=250.0, p99_9=250.0)
    assert expected == tally_of(row(arrived_s=1.25), published(1, sent_s=1.0)).latency()
    assert expected == tally_of(published(1, sent_s=1.0), row(arrived_s=1.25)).latency()


def test_latency_is_by_nearest_rank():
    """Of arrivals after 1, 2, ... 1000 ms, the quantiles are the 500th, 990th and 999th; without arrivals, None."""
    uuids = [f"00000000-0000-4000-8000-{number:012x}" for number in range(1000)]
    sent = [published(number, uuid) for number, uuid in enumerate(uuids, start=1)]
    arrived = [row(uuid, arrived_s=number / 1000) for number, uuid in enumerate(uuids, start=1)]
    assert Latency(p50=500.0, p99=990.0, p99_9=999.0) == tally_of(*sent, *arrived).latency()
    assert Latency(p50=None, p99=None, p99_9=None) == Tally().latency()


def test_in_flight_is_what_is_not_settled():
    """An update is in flight from its PubAck until the relay has settled it, in whatever order the two are heard of."""
    tally = tally_of(published(1), published(2, B))
    tally.note_settled(2, "refused")
    tally.note_settled(2, "refused")
    tally.note_settled(3, None)
    assert (1, {"refused": 1}) == (tally.in_flight, dict(tally.dead_letters))
    tally.note_published(published(3, B, "accepted"))
    assert 1 == tally.in_flight


def test_jobs_are_shown_in_their_last_status():
    """A job is counted only under the status that arrived last."""
    tally = tally_of(row(), row(B), row(A, "accepted"))
    assert Counter(received=1, accepted=1) == +tally.jobs_by_status
