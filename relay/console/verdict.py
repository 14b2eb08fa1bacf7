"""Is the promise being kept? The answer in one word, one shape and one sentence. Without I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from relay.contract.errors import BrokerUnavailable, NotProvisioned, RelayError
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
        ours: the settings here, as `check_state` compares them with those of the workers.
    """

    def __init__(self, view: View, ours: Mapping[str, float]) -> None:
        self.view = view
        self._ours = ours
        self._broker: Sequence[Finding] = ()
        self._state: Sequence[Finding] = ()
        self._state_before: Sequence[Finding] = ()

    def take(self, view: View, *, connected: bool) -> None:
        """A new view. What was found before a trouble says nothing of the time after it."""
        self.view = view
        if view.trouble is not None or view.snapshot is None:
            self._state = ()
        else:
            now = check_state(view.snapshot, self._ours)
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
        """That of the latest view. If only one of the last two is broken, it is neither an alarm nor green.

        A worker may just be connecting again; or something breaks again and again.
        """
        if self.view.trouble is not None:
            return Verdict(Level.FAIL, _headline(self.view.error), self.view.trouble)
        now, before = self._judged(self._state), self._judged(self._state_before)
        if (now.level is Level.FAIL) == (before.level is Level.FAIL):
            return now
        return Verdict(Level.WARN, "Updates may not flow", (now if now.level is Level.FAIL else before).reason)

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


def _headline(error: RelayError | None) -> str:
    """What a view without news means."""
    if isinstance(error, NotProvisioned):
        return "Updates do not flow"
    return "No news from NATS" if isinstance(error, BrokerUnavailable) else "The state is not known"
