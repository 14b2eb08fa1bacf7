"""Simulated jobs: what their updates are, in which order, and which of them must fail.

Pure: the same seed, the same jobs.
"""

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
_SPOILED_ONE_IN: Final = 50
_DROPPED_ONE_IN: Final = 200
_PORTS: Final = (30_000, 40_000)


@dataclass(frozen=True, slots=True)
class Parcel:
    """One publish.

    uuid: the job that the subject names. status: what the body says. `doom`: why it must end as a dead letter;
    None if the Facilitator must get it.
    """

    uuid: str
    status: str
    body: bytes
    message_id: str
    doom: Reason | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """Jobs, each with its parcels in order, and what the Facilitator must be told about them.

    unknown_jobs: UUIDs that it must not know. droppers: the (uuid, status) at which it must drop the connection.
    """

    jobs: tuple[tuple[Parcel, ...], ...]
    unknown_jobs: frozenset[str]
    droppers: frozenset[tuple[str, str]]

    @property
    def doomed(self) -> Counter[str]:
        """How many parcels must end as dead letters, by reason."""
        return Counter(parcel.doom.value for job in self.jobs for parcel in job if parcel.doom)


def job_uuid(rng: Random) -> str:
    return str(UUID(int=rng.getrandbits(128), version=4))


def life_cycle(rng: Random, uuid: str) -> list[JobStatusUpdate]:
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


def parcel(update: JobStatusUpdate) -> Parcel:
    """The plain publish of `update`."""
    return Parcel(update.uuid, update.status, update.to_json(), message_id(update))


def in_envelope(plain: Parcel) -> Parcel:
    """The same update in the envelope of the channel layer."""
    return replace(plain, body=b'{"type":"job_status_update","payload":' + plain.body + b"}")


def make_scenario(rng: Random, jobs: int) -> Scenario:
    """So many jobs, mostly well; about one in ten is spoiled in one of the ways that updates get spoiled.

    The first few jobs suffice to have each kind once. Some updates come in the channel layer's envelope, some
    twice with the same `Nats-Msg-Id`, some twice with another.
    """
    parcels = [[parcel(update) for update in life_cycle(rng, job_uuid(rng))] for _ in range(jobs)]
    kinds = [kind for kind in _SPOILERS for _ in range(max(1, jobs // _SPOILED_ONE_IN))]
    kinds += [_drop_connection] * (max(1, jobs // _DROPPED_ONE_IN))
    rng.shuffle(kinds)
    spoiled = rng.sample(range(jobs), min(jobs, len(kinds)))
    for index, spoil in zip(spoiled, kinds, strict=False):
        parcels[index] = spoil(rng, parcels[index])
    for index in set(range(jobs)).difference(spoiled):
        parcels[index] = _published_oddly(rng, parcels[index])
    everything = [each for job in parcels for each in job]
    return Scenario(
        tuple(map(tuple, parcels)),
        frozenset(each.uuid for each in everything if each.doom is Reason.JOB_NOT_FOUND),
        frozenset((each.uuid, each.status) for each in everything if each.doom is Reason.CONNECTION_DROPPED),
    )


def _updates(uuid: str, steps: list[tuple[JobStatus, dict[str, Any] | None]]) -> list[JobStatusUpdate]:
    # By way of JSON, which is how strict models take nested plain values.
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
    return {"streaming_details": {"streaming_server_address": address, "streaming_server_port": rng.randrange(*_PORTS)}}


def _failure(rng: Random) -> dict[str, Any]:
    status = rng.choice((1, 2, 137))
    details = {"reason": "nonzero_return_code", "stage": "execution", "message": f"the process ended with {status}"}
    return {"job_failure_details": {**details, "docker_process_exit_status": status}}


def _results(rng: Random) -> dict[str, Any]:
    lines = "".join(f"epoch {number}: loss {rng.random():.6f}\n" for number in range(rng.randrange(1, 12)))
    return {"miner_response": {"docker_process_stdout": lines, "docker_process_stderr": "", "artifacts": {}}}


def _published_oddly(rng: Random, job: list[Parcel]) -> list[Parcel]:
    odd: list[Parcel] = []
    for plain in job:
        odd.append(in_envelope(plain) if rng.random() < _IN_ENVELOPE else plain)
        if rng.random() < _PUBLISHED_TWICE:
            again = odd[-1]  # JetStream recognises this one, the Facilitator the other
            odd.append(
                again if rng.random() < _WITH_THE_SAME_ID else replace(again, message_id=again.message_id + "-again")
            )
    return odd


Spoil = Callable[[Random, list[Parcel]], list[Parcel]]


def _insert(rng: Random, job: list[Parcel], doom: Reason, **changes: str) -> list[Parcel]:
    """`job` with one more parcel: a copy of one of its own with changed fields, and doomed for that."""
    at = rng.randrange(len(job))
    document = json.loads(job[at].body) | changes
    body = json.dumps(document).encode()
    bad = Parcel(job[at].uuid, document["status"], body, f"{job[at].message_id}-{doom}", doom)
    return [*job[:at], bad, *job[at:]]


def _unknown_status(rng: Random, job: list[Parcel]) -> list[Parcel]:
    return _insert(rng, job, Reason.UNKNOWN_STATUS, status="teleported")


def _other_job(rng: Random, job: list[Parcel]) -> list[Parcel]:
    return _insert(rng, job, Reason.UUID_MISMATCH, uuid=job_uuid(rng))


def _extra_field(rng: Random, job: list[Parcel]) -> list[Parcel]:
    return _insert(rng, job, Reason.INVALID_SCHEMA, progress="50%")


def _cut_short(rng: Random, job: list[Parcel]) -> list[Parcel]:
    spoiled = _insert(rng, job, Reason.INVALID_JSON)
    return [replace(each, body=each.body[:-1]) if each.doom else each for each in spoiled]


def _unknown_job(_rng: Random, job: list[Parcel]) -> list[Parcel]:
    return [replace(each, doom=Reason.JOB_NOT_FOUND) for each in job]


def _drop_connection(rng: Random, job: list[Parcel]) -> list[Parcel]:
    at = rng.randrange(len(job))
    return [*job[:at], replace(job[at], doom=Reason.CONNECTION_DROPPED), *job[at + 1 :]]


_SPOILERS: Final[tuple[Spoil, ...]] = (_unknown_status, _other_job, _extra_field, _cut_short, _unknown_job)
