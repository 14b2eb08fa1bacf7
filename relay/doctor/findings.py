"""The findings that the checks of the doctor report."""

import enum
from dataclasses import dataclass


class Level(enum.StrEnum):
    """How serious a finding is, from the least to the most."""

    OK = "ok"
    """Updates flow."""
    WARN = "warn"
    """Updates flow, but somebody should look at it. Or the check could not be made."""
    FAIL = "fail"
    """Updates do not flow, or soon will not."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's output. Both texts are sentences without a full stop."""

    check: str
    level: Level
    found: str
    remedy: str = ""
    """What to do; empty if all is well or the check could not be made."""


def ok(check: str, found: str) -> Finding:
    return Finding(check, Level.OK, found)


def warn(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, Level.WARN, found, remedy)


def fail(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, Level.FAIL, found, remedy)


def unchecked(check: str, why: str) -> Finding:
    """A check that could not be made, which is a warning. It has no remedy: `why` names what to fix."""
    return warn(check, f"not checked, because {why}", "")


def graded(check: str, value: float, thresholds: tuple[float, float], found: str, remedy: str) -> Finding:
    """A finding with a level by `value`: a warning from the first threshold on, a failure from the second."""
    warn_from, fail_from = thresholds
    if value < warn_from:
        return ok(check, found)
    return Finding(check, Level.FAIL if value >= fail_from else Level.WARN, found, remedy)
