"""docs/dead-letters.md against the code. To write its transcript anew:

PYTHONPATH=tests/kit python tests/docs/test_dead_letters_md.py
"""

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import struct
import sys
import tempfile
import termios
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from relay_kit import Scene
from typer.main import get_command

from relay.cli import program
from relay.contract.subjects import DLQ_STREAM, Reason
from relay.dead_letters.runbook import ADVICE, PAGE
from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / PAGE
BEGIN, END = "<!-- transcript: begin -->\n", "<!-- transcript: end -->\n"
ASPECTS = ["Looks like", "Likely causes", "How to check", "What to do"]
EARLY, MISSPELT = "123e4567-e89b-42d3-a456-426614174000", "9b2f8c1e-5d3a-4e7b-8f60-1c2d3e4f5a6b"
COLUMNS = 150
JOB_IS_MADE = "# The job is made in the Facilitator, and the producer learns to say `completed`."
STORED = "# The Facilitator has stored:"
SCRIPT = [
    f"relay publish {EARLY} accepted",
    f'echo \'{{"uuid":"{MISSPELT}","status":"finished"}}\' | relay publish --raw {MISSPELT}',
    "relay dlq list",
    "relay dlq show {misspelt}",
    JOB_IS_MADE,
    "relay dlq replay --reason job_not_found",
    "relay dlq purge {misspelt} --export mend.jsonl",
    "sed -i 's/finished/completed/' mend.jsonl",
    "relay dlq replay --from mend.jsonl",
    "relay dlq list",
    STORED,
]


async def type_in(command: str, folder: str, url: str, typed: bytes) -> str:
    """Run a command on a terminal; returns what the screen shows."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", command),
        cwd=folder,
        env={"PATH": path, "PYTHONPATH": str(ROOT), "TERM": "dumb", "NO_COLOR": "1", "RELAY_NATS_URL": url},
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
    )
    os.close(theirs)
    os.write(ours, typed)
    screen = await asyncio.to_thread(read_to_the_end, ours)
    os.close(ours)
    await process.wait()
    return screen.decode().replace("\r\n", "\n")


def read_to_the_end(terminal: int) -> bytes:
    screen = b""
    with contextlib.suppress(OSError):  # that is how a terminal ends
        while chunk := os.read(terminal, 65536):
            screen += chunk
    return screen


async def transcript() -> str:
    """Every command of the script as it is typed, and the real output of each."""
    with tempfile.TemporaryDirectory() as folder:
        async with (
            NatsServer() as server,
            FacilitatorSimulator() as facilitator,
            Scene(server, facilitator) as scene,
            scene.relay(),
        ):
            facilitator.unknown_jobs.add(EARLY)
            return "".join([await step(scene, folder, line) for line in SCRIPT])


async def step(scene: Scene, folder: str, line: str) -> str:
    if line == JOB_IS_MADE:
        scene.facilitator.unknown_jobs.clear()
        return line + "\n"
    if line == STORED:
        await scene.facilitator.wait_for(lambda facilitator: len(facilitator.rows) == 2, 10)
        return "\n".join([line, *(f"{row.uuid} {row.status}" for row in scene.facilitator.rows)]) + "\n"
    letters = await scene.nc.jetstream().stream_info(DLQ_STREAM)
    command = line.format(misspelt=letters.state.last_seq) if "{misspelt}" in line else line
    screen = await type_in(command, folder, scene.server.url, b"y\n" if "purge" in command else b"")
    await scene.dust_settled()
    if "purge" in command:
        # The terminal echoes what is typed ahead of the question.
        screen = screen.removeprefix("y\n").replace("[y/N]: ", "[y/N]: y\n")
    return f"$ {command}\n{screen}"


def written() -> str:
    return DOCUMENT.read_text().partition(f"{BEGIN}```console\n")[2].partition(f"```\n{END}")[0]


def timeless(text: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\d[T ][\d:.+]+|\(\d+ s ago\)", "<time>", text)


async def test_transcript():
    """The transcript is what the commands print today, times apart."""
    assert timeless(await transcript()) == timeless(written()), "the docstring of this file says how to write it anew"


def test_every_reason_has_its_section():
    """Each reason has one section, in the order of the contract, and there is no section for anything else."""
    sections = DOCUMENT.read_text().split("## The reasons\n")[1]
    assert list(Reason) == re.findall(r"^### (.+)$", sections, flags=re.MULTILINE)


@pytest.mark.parametrize("reason", Reason)
def test_section_of_a_reason(reason):
    """A section says what it looks like, why, how to check and what to do, with the very words that `show` prints."""
    section = re.split(r"\n##+ ", DOCUMENT.read_text().split(f"\n### {reason}\n")[1])[0]
    aspects = re.findall(r"^\*\*(.+?)\.\*\* \S", section, flags=re.MULTILINE)
    advice = ADVICE[reason]
    assert ASPECTS == aspects
    assert f"\nMeaning: {advice.meaning}.\n" in section
    assert f"\n**What to do.** {advice.remedy[0].upper()}{advice.remedy[1:]}.\n" in section


def test_commands_and_options():
    """Every `relay dlq` command and each of its options is described, and none that does not exist."""
    group: Any = get_command(program()).commands["dlq"]
    options = {
        option
        for command in group.commands.values()
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--")
    }
    text = DOCUMENT.read_text()
    named = set(re.findall(r"relay dlq (\w+)", text))
    assert group.commands.keys() == named
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) - {"--raw"}
    assert options == used


def test_links_lead_somewhere():
    """Every relative link of the page names a file of the repository."""
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", DOCUMENT.read_text())
    missing = [target for target in targets if urlsplit(target).scheme or not (DOCUMENT.parent / target).exists()]
    assert [] == missing


def main() -> None:
    before, rest = DOCUMENT.read_text().split(BEGIN)
    shown = asyncio.run(transcript())
    DOCUMENT.write_text(f"{before}{BEGIN}```console\n{shown}```\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
