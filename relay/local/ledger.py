"""What the simulated Facilitator answers and stores: messages in, answers out, no I/O and no clock.

It shares nothing with the relay's own models, so that a mistake in those models shows here. It accepts and refuses what
the real server does, with pydantic's error types and the special cases of Django and PostgreSQL.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, cast
from uuid import UUID

import pydantic_core
from bittensor_wallet import Keypair
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

DROPPED: Final = 1006
"""The code that a client sees when the TCP connection ends without a close frame."""
INACTIVE: Final = 3001
"""The close code for a validator that is unknown, removed, or has sent no heartbeat for too long."""

_BAD_SIGNATURE: Final = 3000
_INT32: Final = range(-(2**31), 2**31)
_FAILS_WITHOUT_METADATA: Final = ("completed", "streaming_ready")


def _or_unknown(*known: str) -> BeforeValidator:
    """Accept any value; one that is not in `known` becomes `unknown`, as in the real enumerations."""
    return BeforeValidator(lambda value: value if value in known else "unknown")


_Status = Annotated[
    str,
    _or_unknown(
        "sent",
        "received",
        "accepted",
        "executor_ready",
        "streaming_ready",
        "volumes_ready",
        "execution_done",
        "completed",
        "rejected",
        "failed",
        "horde_failed",
    ),
]
_Participant = Annotated[str, _or_unknown("sdk", "facilitator", "validator", "miner", "executor")]
_Stage = Annotated[
    str, _or_unknown("executor_startup", "volume_download", "streaming_startup", "execution", "result_upload")
]
_Failure = Annotated[str, _or_unknown("timeout", "nonzero_return_code", "download_failed", "upload_failed")]
_Rejection = Annotated[str, _or_unknown("busy", "invalid_signature", "no_miner_for_job", "validator_blacklisted")]
_HordeReason = Annotated[str, BeforeValidator(lambda value: value if isinstance(value, str) else "unknown")]
"""The names that the real server knows are not known here: texts are kept as they are."""
_CLOSED: Final = ConfigDict(extra="forbid")
_OPEN: Final = ConfigDict(extra="allow")


class _MinerResponse(BaseModel):
    model_config = _OPEN
    docker_process_stderr: str
    docker_process_stdout: str
    artifacts: dict[str, str] | None = None
    upload_results: dict[str, str] | None = None


class _JobRejection(BaseModel):
    rejected_by: _Participant
    reason: _Rejection
    message: str
    context: dict[str, Any] | None = None


class _JobFailure(BaseModel):
    reason: _Failure
    stage: _Stage
    message: str
    context: dict[str, Any] | None = None
    docker_process_exit_status: int | None = None
    docker_process_stdout: str | None = None
    docker_process_stderr: str | None = None


class _HordeFailure(BaseModel):
    reported_by: _Participant
    reason: _HordeReason
    message: str
    context: dict[str, Any] | None = None


class _Streaming(BaseModel):
    model_config = _CLOSED
    streaming_server_cert: str | None = None
    streaming_server_address: str | None = None
    streaming_server_port: int | None = None


class _Metadata(BaseModel):
    model_config = _OPEN
    miner_response: _MinerResponse | None = None
    job_rejection_details: _JobRejection | None = None
    job_failure_details: _JobFailure | None = None
    horde_failure_details: _HordeFailure | None = None
    streaming_details: _Streaming | None = None


class Authentication(BaseModel):
    model_config = _CLOSED
    message_type: Literal["V0AuthenticationRequest"]
    public_key: str
    signature: str


class Heartbeat(BaseModel):
    model_config = _CLOSED
    message_type: Literal["V0Heartbeat"]


class MachineSpecs(BaseModel):
    """What a validator tells about its miners' machines; the relay never sends it."""

    model_config = _OPEN
    message_type: Literal["V0MachineSpecsUpdate"]


class StatusUpdate(BaseModel):
    model_config = _CLOSED
    message_type: Literal["V0JobStatusUpdate"]
    uuid: str
    status: _Status
    metadata: _Metadata | None = None

    @property
    def job(self) -> str:
        """The job's UUID in its usual spelling, or what was sent instead of a UUID."""
        return _usual_spelling(self.uuid) or self.uuid


