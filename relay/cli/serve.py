"""`relay serve`."""

import asyncio
import signal
import sys
from typing import Annotated

import typer

from relay import logs
from relay.app import Relay
from relay.cli.console import run
from relay.identity import load_signer
from relay.settings import FacilitatorSettings, Settings, load_settings
from relay.wire import authentication_request

_log = logs.get_logger(__name__)


def serve(
    *,
    provision: Annotated[
        bool, typer.Option("--provision", help="Make or change streams and consumers first, as `relay provision`.")
    ] = False,
) -> None:
    """Relay updates, until told to stop.

    SIGTERM and SIGINT finish what is under way and exit 0; a second one ends at once. That NATS or the Facilitator is
    away, or that streams and consumers are missing, ends nothing: /readyz says what is missing until it is there.
    """
    settings = load_settings().require_facilitator()
    on_terminal = sys.stderr.isatty()
    logs.configure(settings.log.level, settings.log.format or ("console" if on_terminal else "json"))
    # Before the event loop: opening an encrypted hotkey takes seconds.
    authentication = _authentication(settings.facilitator)
    run(_serve(settings, authentication, provision_first=provision))


async def _serve(settings: Settings, authentication: str | None, *, provision_first: bool) -> None:
    stop = asyncio.Event()
    _stop_on_signals(stop)
    relay = Relay(settings, authentication, provision_first=provision_first)
    _log.info("probes and metrics", host=settings.http.host, port=relay.http_port)
    await relay.run(stop)


def _stop_on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    stopping = (signal.SIGTERM, signal.SIGINT)

    def begin() -> None:
        stop.set()
        for number in stopping:
            loop.remove_signal_handler(number)
            # A second signal ends the process at once. That is safe at any time: what is not acknowledged comes again.
            signal.signal(number, signal.SIG_DFL)

    for number in stopping:
        loop.add_signal_handler(number, begin)


def _authentication(settings: FacilitatorSettings) -> str | None:
    if settings.auth == "none":
        return None
    assert settings.hotkey_file is not None, "require_facilitator has seen to it"
    password = settings.hotkey_password
    signer = load_signer(settings.hotkey_file, password.get_secret_value() if password else None)
    return authentication_request(signer.public_key_hex, signer.sign_public_key())
