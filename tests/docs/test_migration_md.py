"""docs/migration.md, compared with the code: its examples are run, with stubs for Channels, asgiref and Celery.

tests/integration/validator.py runs them with the real ones.
"""

import asyncio
import json
import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from nats.aio.client import Client
from pages import ROOT, between

from relay import producer
from relay.contract.errors import RelayError
from relay.contract.model import JobStatusUpdate
from relay.contract.subjects import STATUS_STREAM
from relay.contract.wire import Frame, decode
from relay.producer import update_of

TEXT = (ROOT / "docs/migration.md").read_text()
BLOCK = r"```python\n(.*?)^```$"
EXAMPLES: dict[str, str] = dict(re.findall(rf"<!-- example: (\w+) -->\n{BLOCK}", TEXT, re.MULTILINE | re.DOTALL))
BEFORE: list[str] = re.findall(rf"\nBefore:\n\n{BLOCK}", TEXT, re.MULTILINE | re.DOTALL)
A, B = "123e4567-e89b-42d3-a456-426614174000", "9b2f8c1e-5d3a-4e7b-8f60-1c2d3e4f5a6b"


class ChannelLayer:
    """Keeps the messages that are sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        self.sent.append((channel, message))


@pytest.fixture
def layer(monkeypatch) -> ChannelLayer:
    """The channel layer of the examples, in stubs of the libraries that they import."""
    layer = ChannelLayer()
    contents = {
        "channels.layers": {"get_channel_layer": lambda: layer},
        "asgiref.sync": {"async_to_sync": lambda function: lambda *args: asyncio.run(function(*args))},
        "celery": {"Task": object, "shared_task": shared_task},
        "celery.signals": {"worker_process_shutdown": SimpleNamespace(connect=lambda function: function)},
    }
    for name, names in contents.items():
        module = ModuleType(name)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)
    return layer


def shared_task(function: Any = None, **options: Any) -> Any:
    """Like Celery's, but the task runs where it is called."""
    if function is None:
        return lambda function: shared_task(function, **options)
    return lambda *args: function(*([None] if options.get("bind") else []), *args)


async def bodies(client: Client) -> list[bytes]:
    """The bodies in the status stream, in order."""
    jetstream = client.jetstream()
    last = (await jetstream.stream_info(STATUS_STREAM)).state.last_seq
    return [(await jetstream.get_msg(STATUS_STREAM, sequence)).data or b"" for sequence in range(1, last + 1)]


async def updates(client: Client) -> list[JobStatusUpdate]:
    return [JobStatusUpdate.model_validate_json(body) for body in await bodies(client)]


@pytest.fixture(autouse=True)
def nats_url(nats_server, monkeypatch) -> str:
    """The server's URL, in the RELAY_NATS_* variables that the examples use."""
    monkeypatch.setenv("RELAY_NATS_URL", nats_server.url)
    return nats_server.url


async def run(code: str, call: str) -> None:
    """Run an example, then `call` with its names, in a thread, as a program without an event loop does."""

    def program() -> None:
        names: dict[str, Any] = {"asyncio": asyncio, "A": A, "B": B}
        exec(code, names)
        try:
            exec(call, names)
        finally:
            if isinstance(publisher := names.get("publisher"), producer.SyncStatusPublisher):
                publisher.close()

    await asyncio.to_thread(program)


def update(job: str, status: str, metadata: Any = None) -> JobStatusUpdate:
    return update_of({"uuid": job, "status": status, "metadata": metadata})


def message(job: str, status: str) -> dict[str, Any]:
    return {"type": "job_status_update", "payload": {"uuid": job, "status": status, "metadata": None}}


def test_every_example_is_run():
    """Each Python block of the page is either old code, or has a test here; the last three only with the real ones."""
    tested = {"smallest", "nats_py", "async", "celery", "callback", "both", "views", "submit", "requests"}
    assert tested == set(EXAMPLES)
    assert len(EXAMPLES) + len(BEFORE) == TEXT.count("```python")


@pytest.mark.parametrize(("number", "call"), [(0, "finish_job(A)"), (1, "asyncio.run(report_accepted(A))")])
async def test_what_the_old_code_sent(layer, number, call):
    """The old examples send a message that the relay accepts unchanged, for the job in the channel's name."""
    await run(BEFORE[number], call)
    ((channel, sent),) = layer.sent
    assert f"job_status_updates__{A}" == channel
    frame = decode(json.dumps(sent).encode(), A)
    assert isinstance(frame, Frame)
    assert () == frame.repairs


async def test_smallest_change(provisioned):
    """The example with the smallest change stores the update of the old message."""
    await run(EXAMPLES["smallest"], "report(A, 'accepted')\nreport(B, 'completed', {})")
    assert [update(A, "accepted"), update(B, "completed", {})] == await updates(provisioned)


async def test_any_client(provisioned, nats_url):
    """The example for programs without the package stores the old message, which the relay can send."""
    code = EXAMPLES["nats_py"].replace("nats://127.0.0.1:4222", nats_url)
    await run(code, f"asyncio.run(report(A, {message(A, 'accepted')!r}))")
    (body,) = await bodies(provisioned)
    assert isinstance(decode(body, A), Frame)


async def test_async_code(provisioned):
    """The example for async code stores each job's updates in order."""
    await run(EXAMPLES["async"], "asyncio.run(main([A, B]))")
    assert [update(job, *rest) for job in (A, B) for rest in (("accepted",), ("completed", {}))] == await updates(
        provisioned
    )


@pytest.mark.usefixtures("layer")
async def test_async_callback(provisioned):
    """The example of an async callback publishes from one event loop after the other."""
    await run(EXAMPLES["callback"], "run_job(A)\nrun_job(B)\nasyncio.run(publisher.close())")
    assert [update(A, "accepted"), update(B, "accepted")] == await updates(provisioned)


@pytest.mark.usefixtures("layer")
async def test_celery_task(provisioned):
    """The example of a task stores its update."""
    await run(EXAMPLES["celery"], "finish_job(A)")
    assert [update(A, "completed", {})] == await updates(provisioned)


async def test_both_ways(provisioned, layer):
    """With both ways each message is published on both; one that the relay would refuse still goes the old way."""
    sent = [(f"job_status_updates__{A}", message(A, status)) for status in ("accepted", "lost", "completed")]
    await run(EXAMPLES["both"], f"for channel, message in {sent!r}: report(A, message)")
    assert sent == layer.sent
    assert [update(A, "accepted"), update(A, "completed")] == await updates(provisioned)


def test_errors():
    """The table of errors has exactly the errors that the producer exports."""
    exported = [getattr(producer, name) for name in producer.__all__]
    errors = {
        each.__name__
        for each in exported
        if isinstance(each, type) and issubclass(each, RelayError) and each is not RelayError
    }
    table = between("errors", TEXT)
    assert sorted(errors) == sorted(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))
