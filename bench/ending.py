"""Lets a benchmark clean up when it is ended early."""

import signal
from typing import Final

_ENDINGS: Final = (signal.SIGTERM, signal.SIGHUP)


def end_in_order() -> None:
    """Treat SIGTERM and SIGHUP like Ctrl-C from now on, so that servers are stopped and folders removed."""
    for number in _ENDINGS:
        if signal.getsignal(number) is signal.SIG_DFL:  # otherwise it was set on purpose, as by nohup
            signal.signal(number, signal.default_int_handler)
