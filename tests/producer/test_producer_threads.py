"""SyncStatusPublisher: threads, forks, and the end of the program."""

import asyncio
import contextlib
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Awaitable, Callable

import pytest
from producer_kit import numbered, stored, update
from relay_kit import new_job

from relay.contract.model import JobStatusUpdate
from relay.producer import Limits, PublisherClosed, PublisherFull, PublishHeldBack, PublishTimedOut, SyncStatusPublisher
from relay.producer.publisher_thread import PublisherThread

A, B = new_job(), new_job()
THREADS, UPDATES = 8, 100
PREAMBLE = """
import os, sys
from relay.producer import JobStatusUpdate, Limits, SyncStatusPublisher

publisher = SyncStatusPublisher(sys.argv[1])
A, B = sys.argv[2:]

def publish(job, status):
    return publisher.publish(JobStatusUpdate(uuid=job, status=status)).sequence

def submit(job, number):
    return publisher.submit(JobStatusUpdate(uuid=job, status='failed', metadata={'n': number}))

def sockets():
    paths = (os.path.realpath('/proc/self/fd/' + number) for number in os.listdir('/proc/self/fd'))
    return {path.rpartition('/')[2] for path in paths if 'socket:' in path}
"""

PATIENT = """
from relay.producer import publisher_thread
publisher_thread._FLUSH_AT_EXIT_S = 10  # the machine may be busy
"""


@pytest.fixture
def run_script(nats_server) -> Callable[..., Awaitable[tuple[int, str, str]]]:
    """Run a program that begins with `first` and PREAMBLE; returns its exit code, output and errors."""

    async def run(script: str, first: str = "") -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", first + PREAMBLE + textwrap.dedent(script), nats_server.url, A, B),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(30):
            out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()

    return run


