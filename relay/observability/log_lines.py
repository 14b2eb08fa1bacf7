"""How log lines look. Separate from logs.py, so that a job runner's program does not import structlog."""

import logging
import sys
from io import StringIO
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.typing import EventDict, ExcInfo, Processor

from relay.contract.text import escape, wants_color

_TIMESTAMP: Final = structlog.processors.TimeStamper(fmt="iso", utc=True)


def route(threshold: int, form: Literal["json", "console"]) -> None:
    """Write lines at least as severe as `threshold`, of the relay and its libraries, to standard error."""
    rendering = _rendering(form)
    structlog.configure(
        processors=[_logger_name, structlog.processors.add_log_level, _TIMESTAMP, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    _route_libraries(threshold, rendering)


def _rendering(form: Literal["json", "console"]) -> list[Processor]:
    if form == "json":
        # The standard library's json on purpose: it can write lone surrogates, which faulty updates may contain.
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    renderer = structlog.dev.ConsoleRenderer(colors=wants_color(sys.stderr), exception_formatter=_write_traceback)
    return [_escape_texts, renderer]


def _escape_texts(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Texts may be a producer's or the Facilitator's: they must not control the terminal, or look like more lines."""
    return {name: escape(value) if isinstance(value, str) else value for name, value in event.items()}


def _write_traceback(output: TextIO, raised: ExcInfo) -> None:
    # A plain one, because the pretty ones print local variables, and those may hold secrets.
    plain = StringIO()
    structlog.dev.plain_traceback(plain, raised)
    output.write("\n".join(map(escape, plain.getvalue().split("\n"))))


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
    # At debug, websockets logs every frame: all updates, and the signature of the sign-in.
    logging.getLogger("websockets").setLevel(max(threshold, logging.INFO))
    logging.captureWarnings(capture=True)


def _logger_name(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    record = event.get("_record")  # None if the line is the relay's own
    event["logger"] = event.pop("logger_name") if record is None else record.name
    return event
