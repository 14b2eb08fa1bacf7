"""Reading standard input."""

import asyncio
import codecs
import concurrent.futures
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Final

from relay.contract.errors import RelayError

_STDIN: Final = 0
_MAX_LINES: Final = 256
"""How many lines are read ahead."""
_LOOK_S: Final = 0.5


class InputUnreadable(RelayError):  # noqa: N818 - named for what happened
    """Standard input is closed, or is nothing that can be read, such as a folder."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard input cannot be read: {error.strerror}")


def read_stdin() -> bytes:
    """All of standard input. Raises InputUnreadable."""
    try:
        with open(_STDIN, "rb", closefd=False) as stdin:
            return stdin.read()
    except OSError as error:
        raise InputUnreadable(error) from error


async def stdin_lines() -> AsyncIterator[bytes]:
    """The lines of standard input as they arrive. Raises InputUnreadable.

    They are read in a thread, because a read from a terminal cannot be cancelled and a file cannot be waited for. It
    is not a thread of the event loop's pool: the loop waits for those at its end, so that Ctrl-C would wait for input.
    """
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[bytes | OSError] = asyncio.Queue(_MAX_LINES)

    def pass_on(item: bytes | OSError) -> bool:
        putting = lines.put(item)
        try:
            put = asyncio.run_coroutine_threadsafe(putting, loop)
            # A loop that ends just now takes the coroutine and never runs it.
            while not concurrent.futures.wait([put], _LOOK_S).done and not loop.is_closed():
                pass
            put.result(0)
        except (RuntimeError, TimeoutError, concurrent.futures.CancelledError):  # the event loop has ended
            putting.close()
            return False
        return True

    threading.Thread(target=_read_lines, args=(pass_on,), daemon=True).start()
    while item := await lines.get():
        if isinstance(item, OSError):
            raise InputUnreadable(item)
        yield item


def _read_lines(pass_on: Callable[[bytes | OSError], bool]) -> None:
    """Pass on each line; at the end an empty one, or the error. `pass_on` returns whether anybody takes more."""
    try:
        with open(_STDIN, "rb", closefd=False) as stdin:
            for line in without_mark(stdin):
                if not pass_on(line):
                    return
    except OSError as error:
        pass_on(error)
    else:
        pass_on(b"")


def without_mark(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines without the byte order mark with which some editors and shells begin a UTF-8 file."""
    for number, line in enumerate(lines):
        yield line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
