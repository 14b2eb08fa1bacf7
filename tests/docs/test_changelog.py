import datetime as dt
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def releases() -> list[tuple[str, str]]:
    """Name and date of each release, as the headings have them, the newest first."""
    headings = re.findall(r"^## (.*)$", CHANGELOG, flags=re.MULTILINE)
    return [re.fullmatch(r"\[(.+?)\](?: - (.+))?", heading).groups("") for heading in headings]


def test_unreleased_comes_first():
    """There is always a place for the next change: the first section is Unreleased, and it has no date."""
    assert ("Unreleased", "") == releases()[0]


def test_releases_go_back_in_time():
    """Every other section is a version with its date, the newest first."""
    versions = [tuple(map(int, name.split("."))) for name, _ in releases()[1:]]
    dates = [dt.date.fromisoformat(date) for _, date in releases()[1:]]
    assert (sorted(versions, reverse=True), sorted(dates, reverse=True)) == (versions, dates)


def test_kinds_of_changes():
    """Changes are under the headings of Keep a Changelog, and none of those is empty."""
    sections = re.findall(r"^### (.*)\n\n((?:- .+\n)*)", CHANGELOG, flags=re.MULTILINE)
    headings = re.findall(r"^### (.*)$", CHANGELOG, flags=re.MULTILINE)
    assert headings == [heading for heading, changes in sections if changes]
    assert set() == set(headings) - KINDS
