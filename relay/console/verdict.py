"""Is the promise being kept? The answer in one word, one shape and one sentence. Without I/O."""

from collections.abc import Sequence
from dataclasses import dataclass

from relay.doctor.findings import Finding, Level


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the first line of the page says."""

    level: Level
    headline: str
    reason: str


def verdict(findings: Sequence[Finding], trouble: str | None) -> Verdict:
    """The worst of the findings decides; without news of NATS nothing else counts."""
    if trouble is not None:
        return Verdict(Level.FAIL, "No news from NATS", trouble)
    if not findings:
        return Verdict(Level.WARN, "Looking", "the first look at NATS has not ended yet")
    worst = max(findings, key=lambda finding: list(Level).index(finding.level))
    if worst.level is Level.OK:
        return Verdict(Level.OK, "Updates flow", "every update is acknowledged or has its dead letter")
    if worst.level is Level.WARN:
        return Verdict(Level.WARN, "Updates flow, have a look", f"{worst.check}: {worst.found}")
    return Verdict(Level.FAIL, "Updates do not flow", f"{worst.check}: {worst.found}")
