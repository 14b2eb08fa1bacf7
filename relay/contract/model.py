"""The public contract: the job status update as producers build it. Its JSON Schema is generated from these models.

`wire.py` accepts and refuses the same documents on the hot path; a property test checks that the two agree.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, TypeAdapter

MESSAGE_TYPE: Final = "V0JobStatusUpdate"
INT32_MIN: Final = -(2**31)
INT32_MAX: Final = 2**31 - 1

_OPEN: Final = ConfigDict(frozen=True, strict=True, extra="allow")
_CLOSED: Final = ConfigDict(frozen=True, strict=True, extra="forbid")
_ANY_UUID: Final = TypeAdapter(UUID)


UNKNOWN_STATUS: Final = "unknown"
"""The status as which the Facilitator stores any other text. It is no state of a job: see WHY_NOT_UNKNOWN."""
WHY_NOT_UNKNOWN: Final = (
    "while `unknown` is a job's last status, the Facilitator answers the job's owner with HTTP 500 instead of the job"
)


class JobStatus(StrEnum):
    """The states of a job. A closed set: the Facilitator stores any other text as `unknown`, which nobody may send."""

    SENT = "sent"
    RECEIVED = "received"
    ACCEPTED = "accepted"
    EXECUTOR_READY = "executor_ready"
    STREAMING_READY = "streaming_ready"
    VOLUMES_READY = "volumes_ready"
    EXECUTION_DONE = "execution_done"
    COMPLETED = "completed"
    REJECTED = "rejected"
    FAILED = "failed"
    HORDE_FAILED = "horde_failed"

    @property
    def terminal(self) -> bool:
        """Whether the job ends with this status."""
        return self in _TERMINAL


_TERMINAL: Final = frozenset({JobStatus.COMPLETED, JobStatus.REJECTED, JobStatus.FAILED, JobStatus.HORDE_FAILED})


class JobParticipant(StrEnum):
    """Who rejected a job or reported its failure. Open: other text is accepted, and stored as `unknown`."""

    UNKNOWN = "unknown"
    SDK = "sdk"
    FACILITATOR = "facilitator"
    VALIDATOR = "validator"
    MINER = "miner"
    EXECUTOR = "executor"


class FailureStage(StrEnum):
    """Where a job failed. Open: other text is accepted, and stored as `unknown`."""

    UNKNOWN = "unknown"
    EXECUTOR_STARTUP = "executor_startup"
    VOLUME_DOWNLOAD = "volume_download"
    STREAMING_STARTUP = "streaming_startup"
    EXECUTION = "execution"
    RESULT_UPLOAD = "result_upload"


class FailureReason(StrEnum):
    """Why a job failed. Open: other text is accepted, and stored as `unknown`."""

    UNKNOWN = "unknown"
    TIMEOUT = "timeout"
    NONZERO_RETURN_CODE = "nonzero_return_code"
    DOWNLOAD_FAILED = "download_failed"
    UPLOAD_FAILED = "upload_failed"


class RejectionReason(StrEnum):
    """Why a job was rejected. Open: other text is accepted, and stored as `unknown`."""

    UNKNOWN = "unknown"
    BUSY = "busy"
    INVALID_SIGNATURE = "invalid_signature"
    NO_MINER_FOR_JOB = "no_miner_for_job"
    VALIDATOR_BLACKLISTED = "validator_blacklisted"


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, UUID) else value


def _refuse_unknown(value: Any) -> Any:
    if value == UNKNOWN_STATUS:
        raise ValueError(WHY_NOT_UNKNOWN)
    return value


def _canonical(text: str) -> str:
    return str(_ANY_UUID.validate_python(text))


class MinerResponse(BaseModel):
    """What the miner's executor left: its output, and where results went. Open to further keys."""

    model_config = _OPEN

    docker_process_stderr: str
    docker_process_stdout: str
    artifacts: dict[str, str] | None = None
    upload_results: dict[str, str] | None = None


class JobRejectionDetails(BaseModel):
    """Who rejected the job (see JobParticipant) and why (see RejectionReason)."""

    model_config = _OPEN

    rejected_by: str
    reason: str
    message: str
    context: dict[str, JsonValue] | None = None


class JobFailureDetails(BaseModel):
    """Why the job failed (see FailureReason), where (see FailureStage), and the process's last words."""

    model_config = _OPEN

    reason: str
    stage: str
    message: str
    context: dict[str, JsonValue] | None = None
    docker_process_exit_status: int | None = None
    docker_process_stdout: str | None = None
    docker_process_stderr: str | None = None


class HordeFailureDetails(BaseModel):
    """Which participant reported that the system itself failed (see JobParticipant), and why."""

    model_config = _OPEN

    reported_by: str
    reason: str
    message: str
    context: dict[str, JsonValue] | None = None


class StreamingDetails(BaseModel):
    """Where the job's streaming server listens. Closed: further keys are refused.

    With the status `streaming_ready` the relay sends "" for a missing text and 0 for a missing port: otherwise the
    Facilitator would store none of the three in the job.
    """

    model_config = _CLOSED

    streaming_server_cert: str | None = None
    streaming_server_address: str | None = None
    streaming_server_port: Annotated[int, Field(ge=INT32_MIN, le=INT32_MAX)] | None = None


class JobStatusMetadata(BaseModel):
    """What is known beyond the status. Open to further keys with any JSON value."""

    model_config = _OPEN

    miner_response: MinerResponse | None = None
    job_rejection_details: JobRejectionDetails | None = None
    job_failure_details: JobFailureDetails | None = None
    horde_failure_details: HordeFailureDetails | None = None
    streaming_details: StreamingDetails | None = None


class JobStatusUpdate(BaseModel):
    """One status of one job, as it is published on `job.status.<uuid>` and sent to the Facilitator.

    `uuid` takes any usual spelling of a UUID and keeps the canonical one: lower case, with hyphens.
    """

    model_config = _CLOSED

    message_type: Literal["V0JobStatusUpdate"] = MESSAGE_TYPE
    uuid: Annotated[
        str, BeforeValidator(_text), AfterValidator(_canonical), Field(json_schema_extra={"format": "uuid"})
    ]
    status: Annotated[JobStatus, Field(strict=False), BeforeValidator(_refuse_unknown)]
    metadata: JobStatusMetadata | None = None

    if TYPE_CHECKING:  # type checkers would otherwise allow only what is kept, not all that is taken

        def __init__(
            self,
            *,
            uuid: UUID | str,
            status: JobStatus | str,
            metadata: JobStatusMetadata | Mapping[str, Any] | None = None,
            message_type: Literal["V0JobStatusUpdate"] = MESSAGE_TYPE,
        ) -> None: ...

    def to_json(self) -> bytes:
        """The update as UTF-8 JSON, ready to be published."""
        return self.model_dump_json().encode()
