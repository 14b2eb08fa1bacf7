"""Whether the answer `job.integrity_error` means that the Facilitator has the update.

Usually it does: the Facilitator keeps one row for each status of a job, and answers a repeat with this error. But it
gives the same answer to any error of its database about a row, also while it stores nothing at all: while a migration
has added a column that old workers do not fill, or while the table's id sequence lies behind, as after a restored
backup. Whoever believes each such answer loses updates without a word. So it is believed only if it is *explained*:
if this status of the job can have reached the Facilitator before. That is so if

- the update was delivered before, to this worker or another one: nobody knows how far it got then;
- it was stored before its consumer was made: an earlier consumer may have delivered it;
- it was sent on a connection that broke before the answer. An answer is no such thing: with this error nothing was
  stored, so a second one in a row explains nothing;
- its status is `sent`: the Facilitator writes that row itself;
- it is a replay of a dead letter whose update may be stored in spite of its reason;
- the stream has an earlier update of the job with the same status that may be stored. It was settled before this one
  was sent, because a job's updates go one after another. So it is stored if it has no dead letter, and may be if it has
  one whose reason leaves that open;
- somebody else sends updates of the same jobs (RELAY_OTHER_SENDERS).

**Which reasons leave it open.** An update that was refused before it was sent is not stored. Nor is one whose last
answer was an error: if it had been stored before, the answer would have been `job.integrity_error`, and explained. But
a connection that drops says nothing of what was stored (`connection_dropped`), nor do deliveries that ended with their
workers (`max_deliver`); a reason that we do not know says nothing at all. So the replay of an `unexplained_duplicate`
is not explained by being one: replayed while the fault lasts, it becomes a dead letter again.
"""

from collections.abc import Mapping
from typing import Final

from relay.contract.model import JobStatus
from relay.contract.subjects import HISTORY_HEADER, REPLAYED_FROM_HEADER, Reason
from relay.core.update import Update
from relay.core.verdict import RetryPolicy

_LEAVE_IT_OPEN: Final = frozenset[str]({Reason.CONNECTION_DROPPED, Reason.MAX_DELIVER})
_KNOWN: Final = frozenset[str](Reason)


def explains(update: Update, policy: RetryPolicy) -> bool | None:
    """Whether `job.integrity_error` as the answer to this update is explained. None: the stream must be asked first."""
    if policy.other_senders or update.maybe_stored or update.status == JobStatus.SENT:
        return True
    if _explained_by_replay(update.delivery.headers):
        return True
    return update.has_equal_before


def may_be_stored(reason: str) -> bool:
    """Whether the Facilitator may have an update in spite of its dead letter with this reason."""
    return reason in _LEAVE_IT_OPEN or reason not in _KNOWN


def _explained_by_replay(headers: Mapping[str, str]) -> bool:
    if REPLAYED_FROM_HEADER not in headers:
        return False
    # The history has one failure for each dead letter that was replayed: its reason, and more about it.
    failures = headers.get(HISTORY_HEADER, "").split("; ")
    return any(may_be_stored(failure.partition(" ")[0]) for failure in failures)
