"""docs/dead-letters.md, compared with the code: its session is run, and it has a section for each reason."""

import asyncio
import os
import re
import sys
from pathlib import Path

from pages import ROOT, between
from relay_kit import Scene

from relay.contract.subjects import DLQ_STREAM, Reason
from relay.dead_letters.runbook import ADVICE, PAGE
from relay.local.facilitator import FacilitatorSimulator

TEXT = (ROOT / PAGE).read_text()
SESSION = [line[2:] for line in between("transcript", TEXT).splitlines() if line.startswith(("$ ", "# "))]


async def type_in(command: str, folder: Path, url: str) -> None:
    """Run a command of the session; it asks for nothing, because there is no terminal."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "PYTHONPATH": str(ROOT), "RELAY_NATS_URL": url}
    command = command.replace("dlq purge", "dlq purge --yes")
    process = await asyncio.create_subprocess_shell(command, cwd=folder, env=environment)
    assert 0 == await process.wait(), command


async def test_session(nats_server, tmp_path):
    """The commands of the session do what the page shows: both updates are relayed, and no dead letter is left."""
    async with FacilitatorSimulator() as facilitator, Scene(nats_server, facilitator) as scene, scene.relay():
        facilitator.unknown_jobs.update(re.findall(r"^relay publish (\S+)", "\n".join(SESSION), flags=re.MULTILINE))
        for line in SESSION:
            if line.startswith("The job is made"):
                facilitator.unknown_jobs.clear()
            elif not line.startswith("The Facilitator has stored"):
                await type_in(line, tmp_path, nats_server.url)
                await scene.dust_settled()
        shown = re.findall(r"^(\S{36}) (\w+)$", between("transcript", TEXT), flags=re.MULTILINE)
        assert sorted(shown) == sorted((row.uuid, row.status) for row in facilitator.rows)
        assert 0 == (await scene.nc.jetstream().stream_info(DLQ_STREAM)).state.messages


def test_reasons():
    """Each reason has one section, in the contract's order, with the meaning and the advice that `show` prints."""
    section = re.compile(r"^### (\w+)\n\nMeaning: (.+?)\.\n.+?^\*\*What to do\.\*\* (.+?)\.$", re.MULTILINE | re.DOTALL)
    advice = [(reason, ADVICE[reason].meaning, ADVICE[reason].remedy) for reason in Reason]
    assert [(reason, meaning, remedy[0].upper() + remedy[1:]) for reason, meaning, remedy in advice] == section.findall(
        TEXT.split("## The reasons\n")[1]
    )
