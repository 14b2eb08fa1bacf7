"""`relay serve` whose log cannot be written, or is not read."""

import sys

import pytest
from process_kit import TIMEOUT_S, ask, started
from prometheus_client.parser import text_string_to_metric_families
from relay_kit import Scene, new_job
from tcp_server import reserved_port

NO_ROOM = ("sh", "-c", 'exec "$@" 2>/dev/full', "sh")
PIPE = """
import os, sys
reader, writer = os.pipe()
os.set_inheritable(reader, {read_by_nobody})
os.set_blocking(writer, False)
try:
    while os.write(writer, bytes(65536)):
        pass
except BlockingIOError:
    pass
os.set_blocking(writer, True)
os.dup2(writer, 2)
os.execv(sys.argv[1], sys.argv[1:])
"""
READER_GONE = (sys.executable, "-c", PIPE.format(read_by_nobody=False))
READER_STANDS = (sys.executable, "-c", PIPE.format(read_by_nobody=True))


@pytest.mark.parametrize(
    ("below", "workers", "lost"), [(NO_ROOM, 2, True), (READER_GONE, 1, True), (READER_STANDS, 1, False)]
)
async def test_it_goes_on_without_logs(scene: Scene, below, workers, lost):
    """It relays, answers probes, counts the lines that are lost, and drains when it is told to stop."""
    with reserved_port() as port:
        settings = scene.environment | {"RELAY_HTTP_PORT": str(port), "RELAY_LOG_FORMAT": "json"}
        command = ("-m", "relay", "serve", "--workers", str(workers))
        async with started(*command, settings=settings, below=below) as relay:
            await scene.facilitator.wait_for(lambda facilitator: facilitator.accepted == workers, TIMEOUT_S)
            await scene.settled(*[await scene.publish(new_job(lane)) for lane in range(4)], timeout_s=TIMEOUT_S)
            assert 200 == (await ask(port, "/livez")).status
            dropped = await dropped_lines(port)
            relay.process.terminate()
            assert 0 == await relay.ended()
    names = {"parent", *map(str, range(workers))} if workers > 1 else {None}
    assert names == dropped.keys()
    assert [lost] * len(names) == [lines > 0 for lines in dropped.values()]
    assert [] == relay.lines


async def dropped_lines(port: int) -> dict[str | None, float]:
    """How many lines were dropped, by worker."""
    families = text_string_to_metric_families((await ask(port, "/metrics")).body)
    samples = [sample for family in families for sample in family.samples]
    return {
        sample.labels.get("worker"): sample.value
        for sample in samples
        if sample.name == "relay_log_lines_dropped_total"
    }
