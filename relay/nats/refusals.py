"""What the NATS server does not permit this connection: it says so once, in an error that names only the subject.

A subscription, and a publish without an answer (acknowledgements, receipts, replies), fail in no other way.
"""

import re
from typing import Final

_VIOLATION: Final = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"')
TOO_MANY: Final = "maximum subscriptions exceeded"
"""What the server says to a subscription above `max_subscriptions`. It does not say which, and goes on."""
_KEPT_S: Final = 600.0
_MOST: Final = 100
"""Those who ask questions choose where the answer goes, so they could name ever new subjects."""


class Refusals:
    """The refusals on the present connection. Subjects are in lower case: nats-py gives the server's errors so.

    A refused subscription is kept until `drop_subscriptions`; a refused publish for 10 minutes, because nobody can try
    it without an effect. Publishes on subjects that begin alike are told as one.
    """

    def __init__(self) -> None:
        self._subscriptions: dict[str, float] = {}
        """By subject: when it was refused last."""
        self._too_many_s: float | None = None
        """When a subscription was refused last because there are too many."""
        self._publishes: dict[str, dict[str, float]] = {}
        """By what subjects begin with, and by subject: when it was refused last. The last refused comes last."""

    def told(self, error: str, now_s: float) -> bool:
        """The server has said `error`. Returns whether it is no refusal, or one that is not known yet."""
        if TOO_MANY in error.lower():
            is_new, self._too_many_s = self._too_many_s is None, now_s
            return is_new
        if (violation := _VIOLATION.search(error.lower())) is None:
            return True
        subject = violation[2]
        if violation[1] == "publish":
            return self._publish_refused(subject, now_s)
        is_new = subject not in self._subscriptions
        if is_new and len(self._subscriptions) == _MOST:
            return False
        self._subscriptions[subject] = now_s
        return is_new

    def forget(self) -> None:
        """There is a new connection, which may have other permissions."""
        self._subscriptions.clear()
        self._publishes.clear()
        self._too_many_s = None

    def drop_subscriptions(self, before_s: float) -> None:
        """Those that were refused before that moment have been asked for again since, or have ended."""
        self._subscriptions = {subject: at_s for subject, at_s in self._subscriptions.items() if at_s >= before_s}
        if self._too_many_s is not None and self._too_many_s < before_s:
            self._too_many_s = None

    def lacks(self, subject: str) -> bool:
        """Whether the server may not have made the subscription to `subject`."""
        return self.too_many or subject.lower() in self._subscriptions

    @property
    def too_many(self) -> bool:
        """Whether the server has refused subscriptions because the connection has too many."""
        return self._too_many_s is not None

    @property
    def subscriptions(self) -> list[str]:
        """The subjects that may not be subscribed to."""
        return list(self._subscriptions)

    def publishes(self, now_s: float, within_s: float = _KEPT_S) -> list[str]:
        """What subjects begin with on which a publish was refused lately, such as `job.relayed.>`."""
        last = {family: next(reversed(subjects.values())) for family, subjects in self._publishes.items()}
        return [family for family, at_s in last.items() if now_s - at_s < within_s]

    def why_unanswered(self, subject: str, inbox: str) -> str | None:
        """The refusal of a publish on `subject`, or of all answers to the inboxes that begin with `inbox`; else None.

        Meant for publishes that have got no answer, because an earlier refusal may have ended.
        """
        asked = subject.lower()
        if asked in self._publishes.get(_family(asked), ()):
            return f'permissions violation for publish to "{subject}"'
        for refused in self._subscriptions:
            if refused.startswith(inbox.lower()) or refused == asked:
                return f'permissions violation for subscription to "{refused}"'
        return None

    def _publish_refused(self, subject: str, now_s: float) -> bool:
        kept = set(self.publishes(now_s))
        self._publishes = {family: subjects for family, subjects in self._publishes.items() if family in kept}
        family = _family(subject)
        if (is_new := family not in kept) and len(kept) == _MOST:
            return False
        subjects = self._publishes.setdefault(family, {})
        subjects.pop(subject, None)
        subjects[subject] = now_s
        if len(subjects) > _MOST:
            del subjects[next(iter(subjects))]
        return is_new


def _family(subject: str) -> str:
    """The first two tokens of a subject; requests of JetStream's API are few, and kept whole."""
    tokens = subject.split(".")
    if len(tokens) < 3 or (tokens[0] == "$js" and "api" in tokens[1:3]):  # noqa: PLR2004 - first, second, and more
        return subject
    return f"{tokens[0]}.{tokens[1]}.>"
