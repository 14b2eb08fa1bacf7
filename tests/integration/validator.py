"""A Django and Celery project with the pins of a validator, which runs the code of docs/migration.md as it stands.

`make check-integration` makes the project's environment, `.venv-integration`, and runs this. The project is in the
folder `project`; the examples of the page are its other modules. The old way needs redis-server on PATH.
"""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
import urllib.error
import urllib.request
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from polling import until
from relay_kit import Scene, counters, new_job, serving
from tcp_server import reserved_port

from relay.contract.errors import JetStreamError
from relay.contract.subjects import REQUEST_STREAM, api_consumer_info
from relay.local.facilitator import FacilitatorSimulator
from relay.nats.jetstream import api_request

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-integration" / "bin" / "python"
PAGE = (ROOT / "docs" / "migration.md").read_text()
BLOCK = r"```python\n(.*?)^```$"
EXAMPLES: dict[str, str] = dict(re.findall(rf"<!-- example: (\w+) -->\n{BLOCK}", PAGE, re.MULTILINE | re.DOTALL))
MODULES = {
    "celery": "tasks",
    "callback": "callbacks",
    "submit": "submitted",
    "views": "views",
    "both": "reporting",
    "requests": "take_requests",
}
TIMEOUT_S = 120
pytestmark = pytest.mark.timeout(300)
CHAINS = """
from celery import chain
from celery_app import app, report_in_both_ways
from callbacks import run_job
from submitted import note_received
from tasks import finish_job
import sys
way, *jobs = sys.argv[1:]
for job in jobs:
    if way == "new":
        chain(run_job.si(job), finish_job.si(job)).delay()
    elif way == "submit":
        note_received.delay(job)
    else:
        chain(*(report_in_both_ways.si(job, status) for status in ("accepted", "completed"))).delay()
"""
TAKE_REQUESTS = "import asyncio, celery_app, take_requests; asyncio.run(take_requests.main())"


class Project:
    """The validator's project in a folder of its own."""

    def __init__(self, folder: Path, nats_url: str) -> None:
        self.folder = folder
        self.environment = {"PATH": os.environ["PATH"], "RELAY_NATS_URL": nats_url, "PYTHONUNBUFFERED": "1"}
        shutil.copytree(Path(__file__).parent / "project", folder, dirs_exist_ok=True)
        for name, module in MODULES.items():
            # Less time for a view, so that the test needs less as well.
            (folder / f"{module}.py").write_text(re.sub(r"timeout_s=\d+", "timeout_s=1", EXAMPLES[name]))

    async def start(self, *arguments: str, stderr: int | None = None) -> Process:
        return await asyncio.create_subprocess_exec(
            *(PYTHON, *arguments), cwd=self.folder, env=self.environment, stderr=stderr
        )

    async def run(self, *arguments: str) -> None:
        """Run the project's Python to its end."""
        process = await self.start(*arguments)
        async with asyncio.timeout(TIMEOUT_S):
            assert 0 == await process.wait()

    @contextlib.asynccontextmanager
    async def running(self, *arguments: str) -> AsyncIterator[Process]:
        """A process that is asked to end as the block ends, and does."""
        process = await self.start(*arguments)
        try:
            yield process
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(TIMEOUT_S):
                await process.wait()

    def worker(self) -> contextlib.AbstractAsyncContextManager[Process]:
        """A Celery worker with two children, each of which ends after two tasks."""
        options = ("--pool", "prefork", "--concurrency", "2", "--loglevel", "WARNING")
        return self.running("-m", "celery", "-A", "celery_app", "worker", *options)

    @property
    def children(self) -> int:
        """How many children the worker has had."""
        return len((self.folder / "children").read_text().split())


@pytest.fixture
def project(tmp_path, nats_server) -> Project:
    return Project(tmp_path, nats_server.url)


def statuses(facilitator: FacilitatorSimulator, job: str) -> list[str]:
    return [row.status for row in facilitator.rows_of(job)]


def test_every_example_is_run():
    """Each example of the page runs here or in tests/docs/test_migration_md.py."""
    assert {"smallest", "nats_py", "async", *MODULES} == set(EXAMPLES)


async def test_worker(project: Project, scene: Scene):
    """Tasks, async callbacks and submits reach the Facilitator, while the children that run them are recycled."""
    published, submitted = ([new_job() for _ in range(12)] for _ in range(2))
    async with scene.relay():
        async with project.worker():
            await project.run("-c", CHAINS, "new", *published)
            await project.run("-c", CHAINS, "submit", *submitted)
            await scene.facilitator.wait_for(lambda facilitator: len(facilitator.rows) == 36, TIMEOUT_S)
        await scene.dust_settled()
    assert [["accepted", "completed"]] * 12 == [statuses(scene.facilitator, job) for job in published]
    assert [["received"]] * 12 == [statuses(scene.facilitator, job) for job in submitted]
    assert project.children > 12
    assert [] == await scene.dead_letters()


