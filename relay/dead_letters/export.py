"""Dead letters in a file: one JSON object per line, which can be edited."""

import base64
import datetime as dt
import json
from typing import Annotated, Final

import msgspec

from relay.contract.subjects import SOURCE_SUBJECT_HEADER
from relay.dead_letters.moments import in_utc
from relay.dead_letters.stored import StoredDeadLetter


class _Line(msgspec.Struct):
    """A dead letter in a file. The body is in `body` if it is text, else in `body_base64`."""

    sequence: Annotated[int, msgspec.Meta(ge=1)]
    stored_at: dt.datetime
    headers: dict[str, str]
    body: str | None = None
    body_base64: str | None = None


_DECODER: Final = msgspec.json.Decoder(_Line)


def to_line(letter: StoredDeadLetter) -> bytes:
    """A dead letter as one line of JSON, with the end of the line. No byte of it is lost."""
    try:
        body = {"body": letter.body.decode()}
    except UnicodeDecodeError:
        body = {"body_base64": base64.b64encode(letter.body).decode()}
    document = {
        "sequence": letter.sequence,
        "stored_at": letter.stored_at.isoformat(),
        **body,
        "headers": dict(letter.headers),
    }
    # In ASCII, so that no editor takes a character of it for a line end.
    return json.dumps(document).encode() + b"\n"


def from_line(line: bytes) -> StoredDeadLetter:
    """The dead letter in a line that `to_line` wrote, edited or not. Raises ValueError, which says what is wrong."""
    try:
        found = _DECODER.decode(line)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if (found.body is None) == (found.body_base64 is None):
        raise ValueError("it needs either `body` or `body_base64`")
    if found.stored_at.tzinfo is None:
        raise ValueError("`stored_at` needs its offset from UTC")
    body = found.body.encode() if found.body is not None else base64.b64decode(found.body_base64 or "", validate=True)
    letter = StoredDeadLetter(found.sequence, in_utc(found.stored_at), found.headers, body)
    if not letter.job:
        raise ValueError(f"the header {SOURCE_SUBJECT_HEADER} names no subject job.status.<uuid>")
    return letter
