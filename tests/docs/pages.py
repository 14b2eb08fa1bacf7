"""The pages of the repository, and what they name: links, commands, settings, metrics, files."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from relay.cli import program

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in one of the languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


def typed_commands(page: Path) -> list[str]:
    """The commands that a page has its reader type: the lines after `$`, with continued lines joined."""
    text = "".join(blocks(page, "console")).replace("\\\n", " ")
    return re.findall(r"^\$ (.+)$", text, flags=re.MULTILINE)


def between(mark: str, text: str) -> str:
    """The text between the comments `<!-- mark: begin -->` and `<!-- mark: end -->`."""
    return text.partition(f"<!-- {mark}: begin -->\n")[2].partition(f"<!-- {mark}: end -->")[0]


def table_after(heading: str, text: str) -> list[list[str]]:
    """The rows of the table whose first line is `heading`, cell by cell."""
    lines = text.partition(f"{heading}\n")[2].partition("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@cache
def relay_commands() -> dict[str, set[str]]:
    """Every command of the `relay` program (subcommands with both words, such as `dlq list`) with its long options."""
    found: dict[str, Any] = dict(get_command(program()).commands)
    found |= {f"dlq {name}": command for name, command in found.pop("dlq").commands.items()}
    return {
        name: {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        for name, command in found.items()
    }
