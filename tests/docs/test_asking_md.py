"""docs/asking.md: its example prints what the page says, and its table has every error."""

import asyncio
import re
import sys

from pages import ROOT, blocks, table_after
from relay_kit import Scene

from relay import client
from relay.local.facilitator import FacilitatorSimulator

PAGE = ROOT / "docs" / "asking.md"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\S+Z")


async def test_example(nats_server):
    """The example, started before the job's updates are published, prints what the page shows, but for the times."""
    example, blocking = blocks(PAGE, "python")
    (output,) = blocks(PAGE, "text")
    (job,) = re.findall(r'job = "([^"]+)"', example)
    said: list[object] = []
    script = example.replace("nats://127.0.0.1:4222", nats_server.url)
    async with FacilitatorSimulator() as facilitator, Scene(nats_server, facilitator) as scene, scene.relay():
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-u", "-c", script), stdout=asyncio.subprocess.PIPE
        )
        first = await process.stdout.readline()
        await scene.publish_life(job, ("received", "accepted", "executor_ready", "execution_done", "completed"))
        rest, _ = await process.communicate()
        names = {"print": said.append}
        await asyncio.to_thread(exec, blocking.replace("nats://127.0.0.1:4222", nats_server.url), names)
    assert ["completed"] == said
    assert (0, TIME.sub("", output)) == (process.returncode, TIME.sub("", (first + rest).decode()))


def test_errors():
    """The table has every error of a question."""
    rows = table_after("| error | what happened | asks again by itself |", PAGE.read_text())
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    errors = [each for each in vars(client).values() if isinstance(each, type) and issubclass(each, client.QueryFailed)]
    assert {each.__name__ for each in errors} - {"QueryFailed"} == named
