"""`python -m relay`, and the command `relay`."""

import gc
import sys

from relay.service.process_1 import leave_process_1
from relay.service.surroundings import prepare


def main() -> None:
    """Run the command."""
    prepare()
    gc.disable()  # until all is loaded: nothing of it is garbage, and looking for some takes a tenth of the start
    leave_process_1()
    try:
        from relay.cli import main as run  # noqa: PLC0415 - after `prepare`: libraries read variables when imported
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "relay":
            raise
        sys.exit(_not_installed(error.name))
    run()


def _not_installed(module: str) -> int:
    print(  # noqa: T201
        f"relay: the module {module} is missing: only what publishers need is installed;"
        " to run the command, pip install 'job-status-relay[server]'",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    main()
