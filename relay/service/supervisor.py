"""Several workers on one machine: a parent starts them, restarts a worker that dies, and ends when all have ended.

    started ──► running ──► ended ──► exit status 2: wrong configuration, no restart helps ───────► all stop, exit 2
       ▲                      ├─────► too often within a minute ──────────────────────────────────► all stop, exit 1
       └────── backoff ◄──────┘
               │    ▲
               └────┘ the system starts no process now; if it never did, all stop, exit 1

The parent relays nothing itself: each worker has its own event loop, connections and share of the lanes. The parent
answers probes for all: each worker inherits a Unix socket, on which it answers the parent; see worker_probes.py.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import Process
from collections import deque
from collections.abc import Generator, Sequence
from tempfile import TemporaryDirectory
from typing import Final

from relay.core.backoff import Backoff
from relay.observability.logs import get_logger
from relay.service.children import die_with_parent
from relay.service.surroundings import exhausted, require_files
from relay.service.worker_probes import WorkerProbes
from relay.timing.waiting import set_within

_log = get_logger(__name__)

LISTENER_VARIABLE: Final = "_RELAY_LISTENER"
"""Tells a worker the file descriptor of the socket on which it answers its parent. Not a setting."""
_FILES: Final = 8
"""How many files uvloop opens to start a process."""
_MOST_DEATHS: Final = 5
_WITHIN_S: Final = 60.0
_FAILED: Final = 1
_MISCONFIGURED: Final = 2


class Supervisor:
    """Keeps `workers` processes running until `stop`, numbered from 0.

    On Linux the workers are killed when the parent is. Elsewhere they go on without it, and SIGTERM ends them.

    Args:
        command: the program and arguments of a worker. It finds its socket by LISTENER_VARIABLE.
    """

    def __init__(self, command: Sequence[str], workers: int, probes: WorkerProbes, backoff: Backoff) -> None:
        self._command = command
        self._workers = workers
        self._probes = probes
        self._backoff = backoff
        self._running: dict[int, Process] = {}
        self._stopping = asyncio.Event()
        self._stops = 0
        self._status = 0

    def stop(self) -> None:
        """Tell the workers to drain. A second call tells them to end at once."""
        self._stops += 1
        self._stopping.set()
        for process in self._running.values():
            _terminate(process)

    async def run(self) -> int:
        """Run the workers until all have ended. Returns the exit status: 0 if they were told to stop and drained.

        Cancelling it kills the workers.
        """
        async with asyncio.TaskGroup() as group:
            for worker in range(self._workers):
                group.create_task(self._keep_running(worker))
        return self._status

    async def _keep_running(self, worker: int) -> None:
        deaths: deque[float] = deque(maxlen=_MOST_DEATHS)
        failures = 0
        while not self._stopping.is_set():
            if deaths and not failures:
                self._probes.restarted(worker)
            try:
                status = await self._run(worker)
            except OSError as error:
                failures += 1
                await self._not_started(worker, error, failures if deaths else 0)
                continue
            failures = 0
            if self._stopping.is_set():
                self._stopped(worker, status)
                return
            deaths.append(time.monotonic())
            recent = sum(deaths[-1] - death < _WITHIN_S for death in deaths)
            if status == _MISCONFIGURED:
                self._give_up(_MISCONFIGURED, "a worker cannot use its configuration; see its own line", worker)
            elif recent == _MOST_DEATHS:
                problem = f"a worker ended {recent} times within {_WITHIN_S:g} s, with {_describe(status)}; giving up"
                self._give_up(_FAILED, problem, worker)
            else:
                delay_s = self._backoff.delay_s(recent)
                ended = f"a worker ended with {_describe(status)}; starting it again"
                _log.error(ended, worker=worker, in_s=round(delay_s, 2))
                await set_within(self._stopping, delay_s)

    async def _run(self, worker: int) -> int:
        """Run a worker until it ends; returns its exit status, or minus the signal that ended it.

        Raises OSError if it cannot be started.
        """
        with private_listener() as listener:
            process = await self._start(listener)
            watching = asyncio.create_task(self._probes.watch(worker, listener.getsockname()))
            self._running[worker] = process
            try:
                if self._stopping.is_set():  # while it was being started
                    _terminate(process)
                _log.info("worker started", worker=worker, pid=process.pid)
                return await process.wait()
            finally:
                del self._running[worker]
                watching.cancel()
                if process.returncode is None:
                    process.kill()
                    await process.wait()

    async def _start(self, listener: socket.socket) -> Process:
        require_files(_FILES)
        return await asyncio.create_subprocess_exec(
            *self._command,
            env=os.environ | {LISTENER_VARIABLE: str(listener.fileno())},
            pass_fds=[listener.fileno()],
            # Away from the terminal: Ctrl-C there would reach the worker twice, and the second signal ends it at once.
            start_new_session=True,
            preexec_fn=die_with_parent(),
        )

    async def _not_started(self, worker: int, error: OSError, failures: int) -> None:
        """The worker could not be started: wait, or, if it never ran, give up. The other workers may run on."""
        problem = f"a worker cannot be started: {exhausted(error) or error}"
        if not failures:
            self._give_up(_FAILED, f"{problem}; giving up", worker)
            return
        delay_s = self._backoff.delay_s(failures)
        _log.error(f"{problem}; trying again", worker=worker, in_s=round(delay_s, 2))
        await set_within(self._stopping, delay_s)

    def _stopped(self, worker: int, status: int) -> None:
        # A single SIGTERM kills a worker only while it starts, when it has nothing at hand yet.
        if status == 0 or (status == -signal.SIGTERM and self._stops == 1):
            _log.info("worker stopped", worker=worker)
        else:
            _log.error(f"a worker ended undrained, with {_describe(status)}", worker=worker)
            self._status = self._status or _FAILED

    def _give_up(self, status: int, problem: str, worker: int) -> None:
        _log.error(problem, worker=worker, exit_status=status)
        self._status = status
        self.stop()


@contextlib.contextmanager
def private_listener() -> Generator[socket.socket]:
    """A Unix socket that listens: requests that arrive before the worker is up wait there."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        if sys.platform == "linux":
            listener.bind("")  # the kernel gives it a name outside the file system, which may be read-only
        else:
            listener.bind(stack.enter_context(TemporaryDirectory(prefix="relay-")) + "/probes")
        listener.listen()
        yield listener


def _terminate(process: Process) -> None:
    # SIGTERM even if the parent was sent SIGINT: on SIGINT a Python that is just starting would print a traceback.
    with contextlib.suppress(ProcessLookupError):
        process.terminate()


def _describe(status: int) -> str:
    return f"exit status {status}" if status >= 0 else signal.Signals(-status).name
