"""The relay in an earlier state, to see what changes since then have brought. It makes its streams as it needs them.

BENCH_EARLIER_RELAY is the Python of a worktree of that state, where `make bench` has installed it:

    git worktree add ../earlier COMMIT && make -C ../earlier .venv/.bench
    BENCH_EARLIER_RELAY=../earlier/.venv/bin/python .venv/bin/python -m bench all --systems relay,earlier_relay
"""

import os
import subprocess
from pathlib import Path


def main() -> None:
    python = Path(os.environ["BENCH_EARLIER_RELAY"])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # this state's `relay`
    subprocess.run((python, "-m", "relay", "provision"), env=environment, stdout=subprocess.DEVNULL, check=True)
    os.execve(python, (str(python), "-m", "relay", "serve"), environment)


if __name__ == "__main__":
    main()
