"""`python -m relay`, and the command `relay`."""

import gc

from relay.contract.process_1 import leave_process_1
from relay.contract.surroundings import prepare


def main() -> None:
    """Run the command."""
    prepare()
    gc.disable()  # until all is loaded: nothing of it is garbage, and looking for some takes a tenth of the start
    leave_process_1()
    from relay.cli import main as run  # noqa: PLC0415 - after `prepare`: libraries read variables when imported

    run()


if __name__ == "__main__":
    main()
