"""The demo, and the load that it generates."""

import asyncio
import json
import os
import re
import signal
import sys
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import Any

import aiohttp
import pytest

from relay.contract.errors import PublishUnconfirmed
from relay.local.jobs import job_updates, job_uuid, make_scenario, status_message
from relay.local.traffic import Published, TrafficSource

TIMEOUT_S = 50
COUNTS = ("published", "acknowledged", "duplicates", "dead_lettered", "reordered", "lost", "both", "latency_ms")


@pytest.fixture
def start(tmp_path) -> Callable[..., Any]:
    """Starts `relay ...` in a folder and with an environment that belong to some other relay."""

    async def start(*arguments: str, **settings: str) -> asyncio.subprocess.Process:
        (tmp_path / ".env").write_text("RELAY_LANES=none\n")
        hostile = {"RELAY_NATS_URL": "nats://127.0.0.1:1", "RELAY_FACILITATOR_URL": "nonsense"}
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "relay", *arguments),
            cwd=tmp_path,
            env=os.environ | hostile | {"TMPDIR": str(tmp_path)} | settings,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    return start


def jobs(count: int) -> list[list[Any]]:
    rng = Random(1)
    return [[status_message(update) for update in job_updates(rng, job_uuid(rng))] for _ in range(count)]


async def test_demo_accounts_for_everything(start, tmp_path):
    """The demo prints one JSON object: nothing is lost or reordered, and the dead letters are the expected ones."""
    process = await start("demo", "--json", "--jobs", "12", "--rate", "200", "--seed", "7")
    async with asyncio.timeout(TIMEOUT_S):
        out, err = await process.communicate()
    assert (0, b"") == (process.returncode, err)
    told = json.loads(out)
    scenario = make_scenario(Random(7), 12)
    stored = {each.message_id for job in scenario.jobs for each in job}
    expected = scenario.dead_letters
    assert COUNTS == tuple(told)
    assert (0, 0, 0) == (told["lost"], told["both"], told["reordered"])
    assert dict(expected) == told["dead_lettered"]
    assert len(stored) == told["published"]
    assert len(stored) - expected.total() == told["acknowledged"] + told["duplicates"]
    assert 0 < told["latency_ms"]["p50"] <= told["latency_ms"]["p99"] <= told["latency_ms"]["p99_9"]
    assert [tmp_path / ".env"] == list(tmp_path.iterdir())


async def test_demo_stays_up_for_a_closer_look(start, tmp_path):
    """With `--keep` the printed addresses work until Ctrl-C, which stops the servers and exits with 0."""
    process = await start("demo", "--keep", "--console", "--jobs", "6", "--rate", "200")
    async with asyncio.timeout(TIMEOUT_S):
        lines = [line.decode() async for line in until(process.stdout, b"curl")]
        (page,) = {found for line in lines for found in re.findall(r"http://[\d.:]+/$", line.strip())}
        async with aiohttp.ClientSession() as session, session.get(page) as answer:
            assert "relay console" in await answer.text()
        url = re.search(r"nats://127\.0\.0\.1:\d+", "".join(lines))[0]
        settings = {"RELAY_NATS_URL": url, "RELAY_LANES": "4", "RELAY_FACILITATOR_URL": "ws://127.0.0.1:1/ws/v0/"}
        publishing = await start("publish", job_uuid(Random(2)), "accepted", **settings)
        looking = await start("top", "--once", "--interval", "0.2", **settings)
        assert b"accepted: JOB_STATUS sequence" in (await publishing.communicate())[0]
        assert b"signed in" in (await looking.communicate())[0]
        process.send_signal(signal.SIGINT)
        assert (b"", b"") == await process.communicate()
    assert 0 == process.returncode
    assert any(re.fullmatch(r"lost +0 *\n", line) for line in lines)
    assert [tmp_path / ".env"] == list(tmp_path.iterdir())
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
async def test_demo_can_be_interrupted(start, tmp_path, number, code):
    """A signal during the demo stops the servers, leaves nothing behind, and prints no traceback."""
    process = await start("demo", "--rate", "50")
    async with asyncio.timeout(TIMEOUT_S):
        async for _ in until(process.stdout, b"Relaying"):
            pass
        process.send_signal(number)
        assert (b"", b"") == await process.communicate()
    assert code == process.returncode
    assert [tmp_path / ".env"] == list(tmp_path.iterdir())


async def until(stream: asyncio.StreamReader, last: bytes):
    """The lines up to the one that contains `last`."""
    async for line in stream:
        yield line
        if last in line:
            return


@pytest.mark.usefixtures("provisioned")
async def test_traffic_keeps_each_jobs_order(nc):
    """Every message is published once, a job's in order and each after the PubAck before; jobs are interleaved."""
    made = jobs(30)
    published: list[Published] = []
    sent = defaultdict(list)

    def note(each: Published) -> None:
        published.append(each)
        sent[each.message.uuid].append(each)

    await TrafficSource(nc, made, rate_per_s=2000, rng=Random(1), interleaved=10).run(note)
    assert {job[0].uuid: job for job in made} == {uuid: [each.message for each in job] for uuid, job in sent.items()}
    assert list(range(1, len(published) + 1)) == sorted(each.sequence for each in published)
    for job in sent.values():
        assert [each.sequence for each in job] == sorted(each.sequence for each in job)
    assert len({each.message.uuid for each in published[:10]}) > 1


@pytest.mark.usefixtures("provisioned")
async def test_traffic_is_an_open_loop(nc):
    """Updates are due at equal intervals and never sent early; a late one does not delay the later ones."""
    published: list[Published] = []
    await TrafficSource(nc, jobs(10), rate_per_s=500, rng=Random(1)).run(published.append)
    due = sorted(each.due_s for each in published)
    assert [pytest.approx(0.002, abs=1e-6)] * (len(due) - 1) == [later - earlier for earlier, later in pairwise(due)]
    assert [] == [each for each in published if each.sent_s < each.due_s]


async def test_traffic_survives_a_restart_of_the_server(nats_server, nc, provisioned):
    """A publish without a PubAck is repeated with the same message id, so that the update is stored exactly once."""
    published: list[Published] = []
    halfway = asyncio.Event()
    made = jobs(20)

    def note(each: Published) -> None:
        published.append(each)
        if len(published) == 30:
            halfway.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(TrafficSource(nc, made, rate_per_s=300, rng=Random(1)).run(note))
        await halfway.wait()
        await nats_server.kill()
        await nats_server.start()
    state = (await provisioned.jetstream().stream_info("JOB_STATUS")).state
    assert sum(map(len, made)) == len(published) == state.messages


@pytest.mark.usefixtures("nats_server")
async def test_traffic_gives_up(nc):
    """If no stream takes the updates, the source ends with the reason after its time limit."""
    with pytest.raises(ExceptionGroup) as caught:
        await TrafficSource(nc, jobs(1), rate_per_s=100, rng=Random(1), patience_s=0.2).run(lambda _: None)
    assert caught.group_contains(PublishUnconfirmed, match="run `relay provision`")


async def test_traffic_without_jobs(nc):
    """With nothing to publish, the source ends at once."""
    published: list[Published] = []
    await TrafficSource(nc, [[], []], rate_per_s=100, rng=Random(1)).run(published.append)
    assert [] == published
