"""Reading standard input."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Final

import typer

_STDIN: Final = 0
_MAX_LINES: Final = 256
"""How many lines are read ahead."""


def read_stdin() -> bytes:
    """All of standard input. Raises BadParameter if it cannot be read."""
    try:
        with open(_STDIN, "rb", closefd=False) as stdin:
            return stdin.read()
    except OSError as error:
        raise _unreadable(error) from error


async def stdin_lines() -> AsyncIterator[bytes]:
    """The lines of standard input as they arrive. Raises BadParameter if it cannot be read.

    They are read in a thread, because a read from a terminal cannot be cancelled and a file cannot be waited for. It
    is not a thread of the event loop's pool: the loop waits for those at its end, so that Ctrl-C would wait for input.
    """
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[bytes | OSError] = asyncio.Queue(_MAX_LINES)

    def pass_on(item: bytes | OSError) -> None:
        asyncio.run_coroutine_threadsafe(lines.put(item), loop).result()

    threading.Thread(target=_read_lines, args=(pass_on,), daemon=True).start()
    while item := await lines.get():
        if isinstance(item, OSError):
            raise _unreadable(item)
        yield item


def _read_lines(pass_on: Callable[[bytes | OSError], None]) -> None:
    """Pass on each line; at the end an empty one, or the error."""
    try:
        with open(_STDIN, "rb", closefd=False) as stdin:
            for line in stdin:
                pass_on(line)
    except OSError as error:
        pass_on(error)
    else:
        pass_on(b"")


def _unreadable(error: OSError) -> typer.BadParameter:
    return typer.BadParameter(f"standard input cannot be read: {error.strerror}")
