"""What a check says."""

import enum
from dataclasses import dataclass


class Verdict(enum.StrEnum):
    """How grave a finding is: updates flow; look at it; something stands still or will."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor. What is ok or was not checked has no remedy.

    Both texts are sentences without their full stop.
    """

    check: str
    verdict: Verdict
    found: str
    remedy: str = ""


def ok(check: str, found: str) -> Finding:
    return Finding(check, Verdict.OK, found)


def warn(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, Verdict.WARN, found, remedy)


def fail(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, Verdict.FAIL, found, remedy)


def unchecked(check: str, why: str) -> Finding:
    """A check that could not be made, which is no good news. What to do is to mend the reason."""
    return warn(check, f"not checked, because {why}", "")
