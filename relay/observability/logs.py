"""Logs: one line per event on standard error, the relay's own and its libraries' in one form."""

import contextlib
import logging
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from relay.contract.errors import ConfigurationError

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def get_logger(name: str, *, guest: bool = False) -> "FilteringBoundLogger":
    """The logger called `name`. It may be made at import: it takes its configuration when it is first used.

    `guest` is for modules that also run in job runners' programs, where the relay does not decide how to log.

    Each call on it takes about a microsecond, even if its level is off. On a hot path, keep the result of
    `get_logger(name).bind()`, made after `configure`: a call on that takes a quarter.
    """
    return cast("FilteringBoundLogger", _Guest(name)) if guest else _structured(name)


def configure(level: str, format: Literal["json", "console"]) -> None:  # noqa: A002 - named as in RELAY_LOG_FORMAT
    """Log what is at least as severe as `level`, as JSON lines or as text for people. Call this once, before logging.

    Every line has `timestamp` (ISO 8601, UTC), `level`, `logger` and `event`; an exception is one field, `exception`.

    Raises ConfigurationError if `level` is not debug, info, warning or error.
    """
    from relay.observability.log_lines import route  # noqa: PLC0415 - it imports structlog

    threshold = _LEVELS.get(level.lower())
    if threshold is None:
        raise ConfigurationError("RELAY_LOG_LEVEL", level, f"one of {', '.join(_LEVELS)}")
    route(threshold, format)


def _structured(name: str) -> "FilteringBoundLogger":
    if "structlog" not in sys.modules:
        _load_structlog()
    import structlog  # noqa: PLC0415 - it is slow to import

    logger: FilteringBoundLogger = structlog.get_logger(logger_name=name)
    return logger


def _load_structlog() -> None:
    """Load structlog, but not rich, which takes longer to load: structlog only prints tracebacks in colours with it."""
    modules = cast("dict[str, object]", sys.modules)
    loaded = modules.get("rich")
    modules["rich"] = None  # so it counts as not installed
    try:
        import_module("structlog")
    finally:
        del modules["rich"]
        if loaded is not None:
            modules["rich"] = loaded


class _Guest:
    """structlog's logger where that is configured, as in the relay's own processes; else the standard library's.

    structlog that is imported and not configured would print to standard output.

    A line that cannot be written is dropped: what happens to a program's log must not happen to its updates.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, level: str) -> Callable[..., None]:
        return partial(self._log, level)

    def _log(self, level: str, event: str, **fields: Any) -> None:
        with contextlib.suppress(OSError, ValueError):  # the latter for a file that is closed
            if (structlog := sys.modules.get("structlog")) is not None and structlog.is_configured():
                getattr(_structured(self._name), level)(event, **fields)
                return
            told = "".join(f" {name}={value!r}" for name, value in fields.items())
            logging.getLogger(self._name).log(_LEVELS[level], "%s%s", event, told)
