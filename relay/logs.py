"""Logs: one line per event on standard error, the relay's own and its libraries' in one form."""

import logging
import sys
from typing import Any, Final, Literal

import structlog
from structlog.typing import FilteringBoundLogger, Processor

from relay.errors import ConfigurationError

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_TIMESTAMP: Final = structlog.processors.TimeStamper(fmt="iso", utc=True)


def get_logger(name: str) -> FilteringBoundLogger:
    """The logger called `name`. It may be made at import: it takes its configuration when it is first used.

    Each call on it costs about a microsecond even where the level is off. A hot path keeps `get_logger(name).bind()`
    instead, made after `configure`, where that is a quarter.
    """
    logger: FilteringBoundLogger = structlog.get_logger(logger_name=name)
    return logger


def configure(level: str, format: Literal["json", "console"]) -> None:  # noqa: A002 - named as in RELAY_LOG_FORMAT
    """Log what is at least as severe as `level`, as JSON lines or as text for people. Call once, before logging.

    Every line has `timestamp` (ISO 8601, UTC), `level`, `logger` and `event`; an exception is one field, `exception`.

    Raises ConfigurationError if `level` is not debug, info, warning or error.
    """
    threshold = _LEVELS.get(level.lower())
    if threshold is None:
        raise ConfigurationError("RELAY_LOG_LEVEL", level, f"one of {', '.join(_LEVELS)}")
    rendering = _rendering(format)
    structlog.configure(
        processors=[_logger_name, structlog.processors.add_log_level, _TIMESTAMP, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    _route_libraries(threshold, rendering)


def _rendering(form: Literal["json", "console"]) -> list[Processor]:
    if form == "json":
        # json of the standard library on purpose: it also writes lone surrogates, which faulty updates bring along.
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    # Plain tracebacks, because the pretty ones print local variables, and those may hold secrets.
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]


def _route_libraries(threshold: int, rendering: list[Processor]) -> None:
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[_logger_name, structlog.processors.add_log_level, _TIMESTAMP],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
    )
    output = logging.StreamHandler(sys.stderr)
    output.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [output]
    root.setLevel(threshold)
    # At debug it prints every frame: all updates, and the signature that signs in.
    logging.getLogger("websockets").setLevel(max(threshold, logging.INFO))
    logging.captureWarnings(capture=True)


def _logger_name(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    record = event.get("_record")  # None if the line is the relay's own
    event["logger"] = event.pop("logger_name") if record is None else record.name
    return event
