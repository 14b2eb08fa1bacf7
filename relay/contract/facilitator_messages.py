"""The messages of the Facilitator's protocol other than updates: what it sends us, signing in, and the heartbeat.

`decode_incoming` is on the hot path, and never raises, whatever the Facilitator sends.
"""

import json
from enum import StrEnum
from typing import Any, Final, Literal, get_args

import msgspec
from msgspec import UNSET, Raw, Struct
from pydantic_core.core_schema import ErrorType

from relay.contract.text import ascii_line

HEARTBEAT: Final = '{"message_type":"V0Heartbeat"}'
PYDANTIC_ERROR_TYPES: Final = frozenset[str](get_args(ErrorType))
"""The error types with which the Facilitator refuses a message that does not fit its schema."""

_MAX_ERROR_CHARS: Final = 500
_MAX_NAME_CHARS: Final = 60
_MOST_TOLD: Final = 3


class ReplyError(Struct, frozen=True, gc=False):
    """One error of a reply: its `type` decides what is done, its `msg` (one line, bounded) is for people."""

    type: str
    msg: str


class Reply(Struct, frozen=True, gc=False):
    """The Facilitator's answer to the oldest unanswered message of its connection."""

    status: Literal["success", "error"]
    errors: tuple[ReplyError, ...] = ()

    @property
    def complaint(self) -> str:
        """Its first 3 errors in words, on one line; empty if it has none. Only a broken message has more than one."""
        return "; ".join(f"{error.type}: {error.msg}" for error in self.errors[:_MOST_TOLD])


class PushKind(StrEnum):
    """What the Facilitator pushed: a job request, a report of a cheated job, or a message that we do not know."""

    REQUEST = "request"
    CHEATED = "cheated"
    OTHER = "other"


class Push(Struct, frozen=True, gc=False):
    """A message that the Facilitator sent by itself. `token` is its job, or `unknown`."""

    kind: PushKind
    token: str
    message_type: str


class _IncomingError(Struct, frozen=True, gc=False):
    type: str = ""
    msg: str = ""


class _Incoming(Struct, frozen=True, gc=False):
    message_type: Any = UNSET
    status: Any = None
    errors: Raw = Raw(b"[]")
    uuid: Any = None
    job_uuid: Any = None


_INCOMING: Final = msgspec.json.Decoder(_Incoming)
_NO_ERRORS: Final = Raw(b"[]")
_ERRORS: Final = msgspec.json.Decoder(tuple[_IncomingError, ...])
_PUSH_KINDS: Final = {"V2JobRequest": PushKind.REQUEST, "V0JobCheated": PushKind.CHEATED}


def decode_incoming(text: str | bytes) -> Reply | Push | None:
    """What the Facilitator sent: a push if it has a `message_type`, else a reply; None if it is neither."""
    return _USUAL.get(text) or _decode_incoming(text)


def _decode_incoming(text: str | bytes) -> Reply | Push | None:
    try:
        message = _INCOMING.decode(text)
    except (ValueError, RecursionError):
        return None
    if message.message_type is not UNSET:
        return _push(message)
    if message.status not in ("success", "error"):
        return None
    return Reply(message.status, () if message.errors == _NO_ERRORS else _reply_errors(message.errors))


_USUAL: Final[dict[str | bytes, Reply | Push | None]] = {
    text: _decode_incoming(text)
    for text in (b'{"status":"success","errors":[]}', b'{"status": "success", "errors": []}')
}
"""The usual answers, which need not be decoded again."""


def _reply_errors(errors: Raw) -> tuple[ReplyError, ...]:
    try:
        return tuple(map(_bounded, _ERRORS.decode(errors)))
    except (ValueError, RecursionError):
        return ()  # still a reply: if it were ignored, every later one would be paired with the wrong update


def _bounded(error: _IncomingError) -> ReplyError:
    return ReplyError(ascii_line(error.type, _MAX_ERROR_CHARS), ascii_line(error.msg, _MAX_ERROR_CHARS))


def _push(message: _Incoming) -> Push | None:
    if not isinstance(message.message_type, str):
        return None
    kind = _PUSH_KINDS.get(message.message_type, PushKind.OTHER)
    token = message.job_uuid if kind is PushKind.CHEATED else message.uuid
    known = token[:_MAX_NAME_CHARS] if isinstance(token, str) and token else "unknown"
    return Push(kind, known, message.message_type[:_MAX_NAME_CHARS])


def authentication_request(public_key_hex: str, signature_hex: str) -> str:
    """The first message on a connection: the hotkey's public key and its signature of the key's raw bytes.

    Both in hexadecimal, with or without `0x`; the Facilitator wants that prefix on the signature and not on the key.
    """
    message = {
        "message_type": "V0AuthenticationRequest",
        "public_key": public_key_hex.removeprefix("0x"),
        "signature": f"0x{signature_hex.removeprefix('0x')}",
    }
    return json.dumps(message, separators=(",", ":"))
