"""`python -m relay`, and the command `relay`."""

from relay.contract.surroundings import prepare


def main() -> None:
    """Run the command."""
    prepare()
    from relay.cli import main as run  # noqa: PLC0415 - after `prepare`: libraries read variables when imported

    run()


if __name__ == "__main__":
    main()
