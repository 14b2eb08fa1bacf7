"""The relay as a process whose output is read, and requests to its HTTP port."""

import asyncio
import contextlib
import http.client
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

TIMEOUT_S = 30
SERVER_PARTS = (
    *("bittensor_wallet", "prometheus_client", "h11", "dotenv", "rich", "structlog", "typer"),
    *("uvloop", "websockets", "opentelemetry"),
)
"""Packages that programs which publish or ask must not load."""


def in_a_program(script: str) -> list[str]:
    """The output lines of a job runner's program, on both streams."""
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    return done.stdout.splitlines()


class RelayProcess:
    """A process, and the lines that it and its children have written so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def says(self, text: str, times: int = 1) -> list[str]:
        """Wait for the next `times` lines that contain `text`, and return them."""
        found: list[str] = []
        async with asyncio.timeout(TIMEOUT_S):
            while len(found) < times:
                assert await self._read(), f"it ended without saying {text!r}: {self.lines}"
                found += [line for line in self.lines[-1:] if text in line]
        return found

    async def logs(self, text: str, times: int = 1) -> list[dict[str, Any]]:
        """The same, as the fields of lines in JSON."""
        return [json.loads(line) for line in await self.says(text, times)]

    async def ended(self) -> int:
        """Wait until it and every child have ended, and return its exit status. Children keep its output open."""
        async with asyncio.timeout(TIMEOUT_S):
            while await self._read():
                pass
            return await self.process.wait()

    def said(self, text: str = "") -> list[str]:
        """The lines so far that contain `text`."""
        return [line for line in self.lines if text in line]

    async def _read(self) -> bool:
        if line := await self.process.stdout.readline():
            self.lines.append(line.decode())
        return bool(line)


@contextlib.asynccontextmanager
async def started(
    *arguments: str, settings: Mapping[str, str], folder: Path | None = None, below: tuple[str, ...] = ()
) -> AsyncIterator[RelayProcess]:
    """`python ...` with these RELAY_ variables and no others; killed at the end if it still runs.

    `below`: a command that is to start it, such as `unshare`.
    """
    others = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    process = await asyncio.create_subprocess_exec(
        *(*below, sys.executable, *arguments),
        cwd=folder,
        env={**others, "NO_COLOR": "1", **settings},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    relay = RelayProcess(process)
    try:
        yield relay
    finally:
        if process.returncode is None:
            process.kill()
        await relay.ended()


class Response(NamedTuple):
    status: int
    content_type: str
    body: str


async def ask(port: int, path: str, method: str = "GET") -> Response:
    """Ask 127.0.0.1 on this port, and return the answer, whatever its status."""

    def request() -> Response:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)) as connection:
            connection.request(method, path)
            answer = connection.getresponse()
            return Response(answer.status, answer.headers["content-type"], answer.read().decode())

    return await asyncio.to_thread(request)
