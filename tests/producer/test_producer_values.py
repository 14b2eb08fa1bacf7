import json
import threading
import uuid
from asyncio import CancelledError

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from process_kit import SERVER_PARTS, in_a_program

from relay import producer
from relay.contract.errors import ConfigurationError
from relay.producer import (
    InvalidUpdate,
    JobStatusUpdate,
    Limits,
    PublisherClosed,
    StatusPublisher,
    SyncStatusPublisher,
    message_id,
    update_of,
)
from relay.producer.options import close_time
from relay.producer.tracing import trace_headers

JOB = "123e4567-e89b-42d3-a456-426614174000"
PAYLOAD = {"uuid": JOB, "status": "completed", "metadata": {"miner_response": None}}
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SPAN = SpanContext(
    0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)
)


def test_no_server_parts_come_along():
    """Importing the producer, and making publishers from arguments or the environment, imports no server part."""
    script = f"""
import sys
from relay.producer import StatusPublisher, SyncStatusPublisher
StatusPublisher('nats://127.0.0.1:1', user='a', password='b')
SyncStatusPublisher.from_environment({{'RELAY_NATS_URL': 'nats://127.0.0.1:1'}})
print(sorted(set(sys.modules) & set({SERVER_PARTS})))
"""
    assert ["[]"] == in_a_program(script)


def test_pydantic_comes_later():
    """Importing publishers, limits and errors does not import pydantic; making the first model does."""
    script = """
import sys
from relay.producer import Limits, PublishRefused, StatusPublisher, SyncStatusPublisher
print('pydantic' in sys.modules)
from relay.producer import JobStatusUpdate, update_of
print('pydantic' in sys.modules, update_of({'uuid': '123e4567-e89b-42d3-a456-426614174000', 'status': 'sent'}).status)
"""
    assert ["False", "True sent"] == in_a_program(script)


def test_every_name_is_there():
    """Each exported name can be imported, and no other."""
    for name in producer.__all__:
        assert getattr(producer, name) is not None
    assert set(producer.__all__) <= set(dir(producer))
    with pytest.raises(AttributeError, match="has no attribute 'JobUpdate'"):
        _ = producer.JobUpdate


def test_never_used():
    """A publisher that is not used has no thread, so that a module may make one before a fork; it can be closed."""
    publisher = SyncStatusPublisher()
    assert [] == [thread for thread in threading.enumerate() if thread.name == "relay-producer"]
    publisher.close()
    with pytest.raises(PublisherClosed, match="make a new one"):
        publisher.publish(update_of(PAYLOAD))


@pytest.mark.parametrize(
    ("error", "time_s"), [(None, 10.0), (ValueError(), 10.0), (KeyboardInterrupt(), 1.0), (CancelledError(), 1.0)]
)
def test_time_to_close(error, time_s):
    """After an interrupt or a cancellation a publisher goes on for a second only, and never for longer than it may."""
    assert time_s == close_time(None, Limits(), error)
    assert 0.5 == close_time(None, Limits(close_timeout_s=0.5), error)


def test_logs_of_a_job_runner():
    """In a program that does not configure structlog the producer uses the standard library's logging."""
    script = """
import logging
import structlog
from relay.observability.logs import get_logger
logging.basicConfig(format='%(levelname)s %(name)s %(message)s')
get_logger('relay.producer.publish_queue', guest=True).error('not published', update='a', tries=2)
"""
    assert ["ERROR relay.producer.publish_queue not published update='a' tries=2"] == in_a_program(script)


# Messages of the channel layer.


@pytest.mark.parametrize(
    "message", [PAYLOAD, {"type": "job_status_update", "payload": PAYLOAD}, PAYLOAD | {"uuid": uuid.UUID(JOB)}]
)
def test_update_of_a_message(message):
    """A channel-layer message, with or without envelope, with objects or text, becomes the update of its JSON."""
    assert JobStatusUpdate.model_validate_json(json.dumps(PAYLOAD)) == update_of(message)


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        ({"type": "job_status_update", "payload": PAYLOAD | {"status": "lost"}}, "status: Input should be 'sent'"),
        ({"type": "job_status_update", "payload": {"uuid": JOB}}, "status: Field required"),
        ({"type": "job_status_update"}, "uuid: Field required"),
        ({"type": "chat", "payload": PAYLOAD}, "uuid: Field required"),
        ([PAYLOAD], "the message cannot be read: 'list' object has no attribute"),
        (PAYLOAD | {"uuid": "\ud800"}, "the message cannot be read:"),
    ],
)
def test_no_update_in_a_message(message, wrong):
    """What the relay would dead-letter is refused here, and the error names the wrong field."""
    with pytest.raises(InvalidUpdate, match=f"nothing was published: {wrong}"):
        update_of(message)


def test_message_id():
    """The message id depends on job, status and metadata, and on nothing else."""
    ids = [message_id(update_of(PAYLOAD | change)) for change in ({}, {"metadata": {}})]
    others = {message_id(update_of(PAYLOAD | change)) for change in ({"status": "failed"}, {"metadata": None})}
    assert ids[0] == ids[1]
    assert (2, False) == (len(others), ids[0] in others)


