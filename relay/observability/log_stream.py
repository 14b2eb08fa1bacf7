"""Standard error of a process that must go on when its log cannot be written, or when nobody reads it.

    the process ──► lines that wait, at most 1 MiB ──► a thread ──► standard error
                └─► dropped: too much waits                     └─► dropped: an error

A write to a pipe whose reader does not read does not return. So a thread writes, and the event loop never waits for it.
(Not a descriptor that does not block: that would apply to all processes that have it, such as the shell.)
"""

import contextlib
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, Final, TextIO, cast

from relay.observability.logs import get_logger

_log = get_logger(__name__)

_LIMIT_BYTES: Final = 1 << 20
_UNREAD: Final = "nobody reads it, and too much waits"
_LAST_LINES_S: Final = 1.0
"""How long the end of a process waits until its last lines are written."""


class LogQueue:
    """The lines that wait to be written, and how many were dropped. It does no I/O.

    Args:
        limit_bytes: what may wait. A line that does not fit is dropped, unless it would be the only one.
    """

    def __init__(self, limit_bytes: int = _LIMIT_BYTES) -> None:
        self.dropped = 0
        """How many lines were dropped since the start."""
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._waiting: deque[bytes] = deque()
        self._told = 0
        self._reason = ""

    @property
    def head(self) -> bytes | None:
        """The line to be written next. It stays until `written` or `failed`."""
        return self._waiting[0] if self._waiting else None

    def add(self, line: bytes) -> None:
        """Keep a line until it is written, or drop it."""
        if self._waiting and self._held_bytes + len(line) > self._limit_bytes:
            self._drop(_UNREAD)
        else:
            self._waiting.append(line)
            self._held_bytes += len(line)

    def written(self) -> str | None:
        """The head was written. Returns what is to be told of dropped lines, once: when nothing waits any more."""
        self._held_bytes -= len(self._waiting.popleft())
        if self._waiting or self.dropped == self._told:
            return None
        lines, self._told = self.dropped - self._told, self.dropped
        return f"{lines} log lines were dropped, because standard error could not be written: {self._reason}"

    def failed(self, reason: str) -> None:
        """The head could not be written, and is dropped."""
        self._held_bytes -= len(self._waiting.popleft())
        self._drop(reason)

    def _drop(self, reason: str) -> None:
        self.dropped += 1
        self._reason = reason


class LogStream:
    """A text stream that never blocks and never raises, in the place of `stream`. Safe in threads.

    Args:
        tell: called in another thread with a sentence, when lines were dropped and writing works again.
    """

    def __init__(self, stream: TextIO, tell: Callable[[str], object]) -> None:
        self._stream = stream
        self._tell = tell
        self._descriptor = stream.fileno()
        self._queue = LogQueue()
        self._changed = threading.Condition()
        self._torn = False
        """Whether the last line was written in part."""
        threading.Thread(target=self._write_lines, name="log", daemon=True).start()

    @property
    def dropped(self) -> int:
        """How many lines were dropped since the start."""
        return self._queue.dropped

    def write(self, text: str) -> int:
        """Write a line soon, or drop it."""
        line = text.encode(self._stream.encoding, "backslashreplace")
        with self._changed:
            self._queue.add(line)
            self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Do nothing: lines are written as soon as they can be."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def end(self, timeout_s: float) -> None:
        """Wait until all is written. If that is not so in time, let nothing more be written to standard error."""
        with self._changed:
            ended = self._changed.wait_for(lambda: self._queue.head is None, timeout_s)
        if not ended:  # whoever writes to it directly must not wait for ever
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._descriptor)
            os.close(null)

    def _write_lines(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue.head is not None)
                line = self._queue.head or b""
            told = None
            try:
                self._write(line)
            except OSError as error:
                with self._changed:
                    self._queue.failed(error.strerror or str(error))
                    self._changed.notify_all()
            else:
                with self._changed:
                    told = self._queue.written()
                    self._changed.notify_all()
            if told is not None:
                self._tell(told)

    def _write(self, line: bytes) -> None:
        rest = b"\n" + line if self._torn else line
        while rest:
            try:
                written = os.write(self._descriptor, rest)
            except BlockingIOError:  # another process has made it so
                select.select((), (self._descriptor,), ())
                continue
            rest = rest[written:]
            self._torn = bool(rest)


_replacements: Final[list[LogStream]] = []
"""The one of this process, if there is one."""


def dropped_lines() -> int:
    """How many log lines this process has dropped, because standard error could not be written."""
    return sum(stream.dropped for stream in _replacements)


@contextlib.contextmanager
def replaced_stderr() -> Generator[None]:
    """Let standard error neither block nor raise inside the block. Configure logs inside it, so that they use it.

    Does nothing if the system starts no thread for it.
    """
    before = sys.stderr
    try:
        stream = LogStream(before, _log.warning)
    except RuntimeError:  # the system starts no more threads for this process
        yield
        return
    _replacements.append(stream)
    sys.stderr = cast("TextIO", stream)
    try:
        yield
    finally:
        sys.stderr = before
        stream.end(_LAST_LINES_S)
