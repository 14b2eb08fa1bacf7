"""`relay serve`."""

import asyncio
import gc
import os
import random
import signal
import socket
import sys
from collections.abc import Callable
from typing import Annotated, Final

import typer

from relay.cli.common import run
from relay.contract.environment import load_settings
from relay.contract.facilitator_messages import authentication_request
from relay.contract.settings import FacilitatorSettings, Settings
from relay.core.backoff import Backoff
from relay.facilitator.identity import UNUSED_HOTKEY, load_signer
from relay.network.listener import listen
from relay.observability import logs
from relay.service.app import Relay
from relay.service.health import HealthServer
from relay.service.supervisor import LISTENER_VARIABLE, Supervisor
from relay.service.worker_probes import WorkerProbes

_log = logs.get_logger(__name__)

_STOPPING: Final = (signal.SIGTERM, signal.SIGINT)
_MOST_WORKERS: Final = 64


def serve(
    *,
    provision: Annotated[
        bool, typer.Option("--provision", help="Create or change streams and consumers first, as `relay provision`.")
    ] = False,
    workers: Annotated[
        int,
        typer.Option(
            "--workers", min=1, max=_MOST_WORKERS, help="Processes that share the lanes, with a parent if above 1."
        ),
    ] = 1,
) -> None:
    """Relay updates until SIGTERM, SIGINT, or SIGHUP, which comes when the terminal is closed (not under nohup).

    The signal lets the updates in progress finish, and the exit code is 0; a second signal ends the process at once.
    Losing NATS or the Facilitator does not end the process, nor do missing streams and consumers: /readyz says what is
    missing until it is there.

    With --workers above 1 a parent process restarts a worker that dies. It gives up if a worker dies 5 times within a
    minute (exit code 1) or cannot use its configuration (exit code 2). Send signals only to the parent, which passes
    them on. It also answers probes and metrics for all workers on RELAY_HTTP_PORT: each series has the label worker,
    from 0. If the parent is killed, Linux kills its workers too; elsewhere they go on relaying until told to stop.
    """
    notices: list[str] = []
    settings = load_settings(notice=notices.append).require_facilitator()
    on_terminal = sys.stderr.isatty()
    logs.configure(settings.log.level, settings.log.format or ("console" if on_terminal else "json"))
    for notice in notices:
        _log.warning(notice)
    if workers > 1:
        raise typer.Exit(run(_supervise(settings, workers, provision_first=provision)))
    # Before the event loop: opening an encrypted hotkey takes seconds.
    authentication = _authentication(settings.facilitator)
    run(_serve(settings, authentication, provision_first=provision))


async def _serve(settings: Settings, authentication: str | None, *, provision_first: bool) -> None:
    stop = asyncio.Event()
    _stop_on_signals(stop.set)
    descriptor = os.environ.get(LISTENER_VARIABLE)
    listener = socket.socket(fileno=int(descriptor)) if descriptor else None
    relay = Relay(settings, authentication, provision_first=provision_first, listener=listener)
    if listener is None:
        _log.info("probes and metrics", host=settings.http.host, port=relay.http_port)
    # What was loaded until now stays to the end. Looking through it for garbage takes 20 ms, and stops everything.
    gc.collect()
    gc.freeze()
    await relay.run(stop)


async def _supervise(settings: Settings, workers: int, *, provision_first: bool) -> int:
    # -P: no module of the working folder is taken for one of the relay's.
    command = [sys.executable, "-P", "-m", "relay", "serve", *(["--provision"] if provision_first else [])]
    backoff = Backoff(settings.delivery.backoff_initial_s, settings.delivery.backoff_max_s, random.random)
    probes = WorkerProbes(workers)
    supervisor = Supervisor(command, workers, probes, backoff)
    health = HealthServer(listen(settings.http.host, settings.http.port, prefix="RELAY_HTTP"), probes)
    _log.info("probes and metrics", host=settings.http.host, port=health.port)
    _stop_on_signals(supervisor.stop, again=supervisor.stop)
    async with asyncio.TaskGroup() as group:
        answering = group.create_task(health.serve())
        status = await supervisor.run()
        answering.cancel()
    return status


def _stop_on_signals(stop: Callable[[], None], *, again: Callable[[], None] | None = None) -> None:
    """Call `stop` at the first signal, and `again` at each further one. Without `again`, that ends the process at once.

    That is always safe: what is not acknowledged is redelivered. A terminal that is closed sends SIGHUP twice, from the
    kernel and from the shell, so further ones mean nothing. Under nohup SIGHUP is ignored, and stays so.
    """
    loop = asyncio.get_running_loop()
    hangs_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN

    def begin() -> None:
        if hangs_up:
            loop.add_signal_handler(signal.SIGHUP, _ignore)
        for number in _STOPPING:
            if again is None:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL)
            else:
                loop.add_signal_handler(number, again)
        stop()

    for number in (*_STOPPING, *((signal.SIGHUP,) if hangs_up else ())):
        loop.add_signal_handler(number, begin)


def _ignore() -> None:
    """Do nothing. Unlike SIG_IGN, this leaves no moment in which a signal ends the process."""


def _authentication(settings: FacilitatorSettings) -> str | None:
    if settings.auth == "none":
        if settings.hotkey_file is not None:
            _log.warning(UNUSED_HOTKEY)
        return None
    assert settings.hotkey_file is not None, "require_facilitator has seen to it"
    password = settings.hotkey_password
    signer = load_signer(settings.hotkey_file, password.get_secret_value() if password else None)
    return authentication_request(signer.public_key_hex, signer.sign_public_key())
