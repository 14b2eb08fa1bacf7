"""The command `relay`: what users type, and how it ends.

Exit codes: 0 done, 1 it ran and found something wrong, 2 usage or configuration, 141 nobody reads standard output.
"""

import contextlib
import gc
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Final, TextIO, cast

import typer

from relay.cli.common import complain
from relay.cli.output import NOBODY_READS, Output, OutputLost
from relay.cli.stdin import InputUnreadable
from relay.contract.errors import ConfigurationError, IdentityError, RelayError
from relay.observability.log_stream import replaced_stderr
from relay.service.surroundings import exhausted

COMMANDS: Final = ("serve", "provision", "publish", "query", "top", "doctor", "demo", "dlq", "console")
"""Each is defined in the module of its name in this package."""


def program(commands: Sequence[str] = COMMANDS) -> typer.Typer:
    """The command `relay` with these subcommands. Only their modules are imported, so that a command starts fast."""
    app = typer.Typer(
        name="relay",
        help=(
            "Carry job status updates from NATS JetStream to the Facilitator. "
            "Settings come from RELAY_* environment variables."
        ),
        no_args_is_help=True,
        add_completion=False,
        callback=_options,
        # Typer's tracebacks print local variables, which may hold secrets.
        pretty_exceptions_enable=False,
    )
    for name in commands:
        command = getattr(import_module(f"relay.cli.{name}"), name)
        if isinstance(command, typer.Typer):
            app.add_typer(command)
        else:
            app.command()(command)
    return app


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer's callback for a flag
    if wanted:
        typer.echo(f"relay {version('job-status-relay')}")
        raise typer.Exit


def _options(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of the command itself, before any subcommand."""


def main() -> None:
    """Run the command. Expected errors are printed as one line each; any other exception is a traceback."""
    asked = [name for name in sys.argv[1:2] if name in COMMANDS]
    # The relay does not wait for the reader of its log. Other commands wait for the reader of what they print.
    with replaced_stderr() if asked == ["serve"] else contextlib.nullcontext():
        _run(asked)


def _run(asked: Sequence[str]) -> None:
    sys.stdout = cast("TextIO", Output(sys.stdout, raises=True))
    sys.stderr = cast("TextIO", Output(sys.stderr, raises=False))
    try:
        try:
            command = program(asked or COMMANDS)
            gc.enable()
            command()
        finally:
            sys.stdout.flush()  # here an error can still be told
    except (RelayError, OSError, RuntimeError, ExceptionGroup) as raised:
        leaves = list(map(_in_words, _leaves(raised)))
        expected = [leaf for leaf in leaves if isinstance(leaf, RelayError)]
        if len(expected) < len(leaves):
            raise
        if any(isinstance(leaf, OutputLost) and leaf.nobody_reads for leaf in expected):
            sys.exit(NOBODY_READS)
        for message in dict.fromkeys(map(str, expected)):
            complain(message)
        sys.exit(2 if isinstance(expected[0], ConfigurationError | IdentityError | InputUnreadable) else 1)


def _in_words(error: Exception) -> Exception:
    """The error in words for an operator, if the process has reached a limit of the system."""
    words = exhausted(error)
    return error if words is None else RelayError(words)


def _leaves(raised: Exception) -> Iterator[Exception]:
    """The exceptions in nested groups, as TaskGroups raise them."""
    if isinstance(raised, ExceptionGroup):
        for inner in cast("ExceptionGroup[Exception]", raised).exceptions:
            yield from _leaves(inner)
    else:
        yield raised
