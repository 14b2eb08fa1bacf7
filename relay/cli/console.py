"""`relay console`."""

from importlib.util import find_spec
from typing import Final

from relay.cli.common import read_settings, run, tell
from relay.contract.errors import RelayError
from relay.observability import logs

ADDRESS_PREFIX: Final = "relay console: "
"""What the line begins with that tells the address."""


class ConsoleNotInstalled(RelayError):  # noqa: N818 - named for what happened
    """The extra is missing."""

    def __init__(self) -> None:
        super().__init__("the page needs the extra `console`: pip install 'job-status-relay[server,console]'")


def console() -> None:
    """Serve a web page that shows the relay, and acts on dead letters.

    Needs only NATS, so it runs on any machine that reaches NATS. What it may do is what its NATS user may do. It
    listens on this machine alone, unless RELAY_CONSOLE_HOST says otherwise; then it needs RELAY_CONSOLE_PASSWORD.
    Ctrl-C ends it.
    """
    settings = read_settings().require_guarded_console()
    require_console()
    logs.configure("warning", "console")
    from relay.console.server import serve  # noqa: PLC0415 - takes a second, and only this command needs it

    run(serve(settings, _tell_address))


def require_console() -> None:
    """Raise ConsoleNotInstalled without the extra."""
    if find_spec("nicegui") is None:
        raise ConsoleNotInstalled


def _tell_address(address: str) -> None:
    tell(f"{ADDRESS_PREFIX}{address}")
