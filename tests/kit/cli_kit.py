"""Runs `relay ...` as a user does: in this process, because a new one takes a second, or in a terminal of its own."""

import asyncio
import contextlib
import fcntl
import io
import os
import pty
import signal
import struct
import sys
import tempfile
import termios
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import structlog
from bittensor_wallet import Keyfile, Keypair

from relay.cli import main
from relay.observability import logs

TIMEOUT_S = 30


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def environment(**settings: str) -> dict[str, str]:
    """The environment of a command: `NATS_URL=...`, and none of this machine's variables."""
    return {"PATH": os.environ["PATH"], "NO_COLOR": "1"} | {f"RELAY_{name}": value for name, value in settings.items()}


def make_command(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Callable[..., Any]:
    """`await command("doctor", NATS_URL=...)` runs it to its end in `folder`, without a terminal, 200 columns wide."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(logs, "configure", lambda *_: None)  # it would keep the first run's standard error
    monkeypatch.setenv("COLUMNS", "200")

    async def command(*arguments: str, stdin: bytes = b"", **settings: str) -> Ended:
        for name in [name for name in os.environ if name.startswith("RELAY_")]:
            monkeypatch.delenv(name)
        for name, value in environment(**settings).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["relay", *arguments])
        with _standard_input(stdin):
            return await asyncio.to_thread(_run)

    return command


@contextlib.contextmanager
def _standard_input(content: bytes) -> Iterator[None]:
    """Replace the file descriptor, because the commands read it, not `sys.stdin`."""
    saved = os.dup(0)
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        os.dup2(file.fileno(), 0)
        try:
            yield
        finally:
            os.dup2(saved, 0)
            os.close(saved)


def _run() -> Ended:
    code, out = 0, io.StringIO()
    with (
        tempfile.TemporaryFile("w+") as err,  # which has a descriptor, as standard error has
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        structlog.testing.capture_logs(),  # without a configuration of their own, they would go to standard output
    ):
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        err.seek(0)
        return Ended(code, out.getvalue(), err.read())


async def start_command(
    folder: Path, *arguments: str, before: Callable[[], None] | None = None, **settings: str
) -> asyncio.subprocess.Process:
    """`relay ...` as a process of its own, with pipes: to send signals, and to read output while it runs.

    `before` is called in the new process before the command starts.
    """
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "relay", *arguments),
        cwd=folder,
        env=environment(**settings),
        preexec_fn=before,
        **dict.fromkeys(("stdin", "stdout", "stderr"), asyncio.subprocess.PIPE),
    )


def hotkey_file(folder: Path, keypair: Keypair) -> str:
    """An unencrypted wallet file of the hotkey, in `folder`."""
    path = folder / f"hotkey-{keypair.ss58_address}"
    Keyfile(str(path)).set_keypair(keypair, encrypt=False)
    return str(path)


class Terminal:
    """A process in a terminal; `screen` is all that it has written so far."""

    def __init__(self, process: asyncio.subprocess.Process, reader: int) -> None:
        self.process = process
        self.screen = ""
        self._reader = reader
        self._news = asyncio.Event()
        self._ended = False
        asyncio.get_running_loop().add_reader(reader, self._read)

    async def shows(self, text: str, after: int = 0) -> None:
        """Wait until `text` appears after position `after` of the screen."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while text not in self.screen[after:]:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise TimeoutError(f"no {text!r} in {self.screen[after:]!r}") from None

    def type(self, text: str) -> None:
        os.write(self._reader, text.encode())

    async def finished(self) -> int:
        """Wait until the process has ended and all its output is read; returns its exit code."""
        async with asyncio.timeout(TIMEOUT_S):
            while not self._ended:
                self._news.clear()
                await self._news.wait()
            return await self.process.wait()

    def resize(self, columns: int, lines: int) -> None:
        """Change the terminal's size; the process gets SIGWINCH."""
        fcntl.ioctl(self._reader, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    def _read(self) -> None:
        try:
            chunk = os.read(self._reader, 65536)
        except OSError:  # Linux reports the end of a terminal in this way
            chunk = b""
        if not chunk:
            asyncio.get_running_loop().remove_reader(self._reader)
            self._ended = True
        self.screen += chunk.decode(errors="replace").replace("\r\n", "\n")
        self._news.set()


@contextlib.asynccontextmanager
async def on_terminal(
    *arguments: str, columns: int = 80, lines: int = 24, kind: str = "xterm", **settings: str
) -> AsyncIterator[Terminal]:
    """`relay ...` in a terminal of this many columns and lines; killed at the end if it still runs."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "relay", *arguments),
        env=environment(**settings) | {"TERM": kind},
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        asyncio.get_running_loop().remove_reader(ours)
        os.close(ours)
