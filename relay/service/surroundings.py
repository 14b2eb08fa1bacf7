"""What a process inherits: variables that steer libraries, signals, and standard streams. Made harmless first of all.

This module imports only the standard library, because libraries read such variables when they are imported.
"""

import contextlib
import errno
import importlib
import importlib.util
import os
import signal
import sys
from collections.abc import Mapping, MutableMapping
from io import TextIOWrapper
from pathlib import Path
from types import ModuleType
from typing import Final, Literal

_OF_LIBRARIES: Final = (
    *("NICEGUI_", "PROMETHEUS_", "PYDANTIC_", "TYPER_", "_TYPER_", "WEBSOCKETS_"),
    *("_RELAY_COMPLETE", "MARKDOWN_CONTENT_CACHE_SIZE", "RST_CONTENT_CACHE_SIZE", "SSLKEYLOGFILE", "TERMINAL_WIDTH"),
    "WEB_CONCURRENCY",
)
"""Beginnings of names. They are set for other programs of an image, and would end the relay, or change what it does."""
_SIZES: Final = ("COLUMNS", "LINES")
_MAX_SIZE: Final = 1000
_OPEN_FILES: Final = (
    "opens no more files",
    "raise the limit of open files (`ulimit -n`, or LimitNOFILE of systemd); 1024 are enough",
)
_PROCESSES: Final = (
    "starts no more processes and threads",
    "raise the limit of processes (`ulimit -u`, TasksMax of systemd, or the pids limit of the container)",
)
_DISK: Final = ("has no more room on a disk", "make room, or raise the quota")
_EXHAUSTED: Final[Mapping[int, tuple[str, str]]] = {
    errno.EMFILE: _OPEN_FILES,
    errno.ENFILE: _OPEN_FILES,
    errno.EAGAIN: _PROCESSES,
    errno.ENOMEM: ("has no more memory", "give it more"),
    errno.ENOSPC: _DISK,
    errno.EDQUOT: _DISK,
}
"""By error: what the system does not give any more, and what to do."""
_NO_THREAD: Final = "can't start new thread"


def prepare() -> None:
    """Call this first of all."""
    forget_variables(os.environ)
    _load_later("aiohttp")
    _restore_signals()
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def forget_variables(environ: MutableMapping[str, str]) -> None:
    """Remove variables that steer libraries, and terminal sizes that no terminal has.

    Those that people set on purpose stay: of Python, of OpenSSL (SSL_CERT_FILE), of OpenTelemetry, for colours.
    """
    for name in list(environ):
        strange = name in _SIZES and not (environ[name].isdecimal() and 0 < int(environ[name]) <= _MAX_SIZE)
        if strange or name.upper().startswith(_OF_LIBRARIES):
            del environ[name]


def _load_later(name: str) -> None:
    """Load a module when it is first used, not when it is imported.

    nats-py imports aiohttp if it is installed, but uses it for `ws://` alone; and it takes longer to load than nats-py.
    """
    spec = importlib.util.find_spec(name)
    if spec is not None:
        sys.modules[name] = module = _LoadedLater(name)
        module.__spec__ = spec


class _LoadedLater(ModuleType):
    def __getattr__(self, attribute: str) -> object:
        if sys.modules[self.__name__] is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), attribute)


def _restore_signals() -> None:
    """Let Ctrl-C end the process at once until the event loop handles it, and undo what the parent process has changed.

    By default Python raises KeyboardInterrupt, but only when a library returns, and in the middle of an import it would
    print a traceback. If SIGCHLD was ignored, the exit status of a child process would be lost.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform != "win32":
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD))


def require_files(count: int) -> None:
    """Raise OSError if the process may not open so many more files.

    Call it before uvloop opens some: after a failure in the middle it prints tracebacks, or hides the error.
    """
    with contextlib.ExitStack() as opened:
        for _ in range(count):
            opened.enter_context(Path(os.devnull).open("rb"))


def exhausted(error: Exception) -> str | None:
    """What the system does not give this process any more, and what to do; None if the error means something else."""
    if isinstance(error, RuntimeError) and str(error) == _NO_THREAD:
        found, cause = _PROCESSES, _NO_THREAD
    elif isinstance(error, OSError) and error.errno in _EXHAUSTED:
        found, cause = _EXHAUSTED[error.errno], error.strerror
    else:
        return None
    return f"the system {found[0]} for this process ({cause}): {found[1]}"


def _open_closed_streams() -> None:
    """Open the null device for each standard stream that is closed.

    Otherwise the next file or socket would get its number. Then what is written to standard error would go to NATS, and
    standard input would be read from there. uvloop aborts the process in that case.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number is taken. Reading from standard input fails, because there is none.
            os.open(os.devnull, os.O_WRONLY if descriptor == 0 else os.O_RDWR)
    sys.stdin = sys.stdin or _text(0, "r")
    sys.stdout = sys.stdout or _text(1, "w")
    sys.stderr = sys.stderr or _text(2, "w")


def _text(descriptor: int, mode: Literal["r", "w"]) -> TextIOWrapper:
    return open(descriptor, mode, encoding="utf-8", closefd=False)
