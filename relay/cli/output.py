"""Standard output and standard error of a command: what happens if nobody reads them, or they cannot be written."""

import codecs
import contextlib
import errno
import os
import signal
from collections.abc import Generator
from typing import Any, Final, TextIO

from relay.contract.errors import RelayError

NOBODY_READS: Final = 128 + signal.SIGPIPE
"""The exit status of a command whose standard output was closed by its reader, such as `head`."""


class OutputLost(RelayError):  # noqa: N818 - named for what happened
    """Standard output cannot be written. What is written to it from now on is dropped."""

    def __init__(self, error: OSError) -> None:
        self.nobody_reads = error.errno in {errno.EPIPE, errno.ESHUTDOWN}
        super().__init__(f"standard output cannot be written: {error.strerror}")


class Output:
    """A standard stream that survives errors: from then on everything goes to the null device.

    Args:
        stream: the text file that it writes to.
        raises: whether the first error is raised as OutputLost. Otherwise nobody hears of it.
    """

    def __init__(self, stream: TextIO, *, raises: bool) -> None:
        self._stream = stream
        self._raises = raises

    @property
    def encoding(self) -> str | None:
        """That of the stream. For ASCII a similar one, because click would write UTF-8 past this object then."""
        encoding: str | None = self._stream.encoding  # None if it is no file
        return "latin-1" if encoding and codecs.lookup(encoding).name == "ascii" else encoding

    def write(self, text: str) -> int:
        with self._watched():
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._watched():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _watched(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
            if self._raises:
                raise OutputLost(error) from None
