import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from relay.observability.log_stream import LogQueue, LogStream

TIMEOUT_S = 30
TORN = """
import resource, sys
from relay.observability.log_stream import LogStream
log = LogStream(sys.stderr, lambda told: log.write(told.split(":")[0] + "\\n"))
for line, limit in (("first\\n", None), ("second\\n", 9), ("third\\n", 9), ("fourth\\n", None)):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit or resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    log.write(line)
    log.end(30)
"""


class Standing:
    """A text stream on a descriptor that can be replaced."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        self.descriptor = os.dup(self._writer)
        self.told: list[str] = []
        self.log = LogStream(self, self.told.append)

    def fileno(self) -> int:
        return self.descriptor

    def becomes(self, path: str) -> None:
        """From now on what is written goes to this file."""
        file = os.open(path, os.O_WRONLY)
        os.dup2(file, self.descriptor)
        os.close(file)

    def works_again(self) -> None:
        os.dup2(self._writer, self.descriptor)

    def written(self, line: str) -> list[str]:
        """The lines until this one."""
        found = b""
        while not found.endswith(line.encode()):
            found += os.read(self.reader, 65536)
        return found.decode().splitlines()


@pytest.fixture
def standing() -> Iterator[Standing]:
    return Standing()


def test_a_line_that_does_not_fit_is_dropped():
    """What waits is bounded. What was dropped is told once, when nothing waits any more."""
    queue = LogQueue(limit_bytes=4)
    for line in (b"aa", b"bb", b"c", b"dd"):
        queue.add(line)
    assert (2, None, None) == (queue.dropped, queue.written(), None)
    said = queue.written()
    assert said == (
        "2 log lines were dropped, because standard error could not be written: nobody reads it, and too much waits"
    )
    queue.add(b"longer than all that may wait")
    assert (b"longer than all that may wait", None, 2) == (queue.head, queue.written(), queue.dropped)


def test_a_line_that_cannot_be_written_is_dropped():
    """After an error the next line is tried; the last error is told when a line was written."""
    queue = LogQueue()
    for line in (b"a", b"b", b"c", b"d"):
        queue.add(line)
    queue.failed("Broken pipe")
    queue.failed("No space left on device")
    assert queue.written() is None
    assert queue.written() == (
        "2 log lines were dropped, because standard error could not be written: No space left on device"
    )


def test_errors_are_counted_and_told_once(standing):
    """While standard error cannot be written, lines are dropped and counted. When it can be again, that is told."""
    standing.log.write("one\n")
    assert ["one"] == standing.written("one\n")
    standing.becomes("/dev/full")
    for line in ("two\n", "three\n"):
        standing.log.write(line)
    standing.log.end(TIMEOUT_S)
    assert (2, []) == (standing.log.dropped, standing.told)
    standing.works_again()
    for line in ("four\n", "five\n"):
        standing.log.write(line)
    assert ["four", "five"] == standing.written("five\n")
    standing.log.end(TIMEOUT_S)
    assert (2, True) == (standing.log.dropped, len(standing.told) == 1)
    assert "2 log lines were dropped" in standing.told[0]
    assert "No space left on device" in standing.told[0]


def test_a_reader_that_does_not_read(standing):
    """Writing never waits for the reader. It gets what was kept, in order, and then what was dropped is told."""
    line = "x" * 999 + "\n"
    for _ in range(3000):
        standing.log.write(line)
    assert 0 < standing.log.dropped < 3000
    lines = standing.written(line * (3000 - standing.log.dropped))
    assert 3000 - standing.log.dropped == len(lines)
    standing.log.write("last\n")
    assert ["last"] == standing.written("last\n")
    standing.log.end(TIMEOUT_S)
    assert 1 == len(standing.told)


def test_the_end_does_not_wait_for_ever(standing):
    """At the end of the process what nobody reads is given up, and what else writes there does not wait either."""
    for _ in range(100):
        standing.log.write("x" * 999 + "\n")
    standing.log.end(0.01)
    assert 100_000 == os.write(standing.descriptor, b"x" * 100_000)


def test_a_reader_that_is_gone(standing):
    """A closed pipe is an error like any other."""
    os.close(standing.reader)
    standing.log.write("one\n")
    standing.log.end(TIMEOUT_S)
    assert 1 == standing.log.dropped


def test_a_descriptor_that_does_not_block(standing):
    """Whether another process has made the descriptor non-blocking does not matter."""
    os.set_blocking(standing.descriptor, False)
    for number in range(20_000):
        standing.log.write(f"{number}\n")
    assert [str(number) for number in range(20_000)] == standing.written("\n19999\n")
    assert 0 == standing.log.dropped


def test_a_line_that_was_written_in_part(tmp_path):
    """The line after one that was written in part begins at the beginning of a line."""
    with (tmp_path / "log").open("w") as log:
        subprocess.run([sys.executable, "-c", TORN], check=True, stderr=log)
    expected = ["first", "sec", "fourth", "2 log lines were dropped, because standard error could not be written"]
    assert expected == (tmp_path / "log").read_text().splitlines()
