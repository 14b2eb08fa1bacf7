"""The relay as process 1, as in a container.

Linux treats process 1 differently: a signal that it does not handle has no effect, and it inherits the orphans of all
other processes, which stay as zombies until it asks for their exit status. Instead of replacing each default action by
a handler, of which Python runs none while a library works, the command goes on in a child: an ordinary process.
"""

import os
import signal
from typing import Final

_PASSED_ON: Final = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH")
    if hasattr(signal, name)
)
_SIGNALLED: Final = 128
"""The exit status for a process that a signal ended is this plus the number of the signal, as in a shell."""


def leave_process_1() -> None:
    """If this is process 1, go on in a child of it. Call this before anything that takes time or starts a thread.

    Process 1 itself only passes signals on to the child, reaps orphans, and ends with the child's exit status. If the
    system allows no further process, this one goes on as process 1.
    """
    if os.getpid() != 1:
        return
    awaited = {*_PASSED_ON, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)  # a blocked signal is kept until it is waited for
    try:
        child = os.fork()
    except OSError:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    if child:
        os._exit(_wait_for(child, awaited))
    os.setsid()  # away from the terminal: Ctrl-C there would reach the child twice, and the second ends it at once
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait_for(child: int, awaited: set[signal.Signals]) -> int:
    """Do what process 1 has to do until the child has ended, and return the exit status."""
    while True:
        number = signal.sigwait(awaited)
        if number != signal.SIGCHLD:
            os.kill(child, number)  # the child is there until it is reaped, which is below
        elif (status := _reap(child)) is not None:
            return status if status >= 0 else _SIGNALLED - status


def _reap(child: int) -> int | None:
    """Take the exit status of every process that has ended. Returns the child's, or None if it still runs."""
    while True:
        ended, status = os.waitpid(-1, os.WNOHANG)  # the child is among them, so there is always one to wait for
        if ended == child:
            return os.waitstatus_to_exitcode(status)
        if not ended:
            return None
