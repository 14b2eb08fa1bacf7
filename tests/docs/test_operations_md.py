"""docs/operations.md against the code and the benchmarks. Run as a script, this copies the benchmarks' table anew."""

import re
from pathlib import Path
from typing import Any

import pytest
from promql import exposed
from typer.main import get_command

from relay.cli import program
from relay.contract import subjects
from relay.contract.settings_table import settings_table

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs/operations.md"
TEXT = DOCUMENT.read_text()
BENCHMARKS = (ROOT / "docs/benchmarks.md").read_text()
BEGIN, END = "<!-- durability: begin -->\n", "<!-- durability: end -->\n"
SOURCE = "\n".join(path.read_text() for path in sorted((ROOT / "relay").rglob("*.py")))
QUOTED = [
    "every stored update is settled",
    "nobody drives",
    "not provisioned (",
    "and this relay goes by",
    "updates wait for relays that know them",
    "the lanes cannot be shared out",
    "the dead letters cannot be reached; the update is kept",
    "dropped without a close frame",
    "refused, nothing was changed:",
    "lane given up",
    "lane taken",
    "is one too many",
    "is away or behind",
]
"""What the page says that the relay says; `f"lane {how}"` is the one that is put together of two."""


def durability_table() -> str:
    """The benchmarks' table of what durability costs."""
    (table,) = re.findall(r"^\| stored on \|.*\n(?:\|.*\n)+", BENCHMARKS, flags=re.MULTILINE)
    return table


def medians(heading: str, row: str) -> list[float]:
    """The numbers of the benchmarks' table that begins with `heading`, from the row that begins with `row`."""
    (rows,) = re.findall(rf"^\| {re.escape(heading)} \|.*\n((?:\|.*\n)+)", BENCHMARKS, flags=re.MULTILINE)
    (cells,) = re.findall(rf"^\| {re.escape(row)}(?: \(.*?\))? \|.*", rows, flags=re.MULTILINE)
    return [float(number.replace(",", "")) for number in re.findall(r"\| ([\d.,]+)", cells)]


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands() -> dict[str, set[str]]:
    """Every command of the `relay` program, those of `relay dlq` with theirs, and its long options."""
    found: dict[str, Any] = dict(get_command(program()).commands)
    found |= {f"dlq {name}": command for name, command in found.pop("dlq").commands.items()}
    return {
        name: {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        for name, command in found.items()
    }


def test_settings_exist():
    """Every setting that the page names is one."""
    settings = {row.variable for row in settings_table()}
    assert set() == set(re.findall(r"\bRELAY_[A-Z_]+\b", TEXT)) - settings - {subjects.LEASE_BUCKET}


def test_commands_exist():
    """Every `relay` command on the page exists, with the options that it is given there."""
    spans = re.findall(r"`(?:RELAY_\w+=\S+ )*relay ([a-z][^`]*)`", TEXT)
    spans += re.findall(r"^\$ (?:RELAY_\w+=\S+ )*relay (.+)$", TEXT, flags=re.MULTILINE)
    assert spans
    for span in spans:
        words = span.split()
        name = " ".join(words[: 2 if words[0] == "dlq" else 1])
        assert name in commands()
        assert set() == {word for word in words if word.startswith("--")} - commands()[name]


def test_metrics_exist():
    """Every metric of the relay that the page names is exposed."""
    assert set() == set(re.findall(r"`(relay_\w+)", TEXT)) - exposed().keys()


def test_streams_exist():
    """Every stream and consumer that the page names is one of the relay's."""
    streams = {subjects.STATUS_STREAM, subjects.DLQ_STREAM, subjects.ADVISORY_STREAM, subjects.REQUEST_STREAM}
    assert streams == set(re.findall(r"\bJOB_[A-Z]+\b", TEXT))
    consumers = set(re.findall(r"\brelay-lane-\d+\b", TEXT))
    assert consumers
    assert consumers <= {subjects.lane_consumer(lane) for lane in range(8)}


@pytest.mark.parametrize("words", QUOTED)
def test_the_relay_says_so(words):
    """What the page quotes of logs, probes and commands is what the code says."""
    assert words in TEXT
    assert words in SOURCE or words.removeprefix("lane ") in SOURCE


def test_links_lead_to_headings():
    """Every link with an anchor leads to a heading, on this page or another."""
    links = re.findall(r"\]\(([^)#]*)#([^)]+)\)", TEXT)
    assert links
    pages = {target: DOCUMENT.parent / target if target else DOCUMENT for target, _ in links}
    assert [] == [(target, anchor) for target, anchor in links if anchor not in slugs(pages[target])]


def test_durability_table():
    """The price of durability is the benchmarks' own table."""
    written = TEXT.split(BEGIN)[1].split(END)[0]
    assert durability_table() == written, f"copy it anew with: python {Path(__file__).relative_to(ROOT)}"


def test_sizing_figures():
    """The figures that sizing goes by are the benchmarks', rounded."""
    throughput, _, cpu_us, *_ = medians("system", "relay")
    _, _, _, resident_mib, *_ = medians("jobs", "1,000,000")
    _, recovery_s = medians("backlog", "100,000")
    assert f"| {round(throughput, -2):,.0f} |" in TEXT
    assert f"| {cpu_us:.0f} µs |" in TEXT
    assert f"| {resident_mib:.0f} MiB with ten jobs and with a million |" in TEXT
    assert f"| {recovery_s:g} s to catch up |" in TEXT


def main() -> None:
    before, rest = TEXT.split(BEGIN)
    DOCUMENT.write_text(before + BEGIN + durability_table() + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