@dataclass(frozen=True, slots=True)
class Answer:
    """What is done about a message: at most one reply, and then the connection may be ended.

    `kind` is `success`, the type of the reply's first error, or `none`. `end_code` is a close code, DROPPED, or
    None to stay open.
    """

    kind: str = "none"
    reply: str | None = None
    end_code: int | None = None


Message = Authentication | Heartbeat | MachineSpecs | StatusUpdate
_MESSAGE: Final[TypeAdapter[Message]] = TypeAdapter(Annotated[Message, Field(discriminator="message_type")])

NOTHING: Final = Answer()
_DROP: Final = Answer(end_code=DROPPED)
_SUCCESS: Final = Answer("success", '{"status":"success","errors":[]}')


def error(kind: str, msg: str, end_code: int | None = None) -> Answer:
    """A reply with one error of type `kind`."""
    reply = {"status": "error", "errors": [{"msg": msg, "type": kind, "help": ""}]}
    return Answer(kind, json.dumps(reply), end_code)


def parse(frame: str | bytes) -> Message | Answer:
    """Read one frame: the message in it, or the error reply that says why there is none."""
    try:
        # The real server reads only text, so it takes a binary frame for None.
        return _MESSAGE.validate_json(_keep_first_keys(frame) if isinstance(frame, str) else None)  # pyright: ignore[reportArgumentType]
    except ValidationError as invalid:
        errors = [
            {
                "msg": each["msg"],
                "type": each["type"],
                "help": each.get("url", ""),
                "loc": each["loc"],
                "input": each["input"],
            }
            for each in invalid.errors()
        ]
        reply = pydantic_core.to_json({"status": "error", "errors": errors}, inf_nan_mode="null")
        return Answer(invalid.errors()[0]["type"], reply.decode())


def _keep_first_keys(text: str) -> str:
    """Keep the first of duplicate keys in an object, as the real server does; pydantic would keep the last."""
    repeated = False

    def first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal repeated
        members: dict[str, Any] = {}
        for key, value in pairs:
            members.setdefault(key, value)
        repeated = repeated or len(members) < len(pairs)
        return members

    try:
        document = json.loads(text, object_pairs_hook=first_wins)
    except (ValueError, RecursionError):
        return text  # pydantic reads it next and says what is wrong
    return json.dumps(document) if repeated else text


@dataclass(frozen=True, slots=True)
class Row:
    """One stored update.

    `arrived_s`: when the server took the message up, seconds on the monotonic clock. `connection`: 1 for the first
    connection ever made, and so on. `metadata`: as stored, without what the real models ignore.
    """

    uuid: str
    status: str
    arrived_s: float
    connection: int
    metadata: dict[str, Any] | None


