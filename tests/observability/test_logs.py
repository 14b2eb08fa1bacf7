import json
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from relay.contract.errors import ConfigurationError
from relay.observability import logs


def errors_of(script: str) -> list[str]:
    """The standard error of a new process that runs `script`, because a process has only one logs configuration."""
    code = f"import logging\nfrom relay.observability.logs import configure, get_logger\n{script}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr.splitlines()


def events_of(script: str) -> list[dict]:
    return [json.loads(line) for line in errors_of(script)]


def test_json_line():
    """An event is one JSON object with its UTC time, level, logger, event and the given fields."""
    (event,) = events_of("configure('info', 'json')\nget_logger('relay.worker').warning('lane lost', lane=3)")
    moment = datetime.fromisoformat(event.pop("timestamp"))
    assert moment.tzinfo == UTC
    assert event == {"level": "warning", "logger": "relay.worker", "event": "lane lost", "lane": 3}


def test_logger_made_before_configuration():
    """A logger that is made at import uses the configuration that is made later."""
    (event,) = events_of("log = get_logger('relay.a')\nconfigure('info', 'json')\nlog.debug('off')\nlog.info('on')")
    assert (event["logger"], event["event"]) == ("relay.a", "on")


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("ERROR", ["error"]),
    ],
)
def test_level(level, expected):
    """Only events of the level or above are logged, of the relay and of its libraries."""
    events = events_of(f"""
configure({level!r}, 'json')
for name in ('debug', 'info', 'warning', 'error'):
    getattr(get_logger('relay.a'), name)('x')
    getattr(logging.getLogger('nats'), name)('x')
""")
    seen = {logger: [event["level"] for event in events if event["logger"] == logger] for logger in ("relay.a", "nats")}
    assert seen == {"relay.a": expected, "nats": expected}


def test_library_line():
    """A line of a library that uses the standard logging has the same form."""
    (event,) = events_of("configure('info', 'json')\nlogging.getLogger('asyncio').info('up on %d', 8080)")
    del event["timestamp"]
    assert event == {"level": "info", "logger": "asyncio", "event": "up on 8080"}


def test_library_handlers_replaced():
    """Handlers that a library or an earlier call attached to the root logger do not print lines a second time."""
    events = events_of("logging.basicConfig()\nconfigure('info', 'json')\nlogging.getLogger('nats').info('once')")
    assert [event["event"] for event in events] == ["once"]


def test_frames_stay_private():
    """Frames of the WebSocket library are not logged even at debug: they contain updates and the authentication."""
    events = events_of("configure('debug', 'json')\nlogging.getLogger('websockets.client').debug('> TEXT')")
    assert events == []


@pytest.mark.parametrize("logger", ["get_logger('relay.a')", "logging.getLogger('nats')"])
def test_exception_is_one_field(logger):
    """An exception is one text field of its line, without local variables."""
    (event,) = events_of(f"""
configure('info', 'json')
password = 'hunter2'
try:
    raise ValueError('broken')
except ValueError:
    {logger}.exception('failed')
""")
    assert event["event"] == "failed"
    assert event["exception"].splitlines()[-1] == "ValueError: broken"
    assert "hunter2" not in event["exception"]


def test_awkward_values():
    """Values that are not JSON, and text that is not Unicode, are logged in valid lines."""
    (event,) = events_of("configure('info', 'json')\nget_logger('relay.a').info('odd', raw=b'x', text='\\ud800')")
    assert (event["raw"], event["text"]) == ("b'x'", "\ud800")


def test_warnings_are_lines():
    """A Python warning is logged like any other line."""
    (event,) = events_of("import warnings\nconfigure('info', 'json')\nwarnings.warn('old')")
    assert (event["logger"], event["level"]) == ("py.warnings", "warning")


def test_console():
    """The console format is plain text, without colours outside a terminal, and its tracebacks show no values."""
    lines = errors_of("""
configure('info', 'console')
password = 'hunter2'
try:
    raise ValueError('broken')
except ValueError:
    get_logger('relay.a').exception('failed', lane=3)
""")
    assert lines[0].split()[1:] == ["[error", "]", "failed", "[relay.a]", "lane=3"]
    assert lines[-1] == "ValueError: broken"
    assert [line for line in lines if "\x1b" in line or "hunter2" in line] == []


@pytest.mark.parametrize("logger", ["get_logger('relay.a')", "logging.getLogger('nats')"])
def test_texts_of_others_do_not_control_a_terminal(logger):
    """In the console format no text of an event, a field or an exception clears the screen or looks like a line."""
    field = ", subject='job.status.\\x1b[2J'" if "relay" in logger else ""
    lines = errors_of(f"""
configure('info', 'console')
try:
    raise ValueError('\\x1b[2J')
except ValueError:
    {logger}.exception('refused: \\x1b[2J\\n2026-11-29 [info] all is well'{field})
""")
    assert [line for line in lines if "\x1b" in line or line.startswith("2026-11-29 [info]")] == []
    assert ("refused: \\x1b[2J\\n2026" in lines[0], lines[-1]) == (True, "ValueError: \\x1b[2J")
    assert not field or "job.status.\\x1b[2J" in lines[0]


@pytest.mark.parametrize("log", ["open('/dev/full', 'w')", "open('/dev/null')", "closed"])
def test_a_guest_survives_the_log_of_its_host(log):
    """In a job runner's program whose structlog cannot write, lines of the publisher are dropped, and it goes on."""
    lines = errors_of(f"""
import structlog, sys
closed = open('/dev/null', 'w')
closed.close()
structlog.configure(logger_factory=structlog.WriteLoggerFactory({log}))
get_logger('relay.nats', guest=True).warning('NATS trouble', error='x')
print('went on', file=sys.stderr)
""")
    assert "went on" == lines[0]


def test_unknown_level():
    """An unknown level is refused with its variable, its value, and the allowed values."""
    with pytest.raises(ConfigurationError) as caught:
        logs.configure("loud", "json")
    expected = "RELAY_LOG_LEVEL='loud' is not allowed: one of debug, info, warning, error"
    assert str(caught.value) == expected
