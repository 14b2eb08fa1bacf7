"""docs/debugging.md against the commands that it is about."""

import re
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from relay.cli import program
from relay.cli.doctor import CONFIGURATION
from relay.doctor.checks import CHECKS
from relay.doctor.facilitator_checks import HOTKEY
from relay.doctor.state_checks import CLOCK_S, FULL, NEARLY_FULL, OLD_S, PAGE, TOO_OLD_S

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / PAGE).read_text()
ALL_CHECKS = [CONFIGURATION, HOTKEY, *CHECKS]


def table() -> dict[str, list[str]]:
    """The rows of the table of checks, by the name of the check."""
    rows = TEXT.split("| check | looks at | warn | fail |\n")[1].split("\n\n")[0].splitlines()[1:]
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
    return {name.strip("`"): rest for name, *rest in cells}


def test_every_check_has_its_row():
    """The table has each check of the doctor once, in the doctor's order."""
    assert ALL_CHECKS == list(table())


def test_thresholds():
    """The table says from when on something is a warning, and from when on a failure."""
    assert ["the oldest is 60 seconds old", "10 minutes"] == table()["backlog"][1:]
    assert (60, 600) == (OLD_S, TOO_OLD_S)
    assert [[f"{NEARLY_FULL:.0%}".replace("%", " %"), f"{FULL:.0%}".replace("%", " %")]] * 2 == [
        table()[name][1:] for name in ("storage", "account")
    ]
    assert f"{CLOCK_S:g} second apart" == table()["clock"][1]


def test_the_doctor_shown():
    """The output that is shown has the lines that the doctor prints, in its order."""
    shown = TEXT.split("$ relay doctor\n")[1].split("```")[0]
    lines = re.findall(r"^(?:ok  |warn|fail)  (.{13}) ", shown, flags=re.MULTILINE)
    assert ALL_CHECKS == [line.strip() for line in lines]


@pytest.mark.parametrize("name", ["doctor", "top", "query"])
def test_options(name):
    """Each option of the command is described."""
    command: Any = get_command(program()).commands[name]
    options = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
    assert [] == [option for option in options if f"`{option}`" not in TEXT]
    assert f"`relay {name}" in TEXT
