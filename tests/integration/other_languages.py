"""The producers of docs/other-languages.md, built and run. Each needs its language on PATH, and its package index."""

import asyncio
import os
import re
import shutil
import subprocess
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from downloads import download
from relay_kit import Scene, new_job

from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "other-languages.md").read_text()
TIMEOUT_S = 60
NODE_PACKAGES = ("@nats-io/transport-node@3", "@nats-io/jetstream@3")


def example(language: str) -> str:
    """The program of the page."""
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return text


def in_node(folder: Path) -> list[str]:
    """The command of the Node program."""
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "publish.js").write_text(example("js"))
    download(folder, "npm", "install", "--no-audit", "--no-fund", "--loglevel=error", *NODE_PACKAGES)
    return ["node", "publish.js"]


def in_go(folder: Path) -> list[str]:
    """The command of the Go program, built with the versions of bench/go_relay."""
    for name in ("go.mod", "go.sum"):
        shutil.copy(ROOT / "bench" / "go_relay" / name, folder)
    (folder / "main.go").write_text(example("go"))
    download(folder, "go", "mod", "download")
    subprocess.run(["go", "build", "-mod=mod", "-o", "publish", "."], cwd=folder, check=True, timeout=500)
    return ["./publish"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("language", "program"), [("node", in_node), ("go", in_go)])
async def test_producer(language, program, tmp_path, nats_server: NatsServer):
    """It publishes again until the stream is there, then each status once and in order, also when it is run again."""
    if shutil.which(language) is None:
        pytest.skip(f"{language} is not on PATH: its producer was not run")
    command, job = await asyncio.to_thread(program, tmp_path), new_job()

    async def run() -> asyncio.subprocess.Process:
        options = {"cwd": tmp_path, "env": os.environ | {"NATS_URL": nats_server.url}}
        return await asyncio.create_subprocess_exec(*command, job.upper(), stdout=PIPE, stderr=PIPE, **options)

    async with FacilitatorSimulator() as facilitator, asyncio.timeout(TIMEOUT_S):
        first = await run()
        assert b"accepted is not confirmed" in await first.stderr.readline()
        async with Scene(nats_server, facilitator) as scene, scene.relay():
            out, _ = await first.communicate()
            again, _ = await (await run()).communicate()
            await scene.dust_settled()
            assert ["JOB_STATUS 1 false", "JOB_STATUS 2 false"] == out.decode().splitlines()
            assert ["JOB_STATUS 1 true", "JOB_STATUS 2 true"] == again.decode().splitlines()
    assert ["accepted", "completed"] == [row.status for row in facilitator.rows_of(job)]
