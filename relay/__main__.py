"""`python -m relay`, and the command `relay`."""

from relay.contract.process_1 import leave_process_1
from relay.contract.surroundings import prepare


def main() -> None:
    """Run the command."""
    prepare()
    leave_process_1()
    from relay.cli import main as run  # noqa: PLC0415 - after `prepare`: libraries read variables when imported

    run()


if __name__ == "__main__":
    main()
