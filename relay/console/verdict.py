"""Is the promise being kept? The answer in one word, one shape and one sentence. Without I/O."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from relay.contract.errors import NotProvisioned
from relay.doctor.findings import Finding, Level, fail
from relay.doctor.state_checks import check_state
from relay.overview.watch import View

_LEVELS: Final = list(Level)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the first line of the page says."""

    level: Level
    headline: str
    reason: str


class Standing:
    """What the checks of the doctor found, as far as it is not outdated, and what follows from it.

    Args:
        view: the latest view, to begin with.
    """

    def __init__(self, view: View) -> None:
        self.view = view
        self._broker: Sequence[Finding] = ()
        self._state: Sequence[Finding] = ()
        self._state_before: Sequence[Finding] = ()

    def take(self, view: View, *, connected: bool) -> None:
        """A new view. What was found before a trouble says nothing of the time after it."""
        self.view = view
        if view.trouble is not None or view.snapshot is None:
            self._state = ()
        else:
            now = check_state(view.snapshot)
            self._state, self._state_before = now, self._state or now
        if not connected:
            self._broker = ()

    def take_broker(self, findings: Sequence[Finding]) -> None:
        """What a snapshot does not show."""
        self._broker = findings

    @property
    def findings(self) -> list[Finding]:
        """Those of the doctor that need NATS alone."""
        unknown = [] if self.view.trouble is None else [fail("state", f"not known {self.view.trouble}", "")]
        return [*unknown, *self._broker, *self._state]

    @property
    def verdict(self) -> Verdict:
        """The milder one of the last two views: a worker that connects again at once is no alarm."""
        if self.view.trouble is not None:
            known = isinstance(self.view.error, NotProvisioned)
            return Verdict(Level.FAIL, "Updates do not flow" if known else "No news from NATS", self.view.trouble)
        found = [self._judged(state) for state in (self._state, self._state_before)]
        return min(found, key=lambda each: _LEVELS.index(each.level))

    def _judged(self, state: Sequence[Finding]) -> Verdict:
        """The worst of the findings decides; nothing is good before all has been looked at."""
        worst = max((*self._broker, *state), key=lambda finding: _LEVELS.index(finding.level), default=None)
        if worst is not None and worst.level is Level.FAIL:
            return Verdict(Level.FAIL, "Updates do not flow", f"{worst.check}: {worst.found}")
        if worst is None or not self._broker or not state:
            return Verdict(Level.WARN, "Looking", "the first look at NATS has not ended yet")
        if worst.level is Level.WARN:
            return Verdict(Level.WARN, "Updates flow, have a look", f"{worst.check}: {worst.found}")
        return Verdict(Level.OK, "Updates flow", "no update waits for long, and the doctor finds nothing")