class Ledger:
    """What all connections share: the validators, the jobs and their rows.

    `validators` are public keys in hex without 0x; None means that a trusted proxy has done the authentication.
    Every job is known unless its UUID is in `unknown_jobs`, which may change at any time. `rows` grows without
    bound, like the database that it stands for.
    """

    def __init__(self, validators: Iterable[str] | None) -> None:
        self.validators = None if validators is None else set(validators)
        self.unknown_jobs: set[str] = set()
        self.rows: list[Row] = []
        self.streaming: dict[str, tuple[str, str, int]] = {}
        """By job: the certificate, address and port of its streaming server, as the job's own row has them."""
        self._rows_by_job: dict[str, dict[str, Row]] = {}

    def rows_of(self, uuid: str) -> list[Row]:
        """The rows of one job in the order in which they were stored."""
        return list(self._rows_by_job.get(uuid, {}).values())

    def current_status(self, uuid: str) -> str | None:
        """What the Facilitator shows for the job: the status of the last row to arrive."""
        return next(reversed(self._rows_by_job.get(uuid, {})), None)

    def authenticate(self, request: Authentication) -> Answer:
        """Verify the signature, then look the validator up."""
        try:
            signed = _is_signed(request.public_key, request.signature)
        except ValueError:
            return _DROP
        if not signed:
            return error("auth.signature_invalid", "The signature does not match the public key.", _BAD_SIGNATURE)
        if self.validators is not None and request.public_key.lower() not in self.validators:
            return error("auth.validator_not_found", "No active validator has this public key.", INACTIVE)
        return _SUCCESS

    def record(self, update: StatusUpdate, connection: int, arrived_s: float, *, inserts: bool = True) -> Answer:
        """Store and answer one update as the real server would; without `inserts`, as while its INSERTs fail."""
        uuid = _usual_spelling(update.uuid)
        if uuid is None:
            return _DROP
        if uuid in self.unknown_jobs:
            return error("job.not_found", f"Job {uuid} does not exist.")
        if not inserts:
            return _DROP
        metadata = update.metadata.model_dump(exclude_unset=True) if update.metadata else None
        if not _storable(metadata):
            return _DROP
        rows = self._rows_by_job.setdefault(uuid, {})
        if update.status == "sent" or update.status in rows:
            return error("job.integrity_error", f"Job {uuid} already has the status {update.status}.")
        rows[update.status] = Row(uuid, update.status, arrived_s, connection, metadata)
        self.rows.append(rows[update.status])
        return _DROP if _breaks_after_storing(update) else self._store_in_job(update, uuid)

    def _store_in_job(self, update: StatusUpdate, uuid: str) -> Answer:
        """What `streaming_ready` changes in the job's own row, after the row of the status is stored."""
        details = update.metadata.streaming_details if update.metadata else None
        if update.status != "streaming_ready" or details is None:
            return _SUCCESS
        cert, address, port = (
            details.streaming_server_cert,
            details.streaming_server_address,
            details.streaming_server_port,
        )
        if cert is None or address is None or port is None:
            return error("job.integrity_error", "null value in a streaming column violates not-null constraint")
        self.streaming[uuid] = (cert, address, port)
        return _SUCCESS


class Conversation:
    """One connection's side of the protocol: whether it is authenticated decides what a message means."""

    def __init__(self, ledger: Ledger, connection: int) -> None:
        self.connection = connection
        self.authenticated = ledger.validators is None
        self.public_key: str | None = None
        """The validator's public key, after it has authenticated itself."""
        self._ledger = ledger

    def answer(self, message: Message | Answer, arrived_s: float, *, inserts: bool = True) -> Answer:
        """The answer to one parsed frame. For a frame that could not be parsed, `parse` has made the answer already.

        Without `inserts`, the INSERT of an update fails.
        """
        if isinstance(message, Answer):
            return message
        if isinstance(message, Authentication):
            return self._authenticate(message)
        if not self.authenticated:
            return error("auth.not_authenticated", "Authenticate first.")
        if isinstance(message, Heartbeat | MachineSpecs):
            return NOTHING
        return self._ledger.record(message, self.connection, arrived_s, inserts=inserts)

    def _authenticate(self, request: Authentication) -> Answer:
        if self.authenticated:
            return error("auth.already_authenticated", "This connection is authenticated already.")
        answer = self._ledger.authenticate(request)
        if answer.kind == "success":
            self.authenticated = True
            self.public_key = request.public_key.lower()
        return answer


@lru_cache(maxsize=64)
def _is_signed(public_key_hex: str, signature: str) -> bool:
    """Whether the signature is the key's, of the key itself. Raises ValueError if one of the two cannot be read."""
    public_key = bytes.fromhex(public_key_hex)
    return Keypair(public_key=public_key.hex()).verify(public_key, signature)


def _usual_spelling(uuid: str) -> str | None:
    """The UUID in lower case with hyphens; None if Python's parser, which Django uses too, does not accept it."""
    try:
        return str(UUID(uuid))
    except ValueError:
        return None


def _storable(value: Any) -> bool:
    """Whether PostgreSQL can store the value in a jsonb column, which allows no NUL, NaN or infinity."""
    if isinstance(value, str):
        return "\0" not in value
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return all(_storable(key) and _storable(member) for key, member in members.items())
    if isinstance(value, list):
        return all(map(_storable, cast("list[Any]", value)))
    return True


def _breaks_after_storing(update: StatusUpdate) -> bool:
    """Whether the real server fails after storing the row, because metadata is missing or a port is too large."""
    if update.metadata is None:
        return update.status in _FAILS_WITHOUT_METADATA
    streaming = update.metadata.streaming_details
    port = streaming.streaming_server_port if streaming else None
    return port is not None and port not in _INT32
