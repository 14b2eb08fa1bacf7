"""What a process inherits: variables that steer libraries, signals, and standard streams. Made harmless first of all.

This module imports only the standard library, because libraries read such variables when they are imported.
"""

import importlib
import importlib.util
import os
import signal
import sys
from collections.abc import MutableMapping
from io import TextIOWrapper
from types import ModuleType
from typing import Final, Literal

_OF_LIBRARIES: Final = (
    *("PROMETHEUS_", "PYDANTIC_", "TYPER_", "_TYPER_", "WEBSOCKETS_"),
    *("_RELAY_COMPLETE", "SSLKEYLOGFILE", "TERMINAL_WIDTH"),
)
"""Beginnings of names. They are set for other programs of an image, and would end the relay, or change what it does."""
_SIZES: Final = ("COLUMNS", "LINES")
_MAX_SIZE: Final = 1000


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
