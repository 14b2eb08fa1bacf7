"""`relay doctor`."""

import json
import sys
import textwrap
from collections.abc import Sequence
from typing import Annotated, Final

import typer

from relay.cli.common import run
from relay.contract.environment import load_settings
from relay.contract.errors import ConfigurationError
from relay.contract.settings import Settings
from relay.contract.text import escape, wants_color
from relay.doctor.checks import CHECKS, run_checks
from relay.doctor.facilitator_checks import HOTKEY, check_hotkey
from relay.doctor.findings import Finding, Level, fail, ok, unchecked, warn
from relay.observability import logs

CONFIGURATION: Final = "configuration"
_COLORS: Final = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}
_WIDTH: Final = 116
_INDENT: Final = " " * 20


def doctor(
    *, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")] = False
) -> None:
    """Check everything that the relay needs, from this machine and with these settings, and say what to do.

    Prints one line for each finding: ok, warn or fail. Changes nothing. Takes at most 20 seconds, and 5 more if the
    hotkey file is encrypted. Exit code 1 if any finding is fail.
    """
    logs.configure("error", "console")  # what is wrong is in the findings
    findings = _findings()
    worst = max((finding.level for finding in findings), key=list(Level).index)
    if as_json:
        typer.echo(json.dumps({"verdict": worst, "findings": list(map(_document, findings))}))
    else:
        for finding in findings:
            _print(finding)
        counts = (f"{sum(finding.level is level for finding in findings)} {level}" for level in Level)
        typer.echo(", ".join(counts))
    if worst is Level.FAIL:
        raise typer.Exit(1)


def _findings() -> list[Finding]:
    notices: list[str] = []
    try:
        settings = load_settings(notice=notices.append)
    except ConfigurationError as error:
        broken = fail(CONFIGURATION, str(error), "give it a value that is allowed")
        return [broken, *(unchecked(name, "the configuration cannot be read") for name in (HOTKEY, *CHECKS))]
    hotkey, authentication = check_hotkey(settings.facilitator)
    return [_check_configuration(settings, notices), hotkey, *run(run_checks(settings, authentication))]


def _check_configuration(settings: Settings, notices: Sequence[str]) -> Finding:
    try:
        settings.require_facilitator()
    except ConfigurationError as error:
        return warn(CONFIGURATION, f"readable, but `relay serve` would not start: {error}", "set it where relays run")
    if notices:
        return warn(CONFIGURATION, "readable, but " + "; ".join(notices), "write the values as they are meant")
    return ok(CONFIGURATION, "readable, and all that `relay serve` needs")


def _document(finding: Finding) -> dict[str, str]:
    return {
        "check": finding.check,
        "verdict": finding.level,
        "found": finding.found,
        "remedy": finding.remedy,
    }


def _print(finding: Finding) -> None:
    level = typer.style(f"{finding.level:4}", fg=_COLORS[finding.level])
    found, *more = textwrap.wrap(escape(finding.found), _WIDTH - len(_INDENT), break_on_hyphens=False) or [""]
    typer.echo(f"{level}  {finding.check:13} {found}", color=wants_color(sys.stdout))
    if finding.remedy:
        more += textwrap.wrap(f"-> {escape(finding.remedy)}", _WIDTH - len(_INDENT), break_on_hyphens=False)
    for line in more:
        typer.echo(_INDENT + line)
