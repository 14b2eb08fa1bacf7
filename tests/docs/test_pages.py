"""What all pages must have right: links, commands, settings, metrics, streams, files, tests, examples."""

import ast
import asyncio
import json
import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from pages import PAGES, ROOT, anchors, blocks, every_page, relay_commands, typed_commands
from promql import exposed

from relay.contract import subjects
from relay.contract.settings_table import settings_table
from relay.contract.subjects import STATUS_STREAM, api_stream_info, lane_of, stored_subject
from relay.contract.wire import Frame, decode
from relay.nats.jetstream import api_request

MAKEFILE = (ROOT / "Makefile").read_text()
SETTINGS = {row.variable for row in settings_table()}
STREAMS = {value for name, value in vars(subjects).items() if name.endswith(("_STREAM", "_BUCKET"))}
HOSTS = {
    "127.0.0.1",
    "docs.nats.io",
    "facilitator.example",
    "faststream.ag2.ai",
    "git.example",
    "github.com",
    "host",
    "keepachangelog.com",
    "kubernetes.default.svc",
    "opentelemetry.io",
    "prometheus-operated.monitoring",
    "semver.org",
}
OTHERS_OPTIONS = {
    *("--build-arg", "--config", "--from-literal", "--inbox-prefix", "--jetstream", "--max-age", "--preload"),
}
"""Options of nats, kubectl, podman and gunicorn that the pages mention without a command."""
ENDPOINTS = {"/livez", "/readyz", "/metrics", "/healthz", "/ws/v0/", "/relay", "/jobs", "/dead-letters"}


@every_page
def test_links(page):
    """Every relative link leads to a file or folder of the repository, and its anchor to a heading there."""
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if urlsplit(target).scheme:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@every_page
def test_files(page):
    """Every file of the relay, of its tests and of deploy/ that a page names exists."""
    named = set(re.findall(r"(?<![\w/.-])((?:relay|tests|deploy|bench|docs)/[\w./-]*\w)", page.read_text()))
    assert set() == {path for path in named if not (ROOT / path).exists()}


@every_page
def test_tests(page):
    """Every test that a page names (`file::test`) is in that file."""
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+(?:::\w+)?)`", page.read_text()):
        assert name in functions_in(ROOT / path), f"{path}::{name}"


def functions_in(path: Path) -> set[str]:
    """The functions of a file by name; methods with the name of their class first."""
    tree = ast.parse(path.read_text())
    owners = [("", tree), *((f"{each.name}::", each) for each in tree.body if isinstance(each, ast.ClassDef))]
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    return {prefix + node.name for prefix, owner in owners for node in owner.body if isinstance(node, functions)}


@every_page
def test_commands(page):
    """Every `relay` command on a page exists, with the options that the page shows."""
    prefix = r"(?:[A-Z_]+=\S+ )*relay "
    texts = re.findall(rf"`{prefix}([a-z]+(?: [^`]*)?)`", page.read_text())
    texts += [text for line in typed_commands(page) for text in re.findall(rf"(?:^|\| ){prefix}([^|]*)", line)]
    for text in texts:
        words = text.split()
        options = relay_commands().get(" ".join(words[: 2 if words[0] == "dlq" else 1]))
        assert options is not None or words == ["dlq"], text
        assert set() == {word for word in words if word.startswith("--")} - (options or set()), text
    by_themselves = set(re.findall(r"`(--[a-z-]+)", page.read_text()))
    assert set() == by_themselves - set().union(*relay_commands().values()) - OTHERS_OPTIONS


@every_page
def test_make_targets(page):
    """Every target of the Makefile that a page names exists."""
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE))
    assert set() == set(re.findall(r"(?:`|^\$ )make ([a-z-]+)", page.read_text(), flags=re.MULTILINE)) - targets


@every_page
def test_settings(page):
    """Every RELAY_ name on a page is a setting or a name on NATS."""
    assert set() == set(re.findall(r"(?<![\w.])RELAY_[A-Z]+(?:_[A-Z]+)*\b(?!_)", page.read_text())) - SETTINGS - STREAMS


@every_page
def test_metrics(page):
    """Every metric of the relay on a page is exposed."""
    names = exposed().keys() | {name.removesuffix("_bucket") for name in exposed()}
    names |= {"relay_kit", "relay_lag_to_scale_by"}  # a folder, and the name of a rule's result for autoscalers
    assert set() == set(re.findall(r"\b(relay_[a-z_]+)\b", page.read_text())) - names


@every_page
def test_streams(page):
    """Every stream on a page is one of the relay's."""
    assert set() == set(re.findall(r"\bJOB_[A-Z]+\b", page.read_text())) - STREAMS


@every_page
def test_no_strange_places(page):
    """A page names only hosts that a reader needs, and no absolute path of the machine on which it was written."""
    text = page.read_text()
    assert set() == {urlsplit(url).hostname for url in re.findall(r"\w+://[\w.:/-]+", text)} - {None} - HOSTS
    assert set() == set(re.findall(r"(?<![\w.~>/:*-])/[a-z][\w./-]*", text)) - ENDPOINTS


@every_page
def test_data(page):
    """The JSON and YAML blocks of a page can be parsed; an update in them needs no repair by the relay."""
    for text in blocks(page, "yaml"):
        yaml.safe_load(text)
    for document in map(json.loads, blocks(page, "json")):
        if "payload" in document or document.get("message_type") == "V0JobStatusUpdate":
            frame = decode(json.dumps(document).encode(), document.get("payload", document)["uuid"])
            assert isinstance(frame, Frame)
            assert () == frame.repairs


def test_the_index():
    """docs/README.md leads to every page."""
    index = ROOT / "docs/README.md"
    linked = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)#]+)", index.read_text())}
    assert set() == set(PAGES) - linked - {index}


@pytest.mark.parametrize("command", relay_commands())
def test_options(command):
    """Each option of a command is on the page about the command."""
    page = {"dlq": "dead-letters", "doctor": "debugging", "top": "debugging", "query": "debugging"}
    text = (ROOT / "docs" / f"{page.get(command.split()[0], 'commands')}.md").read_text()
    assert f"`relay {command}" in text
    assert set() == {option for option in relay_commands()[command] if option not in text}


async def test_the_producer_example(nats_server, provisioned):
    """The Python example of the first page, run with only the address changed, stores updates of its job."""
    (example,) = blocks(ROOT / "README.md", "python")
    script = example.replace("nats://127.0.0.1:4222", nats_server.url)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
    assert 0 == await process.wait()
    info = await api_request(provisioned, api_stream_info(STATUS_STREAM), {"subjects_filter": ">"})
    (job,) = re.findall(r'job = "([^"]+)"', example)
    assert {stored_subject(lane_of(job, 4), job): 2} == info["state"]["subjects"]