# Arguments and environment.


@pytest.mark.parametrize("kind", [StatusPublisher, SyncStatusPublisher])
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"servers": "http://user:hunter2@h"}, "servers='***' is not allowed: it begins with none of nats://, tls://"),
        ({"servers": ["nats://h", ""]}, "servers='***' is not allowed: it begins with none of nats://, tls://"),
        ({"servers": []}, "servers='***' is not allowed: addresses nats://host:port"),
        ({"user": "a"}, "password='' is not allowed: any text, together with RELAY_NATS_USER"),
        ({"password": "hunter2"}, "user='' is not allowed: any text, together with RELAY_NATS_PASSWORD"),
        ({"creds": "hunter2"}, "creds='***' is not allowed: there is no such file; give the path of a file"),
        ({"cert_file": __file__}, "key_file='' is not allowed: the path of a file that exists"),
        ({"port": 4222}, "port='***' is not allowed: there is no such argument"),
    ],
)
def test_arguments_that_are_not_allowed(kind, arguments, problem):
    """A wrong argument is refused when the publisher is made; the error has its name, without its value."""
    with pytest.raises(ConfigurationError) as caught:
        kind(**arguments)
    assert str(caught.value).startswith(problem)


def test_environment():
    """Only the RELAY_NATS_* variables are used, and a wrong one is named."""
    environ = {"RELAY_NATS_URL": "nats://a:1,nats://b:2", "RELAY_NATS_USER": "u", "RELAY_NATS_PASSWORD": "p"}
    settings = StatusPublisher.from_environment(environ | {"RELAY_LANES": "none"})._options.settings
    password = settings.password and settings.password.get_secret_value()
    assert (("nats://a:1", "nats://b:2"), "u", "p") == (settings.urls, settings.user, password)
    with pytest.raises(ConfigurationError, match="RELAY_NATS_CREDS='nowhere' is not allowed"):
        SyncStatusPublisher.from_environment({"RELAY_NATS_CREDS": "nowhere"})


@pytest.mark.parametrize("name", ["RELAY_NTAS_URL", "relay_nats_url", "RELAY_NATS_URLS", "RELAY_NATSURL"])
def test_misspelt_variable(name):
    """A name that resembles one of the RELAY_NATS_* variables is refused with the right one, and no default is used."""
    with pytest.raises(ConfigurationError, match="the nearest name is RELAY_NATS_URL"):
        StatusPublisher.from_environment({name: "nats://a:1"})


@pytest.mark.parametrize("name", ["RELAY_LANE", "RELAY_STATION", "relay_state", "RELAY_HTTP_PORT", "NATS_URL"])
def test_variable_of_others(name):
    """Variables that concern no publisher may have any value."""
    assert (
        StatusPublisher()._options.settings == StatusPublisher.from_environment({name: "tcp://a:1"})._options.settings
    )


def test_password_with_a_line_end():
    """A line end after a password or token is removed with a warning, in arguments and in the environment."""
    script = """
from relay.producer import StatusPublisher
for each in (
    StatusPublisher(user='u\\n', password='p\\n'),
    StatusPublisher.from_environment({'RELAY_NATS_USER': 'u\\n', 'RELAY_NATS_PASSWORD': 'p\\n'}),
):
    print([each._options.settings.user, each._options.settings.password.get_secret_value()])
"""
    told = in_a_program(script)
    assert ["['u', 'p']"] * 2 == [line for line in told if line.startswith("[")]
    removed = "began or ended with a line end, which was removed"
    assert {f"{name} {removed}" for name in ("user", "password", "RELAY_NATS_PASSWORD")} == set(told) - {"['u', 'p']"}


# Traces.


def test_active_trace():
    """The headers are OpenTelemetry's active trace, unless another is given; without a trace there is no header."""
    other = TRACEPARENT.replace("0af7", "0bf7")
    with trace.use_span(NonRecordingSpan(SPAN)):
        assert {"traceparent": TRACEPARENT} == trace_headers(None)
        assert {"traceparent": other} == trace_headers(other)
    state = trace.TraceState.from_header(["a=1,b=2"])
    stateful = trace.SpanContext(
        SPAN.trace_id, SPAN.span_id, is_remote=False, trace_flags=SPAN.trace_flags, trace_state=state
    )
    with trace.use_span(NonRecordingSpan(stateful)):
        assert {"traceparent": TRACEPARENT, "tracestate": "a=1,b=2"} == trace_headers(None)
    with trace.use_span(trace.INVALID_SPAN):
        assert {} == trace_headers(None)
    assert {} == trace_headers(None)


def test_malformed_traceparent():
    """A malformed traceparent is left out: it may come from outside, and does not prevent publishing."""
    malformed = ("", "00-1-2-3", TRACEPARENT + "\r\nA: b", TRACEPARENT.upper(), "é")
    assert [{}] * len(malformed) == list(map(trace_headers, malformed))