async def test_job_requests(project: Project, scene: Scene):
    """What the Facilitator pushes starts a task, and what came before the durable does not."""
    job = new_job()
    async with scene.relay(), project.worker():
        await scene.facilitator.wait_for(lambda facilitator: facilitator.authenticated == 1)
        await scene.facilitator.push_job_request(new_job())
        await stored_requests(scene, 1)
        async with project.running(
            "-c", "import asyncio, celery_app, take_requests; asyncio.run(take_requests.main())"
        ):
            await durable_there(scene)
            await scene.facilitator.push_job_request(job)
            await scene.facilitator.wait_for(lambda facilitator: bool(facilitator.rows), TIMEOUT_S)
            durable = await api_request(scene.nc, api_consumer_info(REQUEST_STREAM, "runner"))
        assert (1, ["accepted"]) == (durable["delivered"]["consumer_seq"], statuses(scene.facilitator, job))


async def test_views(project: Project, scene: Scene):
    """Views publish, ask and tell whether they could; with NATS away they answer before gunicorn's time is over."""
    job = new_job()
    command = ("--worker-class", "sync", "--timeout", "15", "--preload", "--bind", "127.0.0.1:0", "wsgi")
    server = await project.start("-m", "gunicorn", *command, stderr=asyncio.subprocess.PIPE)
    log = ""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while not (found := re.search(r"Listening at: (\S+)", log)):
                log += (await server.stderr.readline()).decode()
        url = found[1]
        async with serving(scene):
            assert 404 == await status_of(f"{url}/status/{job}")
            assert [204, 204] == [await status_of(f"{url}/{path}") for path in (f"accept/{job}", "ready")]
            await scene.dust_settled()
            assert 200 == await status_of(f"{url}/status/{job}")
        await scene.server.stop()
        paths = (f"accept/{job}", f"status/{job}", "ready")
        assert [503] * 3 == [await status_of(f"{url}/{path}") for path in paths]
        await scene.server.start()
        async with asyncio.timeout(TIMEOUT_S):
            while (said := await status_of(f"{url}/accept/{job}")) == 503:
                pass
        assert 204 == said
    finally:
        server.terminate()
        log += (await server.stderr.read()).decode()
        await server.wait()
    assert (1, 0) == (log.count("Booting worker"), log.count("WORKER TIMEOUT"))


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not on PATH: the old way was not run")
async def test_both_ways(project: Project, scene: Scene):
    """With the old way and the new one side by side, the Facilitator has each status once, and none is refused."""
    jobs = [new_job() for _ in range(8)]
    async with redis_server(project), scene.relay(OTHER_SENDERS="true") as relay:
        async with project.running("old_listener.py", scene.facilitator.url, *jobs) as listener, project.worker():
            await project.run("-c", CHAINS, "both", *jobs)
            async with asyncio.timeout(TIMEOUT_S):
                assert 0 == await listener.wait()
            await scene.facilitator.wait_for(lambda facilitator: len(facilitator.rows) == 16, TIMEOUT_S)
        # The worker has ended, and with it what its children had submitted.
        await scene.dust_settled()
        counted = counters(relay)
    assert [["accepted", "completed"]] * 8 == [sorted(statuses(scene.facilitator, job)) for job in jobs]
    assert 16 == counted["relay_updates acknowledged"] + counted["relay_updates duplicate"]
    assert [] == await scene.dead_letters()


async def stored_requests(scene: Scene, count: int) -> None:
    async def stored() -> bool:
        return (await scene.nc.jetstream().stream_info(REQUEST_STREAM)).state.messages >= count

    await until(stored, TIMEOUT_S)


async def durable_there(scene: Scene) -> None:
    async def there() -> bool:
        with contextlib.suppress(JetStreamError):
            await api_request(scene.nc, api_consumer_info(REQUEST_STREAM, "runner"))
            return True
        return False

    await until(there, TIMEOUT_S)


async def status_of(url: str) -> int:
    """The HTTP status of a GET."""

    def get() -> int:
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
                return response.status
        except urllib.error.HTTPError as error:
            return error.code

    return await asyncio.to_thread(get)


@contextlib.asynccontextmanager
async def redis_server(project: Project) -> AsyncIterator[None]:
    """The project's Redis, on a free port."""
    with reserved_port() as port:
        options = ("--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(project.folder))
        process = await asyncio.create_subprocess_exec("redis-server", *options, stdout=asyncio.subprocess.PIPE)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while b"Ready to accept connections" not in await process.stdout.readline():
                    assert process.returncode is None
            project.environment["REDIS_URL"] = f"redis://127.0.0.1:{port}"
            yield
        finally:
            process.terminate()
            await process.communicate()


if not PYTHON.exists():
    sys.exit("There is no .venv-integration: run `make check-integration`.")
