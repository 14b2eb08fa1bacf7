"""The README against the code. Run this file as a script to write the configuration table anew."""

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from typer.main import get_command

from relay.cli import program
from relay.contract.settings import DeliverySettings, NatsSettings
from relay.contract.settings_table import settings_table
from relay.contract.subjects import STATUS_STREAM, Reason, api_stream_info, lane_of, stored_subject
from relay.contract.wire import Frame, decode
from relay.local.server import NatsServer
from relay.nats.connection import api_request, close, connect
from relay.topology.provision import provision, topology_of

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "subjects.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
BEGIN, END = "<!-- settings: begin -->\n", "<!-- settings: end -->\n"
HOSTS = {
    "127.0.0.1",
    "docs.nats.io",
    "facilitator.example",
    "faststream.ag2.ai",
    "github.com",
    "host",
    "keepachangelog.com",
    "opentelemetry.io",
    "semver.org",
}


def settings_markdown() -> str:
    """The configuration table, as it must stand in the README."""
    rows = [("variable", "default", "allowed", "what for"), ("---",) * 4]
    rows += [(f"`{row.variable}`", code(row.default), row.allowed, row.description) for row in settings_table()]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def blocks(language: str) -> list[str]:
    """The contents of the README's fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands() -> dict[str, set[str]]:
    """Every command of the `relay` program with its long options."""
    found: dict[str, Any] = get_command(program()).commands
    return {
        name: {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        for name, command in found.items()
    }


def table_keys(heading: str) -> list[str]:
    """The code in the first column of the README's table whose first heading cell is `heading`."""
    lines = iter(README.read_text().splitlines())
    for line in lines:
        if line.startswith(f"| {heading} |"):
            break
    rows = [line for line in iter(lambda: next(lines, ""), "") if not line.startswith("| ---")]
    return [re.findall(r"`([^`{]+)", row)[0] for row in rows]


def test_configuration_table():
    """The configuration table says exactly what settings.py says."""
    written = README.read_text().split(BEGIN)[1].split(END)[0]
    assert settings_markdown() == written, f"write it anew with: python {Path(__file__).relative_to(ROOT)}"


def test_commands_exist():
    """Each `relay <command>` and each of its options in the README exists, and none is left out."""
    used: dict[str, set[str]] = {}
    for span in re.findall(r"`(relay [^`\n]+)`", README.read_text()) + re.findall(
        r"^\$ (?:\w+=\S+ )*(relay .+)$", README.read_text(), flags=re.MULTILINE
    ):
        words = span.split()
        used.setdefault(words[1], set()).update(word for word in words if word.startswith("--"))
    assert commands().keys() == used.keys()
    assert {} == {name: options - commands()[name] for name, options in used.items() if options - commands()[name]}


def test_options_are_described():
    """Every option of every command is named in the README."""
    options = {option for options in commands().values() for option in options}
    assert [] == sorted(option for option in options if option not in README.read_text())


def test_make_targets():
    """The README names every target of the Makefile, and no other."""
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    used = re.findall(r"(?:`|^\$ )make ([a-z-]+)", README.read_text(), flags=re.MULTILINE)
    assert sorted(targets) == sorted(set(used))


def test_reasons():
    """The table of dead letters has each reason once, in the order of the contract."""
    assert list(Reason) == table_keys("`Relay-Reason`")


def test_examples_are_fit_to_be_sent():
    """The JSON examples, an update and one in its envelope, are what the relay would send without any repair."""
    documents = [json.loads(body) for body in blocks("json")]
    assert [False, True] == ["payload" in document for document in documents]
    for document in documents:
        frame = decode(json.dumps(document).encode(), document.get("payload", document)["uuid"])
        assert isinstance(frame, Frame)
        assert () == frame.repairs


async def test_the_producer_example_works():
    """The Python example, run as it stands but for the address, stores updates that the relay can send."""
    (snippet,) = blocks("python")
    async with NatsServer() as server:
        client = await connect(NatsSettings(urls=(server.url,)), name="test")
        try:
            await provision(client, topology_of(DeliverySettings()))
            script = snippet.replace("nats://127.0.0.1:4222", server.url)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
            output, _ = await process.communicate()
            info = await api_request(client, api_stream_info(STATUS_STREAM), {"subjects_filter": ">"})
        finally:
            await close(client)
    (job,) = re.findall(r'job = "([^"]+)"', snippet)
    assert (0, "JOB_STATUS 1\nJOB_STATUS 2\n") == (process.returncode, output.decode())
    assert {stored_subject(lane_of(job, 4), job): 2} == info["state"]["subjects"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Every relative link of a page names a file or folder of the repository."""
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    missing = [target for target in targets if not urlsplit(target).scheme and not (page.parent / target).exists()]
    assert [] == missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_only_known_hosts(page):
    """A page names no host but the few that a reader needs, so neither registries nor somebody's own machines."""
    hosts = {urlsplit(url).hostname for url in re.findall(r"\w+://[\w.:/-]+", page.read_text())} - {None}
    assert set() == hosts - HOSTS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_machine_paths(page):
    """A page names no absolute path of the machine that it was written on."""
    endpoints = {"/livez", "/readyz", "/metrics", "/ws/v0/"}
    paths = re.findall(r"(?<![\w.~>/:*-])/[a-z][\w./-]*", page.read_text())
    assert [] == [path for path in paths if path not in endpoints]


def main() -> None:
    before, rest = README.read_text().split(BEGIN)
    README.write_text(before + BEGIN + settings_markdown() + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
