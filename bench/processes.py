"""The processes of a benchmark: started from Python modules, controlled by lines, measured, and stopped by id."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Self

import psutil

from relay.service.children import die_with_parent

ROOT: Final = Path(__file__).parent.parent
_END_S: Final = 8.0
_MOST_ERROR_CHARS: Final = 300


class BenchError(Exception):
    """A measurement could not be taken. The message says what failed, in words for the table."""


class Child:
    """A process that prints lines of JSON and can be sent commands; use it as `async with`.

    Args:
        name: its name in errors.
        arguments: the arguments of Python.
        folder: its working directory, where its standard error is stored.
    """

    def __init__(self, name: str, arguments: Iterable[str], environment: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self._arguments = tuple(arguments)
        self._environment = {**os.environ, **environment, "PYTHONPATH": str(ROOT)}
        self.folder = folder
        self._errors = folder / f"{name}.log"
        self._process: asyncio.subprocess.Process | None = None
        self._draining: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def end_note(self) -> str | None:
        """How it ended, with the last line of its standard error; None while it runs."""
        status = self._running().returncode
        return None if status is None else f"{self.name} ended with exit status {status}{self._last_words}"

    async def __aenter__(self) -> Self:
        with self._errors.open("ab") as errors:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *self._arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env=self._environment,
                cwd=self.folder,
                preexec_fn=die_with_parent(),
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end()

    async def says(self, timeout_s: float) -> dict[str, Any]:
        """The next line of JSON that it prints. Raises BenchError if the process ends instead, or after `timeout_s`."""
        output = self._running().stdout
        assert output is not None
        try:
            async with asyncio.timeout(timeout_s):
                async for line in output:
                    if line.startswith(b"{"):  # libraries print other lines
                        return json.loads(line)
                await self._running().wait()
                raise BenchError(self.end_note or "")
        except TimeoutError:
            raise BenchError(f"{self.name} was silent for {timeout_s:g} s{self._last_words}") from None

    async def ask(self, command: str, timeout_s: float = 10.0) -> dict[str, Any]:
        """Send a command and return the answer. Raises BenchError as `says` does."""
        commands = self._running().stdin
        assert commands is not None
        with contextlib.suppress(ConnectionError):  # the process has ended: `says` reports how
            commands.write(f"{command}\n".encode())
            await commands.drain()
        return await self.says(timeout_s)

    def ignore(self) -> None:
        """Read and discard what it prints from now on: a full pipe would block it."""
        self._draining = asyncio.create_task(self._drain())

    async def end(self) -> None:
        """Send SIGTERM, and later SIGKILL to it and to the processes that it started if any are left."""
        process, self._process = self._process, None
        if process is None:
            return
        family = _family(process.pid)
        # Not process.terminate(): if the process has just ended, asyncio would not get its exit status. And psutil
        # checks that the id still belongs to the same process.
        for member in family[:1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.terminate()
        try:
            async with asyncio.timeout(_END_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        for orphan in family[1:]:
            with contextlib.suppress(psutil.NoSuchProcess):
                orphan.kill()
        if self._draining is not None:
            self._draining.cancel()

    async def _drain(self) -> None:
        output = self._running().stdout
        assert output is not None
        while await output.read(65536):
            pass

    def _running(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "use `async with`"
        return self._process

    @property
    def _last_words(self) -> str:
        lines = self._errors.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f": {last[:_MOST_ERROR_CHARS]}" if last else ""


def cpu_s(pid: int) -> float:
    """User and system time that a process and its children have used, in seconds, with a resolution of 10 ms."""
    total = 0.0
    for process in _family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def resident_mib(pid: int) -> float:
    """Resident memory of a process and its children, in MiB."""
    total = 0
    for process in _family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / 2**20


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
