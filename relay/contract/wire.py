"""Updates on the hot path: each is decoded once into typed structs, and repaired or refused.

Decoders are built at import. `decode` never raises, whatever a producer has written.
"""

import json
import math
import re
from collections import Counter
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, cast
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from relay.contract.model import INT32_MAX, INT32_MIN, MESSAGE_TYPE, UNKNOWN_STATUS, WHY_NOT_UNKNOWN, JobStatus
from relay.contract.sizes import MAX_FRAME_BYTES
from relay.contract.subjects import JOB_UUID, Reason
from relay.contract.text import ascii_line

_MAX_DEPTH: Final = 200
_SMALL_BYTES: Final = 2 * _MAX_DEPTH
"""In so few bytes nothing is nested deeper than _MAX_DEPTH, because each bracket has a partner."""
_MAX_VALUES: Final = 2000
_SAMPLE_BYTES: Final = 64 * 1024
_FIRST_KEY_BYTES: Final = 64
_MAX_ERROR_CHARS: Final = 500
_MAX_ECHO_CHARS: Final = 60
_STATUSES: Final = frozenset[str](JobStatus)
_NEEDS_METADATA: Final = frozenset[str]({JobStatus.COMPLETED, JobStatus.STREAMING_READY})
_ANY_UUID: Final = TypeAdapter(UUID)
# Backslashes pair up from the start of their run, so an even number of them before \u0000 makes it a NUL.
_ESCAPED_NUL: Final = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")
# NUL, or an escape that msgspec does not write: of \u it writes only those of control characters.
_OTHER_ESCAPE: Final = re.compile(rb"\\u(?!00(?:0[1-9a-f]|1[0-9a-f]))")


class Repair(StrEnum):
    """A correction that `decode` made in an update before it is sent."""

    MESSAGE_TYPE_ADDED = "message_type_added"
    UUID_RESPELLED = "uuid_respelled"
    METADATA_ADDED = "metadata_added"
    STREAMING_DETAILS_FILLED = "streaming_details_filled"
    NUL_REPLACED = "nul_replaced"


class Frame(Struct, frozen=True, gc=False):
    """An update fit to be sent as one text frame.

    `text` is UTF-8 JSON: the producer's own bytes object unless an envelope or a repair changed it.
    """

    text: bytes
    status: str
    repairs: tuple[Repair, ...] = ()


class Unsendable(Struct, frozen=True, gc=False):
    """Why a body must not be sent. `error` is one sentence in printable ASCII, at most 500 characters."""

    reason: Reason
    error: str


class _MinerResponse(Struct, frozen=True, gc=False):
    docker_process_stderr: str
    docker_process_stdout: str
    artifacts: dict[str, str] | None = None
    upload_results: dict[str, str] | None = None


class _JobRejectionDetails(Struct, frozen=True, gc=False):
    rejected_by: str
    reason: str
    message: str
    context: dict[str, Raw] | None = None


class _JobFailureDetails(Struct, frozen=True, gc=False):
    reason: str
    stage: str
    message: str
    context: dict[str, Raw] | None = None
    docker_process_exit_status: int | None = None
    docker_process_stdout: str | None = None
    docker_process_stderr: str | None = None


class _HordeFailureDetails(Struct, frozen=True, gc=False):
    reported_by: str
    reason: str
    message: str
    context: dict[str, Raw] | None = None


