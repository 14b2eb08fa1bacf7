"""`relay doctor`."""

import dataclasses
import json
import textwrap
from typing import Annotated, Final

import typer

from relay.cli.console import run
from relay.contract.environment import load_settings
from relay.contract.errors import ConfigurationError
from relay.contract.settings import Settings
from relay.contract.text import escape
from relay.doctor.examination import CHECKS, examine
from relay.doctor.facilitator import HOTKEY, check_hotkey
from relay.doctor.findings import Finding, Verdict, fail, ok, unchecked, warn
from relay.observability import logs

CONFIGURATION: Final = "configuration"
_COLORS: Final = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "red"}
_WIDTH: Final = 116
_INDENT: Final = " " * 20


def doctor(
    *, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")] = False
) -> None:
    """Check everything that the relay needs, from here and with these settings, and say what to do.

    Each line is ok, warn or fail. Exit 1 if any is fail. Nothing is changed anywhere. Takes 20 seconds at the worst,
    and 5 more if the hotkey file is encrypted.
    """
    logs.configure("error", "console")  # what is wrong is in the findings
    findings = _findings()
    if as_json:
        verdict = max((finding.verdict for finding in findings), key=list(Verdict).index)
        typer.echo(json.dumps({"verdict": verdict, "findings": list(map(dataclasses.asdict, findings))}))
    else:
        for finding in findings:
            _print(finding)
        counts = (f"{sum(finding.verdict is verdict for finding in findings)} {verdict}" for verdict in Verdict)
        typer.echo(", ".join(counts))
    if any(finding.verdict is Verdict.FAIL for finding in findings):
        raise typer.Exit(1)


def _findings() -> list[Finding]:
    try:
        settings = load_settings()
    except ConfigurationError as error:
        broken = fail(CONFIGURATION, str(error), "give it a value that is allowed")
        return [broken, *(unchecked(name, "the configuration cannot be read") for name in (HOTKEY, *CHECKS))]
    hotkey, authentication = check_hotkey(settings.facilitator)
    return [_configuration(settings), hotkey, *run(examine(settings, authentication))]


def _configuration(settings: Settings) -> Finding:
    try:
        settings.require_facilitator()
    except ConfigurationError as error:
        return warn(CONFIGURATION, f"readable, but `relay serve` would not start: {error}", "set it where relays run")
    return ok(CONFIGURATION, "readable, and all that `relay serve` needs")


def _print(finding: Finding) -> None:
    verdict = typer.style(f"{finding.verdict:4}", fg=_COLORS[finding.verdict])
    found, *more = textwrap.wrap(escape(finding.found), _WIDTH - len(_INDENT), break_on_hyphens=False) or [""]
    typer.echo(f"{verdict}  {finding.check:13} {found}")
    if finding.remedy:
        more += textwrap.wrap(f"-> {finding.remedy}", _WIDTH - len(_INDENT), break_on_hyphens=False)
    for line in more:
        typer.echo(_INDENT + line)
