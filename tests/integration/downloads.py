"""What the programs of other languages need, from the package indexes of these languages."""

import subprocess
from pathlib import Path

import pytest


def download(folder: Path, *command: str) -> None:
    """Run a command that downloads packages. If it fails, the index is out of reach, and the test is skipped."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.skip(f"not run, because `{' '.join(command)}` failed: {done.stderr.strip() or done.stdout.strip()}")