@pytest.mark.usefixtures("provisioned")
async def test_many_threads(nats_server):
    """Updates from many threads are stored once, a job's in the order of the calls, even if threads share a job.

    Nothing is lost when the server dies and restarts meanwhile.
    """
    own = {job: numbered(job, UPDATES) for job in [new_job() for _ in range(THREADS)]}
    shared: list[JobStatusUpdate] = []
    taking_turns, half_done = threading.Lock(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def work(publisher: SyncStatusPublisher, updates: list[JobStatusUpdate], name: int) -> None:
        for number, each in enumerate(updates):
            publisher.publish(each)
            with taking_turns:
                shared.append(update(A, thread=name, number=number))
                later = publisher.submit(shared[-1])
            if number % 10 == 0:
                later.result()
            if number == UPDATES // 2:
                loop.call_soon_threadsafe(half_done.set)

    publisher = SyncStatusPublisher(nats_server.url)
    async with asyncio.TaskGroup() as threads:
        for name, updates in enumerate(own.values()):
            threads.create_task(asyncio.to_thread(work, publisher, updates, name))
        await half_done.wait()
        await nats_server.kill()
        await nats_server.start()
    await asyncio.to_thread(publisher.close)
    assert {**own, A: shared} == await stored(nats_server)


async def test_errors(nats_server):
    """Errors are raised in the thread that waits, and are the same as in StatusPublisher."""

    def fail() -> list[type[Exception]]:
        with SyncStatusPublisher(nats_server.url, limits=Limits(timeout_s=0.2, max_updates=2)) as publisher:
            first, second = publisher.submit(update(A)), publisher.submit(update(A, "completed"))
            with pytest.raises(PublisherFull):
                publisher.submit(update(B))
            errors = [first.exception(), second.exception()]
        with pytest.raises(PublisherClosed):
            publisher.publish(update(A))
        return [type(error) for error in errors]

    assert [PublishTimedOut, PublishHeldBack] == await asyncio.to_thread(fail)


@pytest.mark.parametrize(("close_timeout_s", "unpublished"), [(5, ()), (0.1, (f"accepted of job {A}",))])
async def test_close(nats_server, played, close_timeout_s, unpublished):
    """`close` publishes what waits, and names what gets no PubAck in time; then the thread has ended."""
    publisher = SyncStatusPublisher(nats_server.url, limits=Limits(close_timeout_s=close_timeout_s))
    await asyncio.to_thread(publisher.submit, update(A))
    heard = await played.hear()
    closing = asyncio.create_task(asyncio.to_thread(publisher.close))
    if unpublished:
        with pytest.raises(PublisherClosed) as caught:
            await closing
        assert unpublished == caught.value.unpublished
    else:
        await played.acknowledge(heard)
        await closing
    assert [] == [thread for thread in threading.enumerate() if thread.name == "relay-producer"]


async def test_thread_that_does_not_run(nats_server, played):
    """If the publisher's thread does not run, a publish ends with an error, and does not block forever."""
    publisher = SyncStatusPublisher(nats_server.url, limits=Limits(close_timeout_s=0))
    await asyncio.to_thread(publisher.submit, update(B))
    await played.hear()
    stuck = threading.Event()
    publisher._queue._thread.call_soon(stuck.wait)
    with pytest.raises(PublishTimedOut, match="thread does not run"):
        await asyncio.to_thread(publisher.publish, update(A), timeout_s=0.1)
    stuck.set()
    with contextlib.suppress(PublisherClosed):
        await asyncio.to_thread(publisher.close)


@pytest.mark.usefixtures("provisioned")
async def test_fork(nats_server, run_script):
    """A publisher that is made before a fork works in parent and children, each over a connection of its own."""
    code, out, err = await run_script(
        """
        def fork(status):
            of_parent = sockets()
            if child := os.fork():
                return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            inherited = sockets() & of_parent
            publish(B, status)
            if status == 'completed':
                publisher.close()
            # asyncio's own pair of sockets, by which nobody else can be reached
            os._exit(0 if len(inherited) <= 1 else 3)

        unused = fork('received')
        publish(A, 'received')
        used = fork('accepted')
        publish(A, 'accepted')
        print(unused, used, fork('completed'))
        publish(A, 'failed')
        """
    )
    assert (0, "0 0 0\n") == (code, out), err
    statuses = {job: [each.status for each in updates] for job, updates in (await stored(nats_server)).items()}
    assert {A: ["received", "accepted", "failed"], B: ["received", "accepted", "completed"]} == statuses


@pytest.mark.usefixtures("provisioned")
async def test_fork_under_gevent(nats_server, run_script):
    """The same where gevent has replaced threads and sockets: the parent's greenlet does not go on in the child."""
    code, out, err = await run_script(
        """
        publish(A, 'received')
        if child := os.fork():
            publish(A, 'accepted')
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            publish(A, 'completed')
            publisher.close()
        else:
            publish(B, 'received')
            publish(B, 'accepted')
            publisher.close()
            os._exit(0)
        """,
        first="from gevent import monkey\nmonkey.patch_all()\n",
    )
    assert (0, "0\n", "") == (code, out, err)
    statuses = {job: [each.status for each in updates] for job, updates in (await stored(nats_server)).items()}
    assert {A: ["received", "accepted", "completed"], B: ["received", "accepted"]} == statuses


@pytest.mark.usefixtures("provisioned")
async def test_child_leaves_the_parents_updates_alone(nats_server, run_script):
    """What waits in the parent is published by the parent: the child neither publishes nor reports it."""
    code, _, err = await run_script(
        """
        waiting = [submit(A, number) for number in range(100)]
        if not os.fork():
            sys.exit()
        publisher.close()
        os.wait()
        print([each.result() for each in waiting], file=sys.stderr)
        """
    )
    assert 0 == code, err
    assert "duplicate=True" not in err
    assert "unpublished" not in err
    assert 100 == len((await stored(nats_server))[A])


@pytest.mark.usefixtures("provisioned")
@pytest.mark.parametrize("count", [1, 20])
async def test_forgotten_close(nats_server, run_script, count):
    """What a program submits without waiting is stored when it ends, even without `close` and a connection so far."""
    code, _, err = await run_script(f"for number in range({count}): submit(A, number)", first=PATIENT)
    assert (0, "") == (code, err)
    assert count == len((await stored(nats_server))[A])


@pytest.mark.usefixtures("provisioned")
async def test_forgotten_close_with_a_silent_server(nats_server, run_script):
    """A program without `close` whose server does not answer any more ends, and says how many updates are lost."""
    try:
        code, _, err = await run_script(
            """
            import signal
            publish(A, 'accepted')
            os.kill(SERVER, signal.SIGSTOP)
            while ' T ' not in open('/proc/SERVER/stat').read():
                pass
            for _ in range(500):
                submit(A, 1), submit(B, 1)
            """.replace("SERVER", str(nats_server.pid))
        )
    finally:
        os.kill(nats_server.pid, signal.SIGCONT)
    assert 0 == code
    assert "the program ended with 1000 updates unpublished" in err


async def test_forgotten_close_without_a_server(nats_server, run_script):
    """A program without `close` ends while NATS is away, and says how many updates are lost."""
    await nats_server.stop()
    code, _, err = await run_script("submit(A, 1), submit(B, 1)")
    assert 0 == code
    assert "the program ended with 2 updates unpublished" in err
    assert A in err


def test_thread_hangs_at_the_end():
    """A thread that hangs, as in looking up a name, is given up after the time, with the names of what it has left."""
    go_on = threading.Event()

    class Hanging:
        async def close(self, _timeout_s: float) -> list[str]:
            go_on.wait()
            return []

        def waiting(self) -> list[str]:
            return ["failed of a job"]

    thread = PublisherThread(Hanging())
    try:
        assert ["failed of a job"] == thread.close(0, at_most_s=0.05)
    finally:
        go_on.set()
        thread._thread.join()
        thread._loop.close()
