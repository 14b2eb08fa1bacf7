"""docs/job-requests.md: its example takes what the page says, and its table has every error."""

import asyncio
import contextlib
import re
import sys

from pages import ROOT, blocks, table_after

from relay import client
from relay.contract.errors import JetStreamError
from relay.contract.subjects import REQUEST_STREAM, api_consumer_info
from relay.nats.jetstream import api_request

PAGE = ROOT / "docs" / "job-requests.md"


async def test_example(nats_server, provisioned):
    """The example takes a request, a report, and a message that it does not understand."""
    (example,) = blocks(PAGE, "python")
    script = example.replace("nats://127.0.0.1:4222", nats_server.url)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-u", "-c", script), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(JetStreamError):
                await api_request(provisioned, api_consumer_info(REQUEST_STREAM, "runner"))
                break
        for body in (
            b'{"message_type":"V2JobRequest","uuid":"a","docker_image":"i"}',
            b'{"message_type":"V0JobCheated","job_uuid":"a"}',
            b"?",
        ):
            await provisioned.jetstream().publish("job.request.any", body)
        lines = [(await process.stdout.readline()).decode() for _ in range(3)]
    process.terminate()
    await process.wait()
    assert ["run job a with i\n", "cheated a\n"] == lines[:2]
    assert re.match(r"not understood: JSON is malformed.* b'\?'", lines[2])


def test_errors():
    """The table has every error of JobRequests and nothing else."""
    rows = table_after("| error | what happened |", PAGE.read_text())
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    assert {"RequestsUnavailable", "RequestUnsettled", "ConfigurationError"} == named
    assert named <= set(client.__all__)
