"""The advice for each reason that `relay dlq show` prints; docs/dead-letters.md has the rest."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from relay.contract.subjects import Reason

PAGE: Final = "docs/dead-letters.md"


@dataclass(frozen=True, slots=True)
class Advice:
    """What a reason means, and the first thing to do about it. Both are sentences without a full stop."""

    meaning: str
    remedy: str


_FIX_PRODUCER: Final = (
    "fix the producer; then export the dead letter, correct its body in the file, and replay the file"
    " (`relay dlq purge SEQ --export FILE`, `relay dlq replay --from FILE`)"
)

ADVICE: Final[Mapping[str, Advice]] = {
    Reason.INVALID_JSON: Advice("the body is not a JSON object that every reader understands alike", _FIX_PRODUCER),
    Reason.INVALID_SCHEMA: Advice("a field of the body is missing, of another type, or unknown", _FIX_PRODUCER),
    Reason.UNKNOWN_STATUS: Advice(
        "the status is `unknown`, or one that the Facilitator would store as `unknown`", _FIX_PRODUCER
    ),
    Reason.INVALID_UUID: Advice(
        "the body has no UUID, or the subject does not end in one in lower case with hyphens",
        "fix the producer; if the subject was wrong, publish the body on the right one (`relay publish --raw UUID`)"
        " and purge the dead letter, else export it, correct its body in the file, and replay the file",
    ),
    Reason.UUID_MISMATCH: Advice(
        "the subject names one job and the body another",
        "find out from the producer which of the two is right; publish the update for that job, and purge the dead"
        " letter",
    ),
    Reason.TOO_LARGE: Advice(
        "the body is larger than the 16,777,216 bytes that the Facilitator takes",
        "have the producer shorten its output; then export the dead letter, shorten its body in the file, and replay"
        " the file",
    ),
    Reason.REFUSED: Advice(
        "the Facilitator read the update and refused it",
        "read the error: if it was the Facilitator's trouble and is over, replay; if it is about a field, fix the"
        " producer, export the dead letter, correct its body in the file, and replay the file",
    ),
    Reason.JOB_NOT_FOUND: Advice(
        "the Facilitator did not know the job, however often it was asked",
        "look for the job in the Facilitator: replay if it is there now, purge if it was never its job",
    ),
    Reason.CONNECTION_DROPPED: Advice(
        "the Facilitator dropped the connection at this update each time, and answered a repeat of an earlier update"
        " before and after",
        "read the Facilitator's log at that time: replay if it was fixed since, and keep the dead letter for its"
        " developers if it was not",
    ),
    Reason.UNEXPLAINED_DUPLICATE: Advice(
        "the Facilitator answered each time that it has this status of the job already, although the update cannot have"
        " reached it before",
        "find out why it could not store new rows (a migration, an id sequence that lies behind), then replay; purge"
        " only what it has from somebody else",
    ),
    Reason.MAX_DELIVER: Advice(
        "JetStream delivered the update as often as `RELAY_MAX_DELIVER` says, and no delivery was acknowledged"
        " or terminated",
        "look for workers that died or were killed at that time; when the cause is gone, replay one first, then the"
        " others",
    ),
    Reason.NO_LANE: Advice(
        "the update was published while `JOB_STATUS` had lost its subject transform, so it was filed under no lane,"
        " where no consumer delivers it",
        "run `relay provision`, and find out who changed the stream; then replay what its job has not gone beyond, as"
        " `relay dlq replay --dry-run` says, and purge the rest",
    ),
}