class _StreamingDetails(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    streaming_server_cert: str | None = None
    streaming_server_address: str | None = None
    streaming_server_port: Annotated[int, Meta(ge=INT32_MIN, le=INT32_MAX)] | None = None


class _FilledStreamingDetails(Struct, frozen=True, gc=False):
    """Streaming details with values for null and absent members. Then the Facilitator stores all three in the job."""

    streaming_server_cert: str
    streaming_server_address: str
    streaming_server_port: int


class _Metadata(Struct, frozen=True, gc=False):
    miner_response: _MinerResponse | None = None
    job_rejection_details: _JobRejectionDetails | None = None
    job_failure_details: _JobFailureDetails | None = None
    horde_failure_details: _HordeFailureDetails | None = None
    streaming_details: _StreamingDetails | None = None


class _Update(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    uuid: str
    status: Any  # checked in `_decode`: a status that is not text counts as unknown, not as a schema error
    message_type: Literal["V0JobStatusUpdate"] | UnsetType = UNSET
    metadata: _Metadata | None = None


class _Envelope(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    type: Literal["job_status_update"]
    payload: _Update


class _RawEnvelope(Struct, frozen=True, gc=False):
    payload: Raw


class _RawUpdate(Struct, frozen=True, gc=False, kw_only=True):
    """An update with its metadata as the original bytes, so that a rewrite does not round numbers or reorder keys."""

    message_type: str = MESSAGE_TYPE
    uuid: str
    status: str
    metadata: Raw = Raw(b"null")


_DOCUMENT: Final = msgspec.json.Decoder()
_UPDATE: Final = msgspec.json.Decoder(_Update)
_ENVELOPE: Final = msgspec.json.Decoder(_Envelope)
_RAW_UPDATE: Final = msgspec.json.Decoder(_RawUpdate)
_RAW_ENVELOPE: Final = msgspec.json.Decoder(_RawEnvelope)
_RAW_MEMBERS: Final = msgspec.json.Decoder(dict[str, Raw])
_ENCODER: Final = msgspec.json.Encoder()


class _Unfit(Exception):  # noqa: N818 - never leaves this module
    def __init__(self, reason: Reason, error: str) -> None:
        self.reason = reason
        self.error = error
        super().__init__(error)


def decode(body: bytes, token: str) -> Frame | Unsendable:
    """Return the frame to send for an update, or why it must not be sent. Never raises.

    `token` is the last part of its subject, which names the job. `body` is the bare update, or the envelope
    `{"type":"job_status_update","payload":{...}}`.
    """
    try:
        return _decode(body, token)
    except _Unfit as unfit:
        return Unsendable(unfit.reason, ascii_line(unfit.error, _MAX_ERROR_CHARS))
    except RecursionError:
        return Unsendable(Reason.INVALID_JSON, "not JSON that every reader understands alike: nested too deep")


def _decode(body: bytes, token: str) -> Frame:
    if len(body) > MAX_FRAME_BYTES:
        raise _too_large(body)
    if JOB_UUID.fullmatch(token) is None:
        wanted = "a UUID in lower case with hyphens, as in job.status.123e4567-e89b-42d3-a456-426614174000"
        raise _Unfit(Reason.INVALID_UUID, f"the subject ends in {_echo(token)}, but must end in {wanted}")
    text, nuls, update = body, 0, _plain(body)
    if update is None:
        if b"\\u0000" in body:
            text, nuls = _ESCAPED_NUL.subn(rb"\1\\ufffd", body)
        update, text = _typed(text)
    if not isinstance(update.status, str) or update.status not in _STATUSES:
        raise _unknown_status(update.status)
    repairs = _repairs(update, token)
    if repairs:
        text = _rewritten(text, token, update.metadata, repairs)
        if len(text) > MAX_FRAME_BYTES:
            raise _too_large(text)
    if nuls:
        repairs += (Repair.NUL_REPLACED,)
    return Frame(text, update.status, repairs)


def _too_large(text: bytes) -> _Unfit:
    limit = f"the Facilitator takes at most {MAX_FRAME_BYTES}"
    return _Unfit(Reason.TOO_LARGE, f"the update has {len(text)} bytes, {limit}: shorten its output")


def _typed(text: bytes) -> tuple[_Update, bytes]:
    """The update in `text` and its bytes: all of `text`, or only the payload if `text` is an envelope."""
    enveloped = "payload" in _parse(text)  # nothing else is kept: large updates would be held several times
    try:
        if not enveloped:
            return _UPDATE.decode(text), text
        return _ENVELOPE.decode(text).payload, bytes(_RAW_ENVELOPE.decode(text).payload)
    except msgspec.ValidationError as error:
        raise _Unfit(Reason.INVALID_SCHEMA, f"not a job status update: {error}") from None
    except msgspec.DecodeError as error:  # `_parse` accepts lone surrogates, msgspec does not
        raise _Unfit(Reason.INVALID_JSON, f"not JSON: {error}") from None


def _plain(text: bytes) -> _Update | None:
    """The update in `text`, if it is spelled as msgspec spells it but for blanks; None if it needs a closer look.

    What msgspec reads and writes again to the very same bytes has nothing that `_parse` refuses: of duplicate keys one
    would be missing, and msgspec reads no invalid UTF-8 and no number that is too large for a float.
    """
    if text.find(b"\\u", 0, _SAMPLE_BYTES) >= 0 and _OTHER_ESCAPE.search(text, 0, _SAMPLE_BYTES):
        return None
    try:
        document = _DOCUMENT.decode(text)
        if len(text) > _SMALL_BYTES and not _is_simple(document):
            return None
        # Python's `json` writes a blank after each colon.
        compact = msgspec.json.format(text, indent=-1) if text.find(b'": ', 0, _FIRST_KEY_BYTES) >= 0 else text
        return msgspec.convert(document, _Update) if _ENCODER.encode(document) == compact else None
    except (ValueError, RecursionError):
        return None


def _is_simple(document: Any) -> bool:
    """Whether a document has few members, is not nested too deep, and has no NUL in its texts.

    To look at what was read is quicker than to search megabytes of text for brackets and escapes.
    """
    values, containers = [document], 0
    for value in values:  # it grows meanwhile
        if isinstance(value, str):
            if "\0" in value:
                return False
        elif isinstance(value, dict):
            containers += 1
            values += value
            values += value.values()
        elif isinstance(value, list):
            containers += 1
            values += value
        if containers > _MAX_DEPTH or len(values) > _MAX_VALUES:
            return False
    return True


def _parse(text: bytes) -> dict[str, Any]:
    """Return the JSON object in `text`. Refuses what parsers read differently, or what the Facilitator cannot read.

    msgspec alone is not enough: it keeps the last of duplicate keys, and in open metadata, which it skips, it accepts
    invalid UTF-8 and numbers that are too large for a float.
    """
    try:
        document = text.decode()
        # There are no more levels than brackets, so for the usual update it is enough to count brackets.
        if document.count("{") + document.count("[") > _MAX_DEPTH:
            from_json(text)  # the Facilitator reads with pydantic, so the depth that pydantic takes is the limit
        tree = _SCANNER.decode(document)
    except ValueError as error:
        raise _Unfit(Reason.INVALID_JSON, f"not JSON that every reader understands alike: {error}") from None
    if not isinstance(tree, dict):
        raise _Unfit(Reason.INVALID_JSON, f"not a JSON object, but {_kind(tree)}")
    return cast("dict[str, Any]", tree)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {_echo(twice)} occurs twice in one object")
    return members


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"the number {_echo(number)} is too large for a float")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


_SCANNER: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_refuse_constant)


def _unknown_status(status: Any) -> _Unfit:
    shown = _echo(status) if isinstance(status, str) else _kind(status)
    known = " ".join(JobStatus)
    why = f"; {WHY_NOT_UNKNOWN}" if status == UNKNOWN_STATUS else ""
    return _Unfit(Reason.UNKNOWN_STATUS, f"status is {shown} - at `$.status`; it must be one of: {known}{why}")


def _repairs(update: _Update, token: str) -> tuple[Repair, ...]:
    repairs: tuple[Repair, ...] = ()
    if update.uuid != token:
        _check_same_job(update.uuid, token)
        repairs += (Repair.UUID_RESPELLED,)
    if update.message_type is UNSET:
        repairs += (Repair.MESSAGE_TYPE_ADDED,)
    if update.metadata is None:
        if update.status in _NEEDS_METADATA:
            repairs += (Repair.METADATA_ADDED,)
    elif (details := update.metadata.streaming_details) is not None and update.status == JobStatus.STREAMING_READY:
        repairs += _gaps(details)
    return repairs


def _gaps(details: _StreamingDetails) -> tuple[Repair, ...]:
    members = (details.streaming_server_cert, details.streaming_server_address, details.streaming_server_port)
    return (Repair.STREAMING_DETAILS_FILLED,) if None in members else ()


def _check_same_job(uuid: str, token: str) -> None:
    try:
        job = str(_ANY_UUID.validate_python(uuid))
    except ValidationError:
        raise _Unfit(Reason.INVALID_UUID, f"{_echo(uuid)} is not a UUID - at `$.uuid`") from None
    if job != token:
        raise _Unfit(Reason.UUID_MISMATCH, f"the subject names job {token}, the body job {job} - at `$.uuid`")


def _rewritten(text: bytes, token: str, typed: _Metadata | None, repairs: tuple[Repair, ...]) -> bytes:
    """The update in `text` with all repairs; `typed` is its metadata. Other members of it keep their bytes."""
    update = _RAW_UPDATE.decode(text)
    metadata = update.metadata
    if Repair.METADATA_ADDED in repairs:
        metadata = Raw(b"{}")
    elif typed is not None and typed.streaming_details and Repair.STREAMING_DETAILS_FILLED in repairs:
        members = _RAW_MEMBERS.decode(metadata)
        members["streaming_details"] = Raw(_ENCODER.encode(_filled(typed.streaming_details)))
        metadata = Raw(_ENCODER.encode(members))
    return _ENCODER.encode(_RawUpdate(uuid=token, status=update.status, metadata=metadata))


def _filled(details: _StreamingDetails) -> _FilledStreamingDetails:
    return _FilledStreamingDetails(
        details.streaming_server_cert or "", details.streaming_server_address or "", details.streaming_server_port or 0
    )


def _kind(value: Any) -> str:
    names = ((dict, "an object"), (list, "an array"), (str, "text"), (bool, "a boolean"), (type(None), "null"))
    return next((name for kind, name in names if isinstance(value, kind)), "a number")


def _echo(text: str) -> str:
    return f"'{text}'" if len(text) <= _MAX_ECHO_CHARS else f"'{text[:_MAX_ECHO_CHARS]}...'"
