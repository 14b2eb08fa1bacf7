"""The clock for durations."""

import subprocess
import sys

from namespaces import after_a_suspension

PROGRAM = "import time; from relay.timing.clock import monotonic; print(round(monotonic() - time.monotonic()))"


def test_suspension_counts():
    """The time in which the machine was suspended counts, which it does not in Python's own clock."""
    told = subprocess.run(
        after_a_suspension(3600, sys.executable, "-c", PROGRAM), capture_output=True, text=True, check=True
    )
    assert "3600" == told.stdout.strip()
