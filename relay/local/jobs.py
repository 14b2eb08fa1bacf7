"""Simulated jobs: their updates in order, and which updates must fail. The same seed makes the same jobs."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final
from uuid import UUID

from relay.contract.model import JobStatus, JobStatusUpdate
from relay.contract.subjects import Reason
from relay.producer import message_id

_REJECTED: Final = 0.07
_LOST_ITS_EXECUTOR: Final = 0.04
_WITH_VOLUMES: Final = 0.6
_WITH_STREAMING: Final = 0.3
_FAILED: Final = 0.08
_IN_ENVELOPE: Final = 0.1
_PUBLISHED_TWICE: Final = 0.03
_WITH_THE_SAME_ID: Final = 0.5
_DEFECTIVE_ONE_IN: Final = 50
_DROPPED_ONE_IN: Final = 200
_PORTS: Final = (30_000, 40_000)


@dataclass(frozen=True, slots=True)
class StatusMessage:
    """One message to publish.

    uuid: the job in the subject. status: the status in the body. dead_letter: the reason with which it must be
    dead-lettered; None if the Facilitator must get it.
    """

    uuid: str
    status: str
    body: bytes
    message_id: str
    dead_letter: Reason | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """Jobs, each with its messages in order, and how the simulated Facilitator must treat them.

    unknown_jobs: UUIDs that it must not know. droppers: each (uuid, status) at which it must drop the connection.
    """

    jobs: tuple[tuple[StatusMessage, ...], ...]
    unknown_jobs: frozenset[str]
    droppers: frozenset[tuple[str, str]]

    @property
    def dead_letters(self) -> Counter[str]:
        """How many messages must be dead-lettered, by reason."""
        return Counter(message.dead_letter.value for job in self.jobs for message in job if message.dead_letter)


def job_uuid(rng: Random) -> str:
    return str(UUID(int=rng.getrandbits(128), version=4))


def job_updates(rng: Random, uuid: str) -> list[JobStatusUpdate]:
    """The updates of one job, from `received` to a terminal status, each status at most once."""
    steps: list[tuple[JobStatus, dict[str, Any] | None]] = [(JobStatus.RECEIVED, None)]
    if rng.random() < _REJECTED:
        return _updates(uuid, [*steps, (JobStatus.REJECTED, _rejection(rng))])
    steps.append((JobStatus.ACCEPTED, None))
    if rng.random() < _LOST_ITS_EXECUTOR:
        return _updates(uuid, [*steps, (JobStatus.HORDE_FAILED, _horde_failure())])
    steps.append((JobStatus.EXECUTOR_READY, None))
    if rng.random() < _WITH_VOLUMES:
        steps.append((JobStatus.VOLUMES_READY, None))
    if rng.random() < _WITH_STREAMING:
        steps.append((JobStatus.STREAMING_READY, _streaming(rng)))
    if rng.random() < _FAILED:
        return _updates(uuid, [*steps, (JobStatus.FAILED, _failure(rng))])
    steps += [(JobStatus.EXECUTION_DONE, None), (JobStatus.COMPLETED, _results(rng))]
    return _updates(uuid, steps)


def status_message(update: JobStatusUpdate) -> StatusMessage:
    """The message that publishes `update`."""
    return StatusMessage(update.uuid, update.status, update.to_json(), message_id(update))


def in_envelope(plain: StatusMessage) -> StatusMessage:
    """The same update, wrapped as a message of the Django channel layer."""
    return replace(plain, body=b'{"type":"job_status_update","payload":' + plain.body + b"}")


def make_scenario(rng: Random, jobs: int) -> Scenario:
    """Make `jobs` jobs. About one in ten has one of the defects that updates have in practice.

    With six jobs or more each defect occurs at least once. Some updates are in the channel layer's envelope; some are
    published twice, with the same `Nats-Msg-Id` or with two different ones.
    """
    messages = [[status_message(update) for update in job_updates(rng, job_uuid(rng))] for _ in range(jobs)]
    kinds = [kind for kind in _DEFECTS for _ in range(max(1, jobs // _DEFECTIVE_ONE_IN))]
    kinds += [_drop_connection] * (max(1, jobs // _DROPPED_ONE_IN))
    rng.shuffle(kinds)
    defective = rng.sample(range(jobs), min(jobs, len(kinds)))
    for index, defect in zip(defective, kinds, strict=False):
        messages[index] = defect(rng, messages[index])
    for index in set(range(jobs)).difference(defective):
        messages[index] = _with_repeats(rng, messages[index])
    everything = [each for job in messages for each in job]
    return Scenario(
        tuple(map(tuple, messages)),
        frozenset(each.uuid for each in everything if each.dead_letter is Reason.JOB_NOT_FOUND),
        frozenset((each.uuid, each.status) for each in everything if each.dead_letter is Reason.CONNECTION_DROPPED),
    )


def _updates(uuid: str, steps: list[tuple[JobStatus, dict[str, Any] | None]]) -> list[JobStatusUpdate]:
    # Through JSON, because the strict models do not accept plain values inside dicts.
    documents = ({"uuid": uuid, "status": status, "metadata": metadata} for status, metadata in steps)
    return [JobStatusUpdate.model_validate_json(json.dumps(document)) for document in documents]


def _rejection(rng: Random) -> dict[str, Any]:
    reason = rng.choice(("busy", "no_miner_for_job"))
    details = {"rejected_by": "miner", "reason": reason, "message": "no executor is free", "context": None}
    return {"job_rejection_details": details}


def _horde_failure() -> dict[str, Any]:
    return {
        "horde_failure_details": {"reported_by": "validator", "reason": "unknown", "message": "the executor is gone"}
    }


def _streaming(rng: Random) -> dict[str, Any]:
    address = f"10.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(1, 255)}"
    port = rng.randrange(*_PORTS)
    details = {"streaming_server_cert": "", "streaming_server_address": address, "streaming_server_port": port}
    return {"streaming_details": details}


def _failure(rng: Random) -> dict[str, Any]:
    status = rng.choice((1, 2, 137))
    details = {"reason": "nonzero_return_code", "stage": "execution", "message": f"the process ended with {status}"}
    return {"job_failure_details": {**details, "docker_process_exit_status": status}}


def _results(rng: Random) -> dict[str, Any]:
    lines = "".join(f"epoch {number}: loss {rng.random():.6f}\n" for number in range(rng.randrange(1, 12)))
    return {"miner_response": {"docker_process_stdout": lines, "docker_process_stderr": "", "artifacts": {}}}


def _with_repeats(rng: Random, job: list[StatusMessage]) -> list[StatusMessage]:
    odd: list[StatusMessage] = []
    for plain in job:
        odd.append(in_envelope(plain) if rng.random() < _IN_ENVELOPE else plain)
        if rng.random() < _PUBLISHED_TWICE:
            again = odd[-1]  # JetStream recognises the same id; the Facilitator recognises the same status
            odd.append(
                again if rng.random() < _WITH_THE_SAME_ID else replace(again, message_id=again.message_id + "-again")
            )
    return odd


Defect = Callable[[Random, list[StatusMessage]], list[StatusMessage]]


def _insert(rng: Random, job: list[StatusMessage], dead_letter: Reason, **changes: str) -> list[StatusMessage]:
    """`job` with one more message, which must be dead-lettered: a copy of one of its messages with changed fields."""
    at = rng.randrange(len(job))
    document = json.loads(job[at].body) | changes
    body = json.dumps(document).encode()
    bad = StatusMessage(job[at].uuid, document["status"], body, f"{job[at].message_id}-{dead_letter}", dead_letter)
    return [*job[:at], bad, *job[at:]]


def _unknown_status(rng: Random, job: list[StatusMessage]) -> list[StatusMessage]:
    return _insert(rng, job, Reason.UNKNOWN_STATUS, status="teleported")


def _other_job(rng: Random, job: list[StatusMessage]) -> list[StatusMessage]:
    return _insert(rng, job, Reason.UUID_MISMATCH, uuid=job_uuid(rng))


def _extra_field(rng: Random, job: list[StatusMessage]) -> list[StatusMessage]:
    return _insert(rng, job, Reason.INVALID_SCHEMA, progress="50%")


def _cut_short(rng: Random, job: list[StatusMessage]) -> list[StatusMessage]:
    defective = _insert(rng, job, Reason.INVALID_JSON)
    return [replace(each, body=each.body[:-1]) if each.dead_letter else each for each in defective]


def _unknown_job(_rng: Random, job: list[StatusMessage]) -> list[StatusMessage]:
    return [replace(each, dead_letter=Reason.JOB_NOT_FOUND) for each in job]


def _drop_connection(rng: Random, job: list[StatusMessage]) -> list[StatusMessage]:
    at = rng.randrange(len(job))
    return [*job[:at], replace(job[at], dead_letter=Reason.CONNECTION_DROPPED), *job[at + 1 :]]


_DEFECTS: Final[tuple[Defect, ...]] = (_unknown_status, _other_job, _extra_field, _cut_short, _unknown_job)
