"""The replaced design with Celery: one listener per job hands each update over to a worker process, which forwards it.

The listener is that of `bench.systems.listener`. The broker is Redis. The worker keeps one WebSocket open
(`websockets.sync`), and waits for the Facilitator's reply to an update before it takes the next.

Set up as Celery's guides "Optimizing" and "Tasks" recommend for many short tasks: a large prefetch multiplier, results
ignored, no events; and without what a single worker does not need (gossip, mingle, heartbeats). The pool is `prefork`,
the recommended default, with a concurrency of 1: two would be two connections, on which a job's updates overtake each
other. (`solo` costs a little less CPU time, but carried fewer updates a second.) Celery's default, early
acknowledgement, is kept; it costs less than `acks_late`.
"""

import asyncio
import json
import os
import sys
from typing import Any, Final

import uvloop
from celery import Celery, signals
from websockets.sync.client import ClientConnection, connect

from bench.systems.listener import listen_to_all
from relay.service.children import die_with_parent

PREFETCH: Final = 128
_END_S: Final = 4.0
_READY: Final = "ready"

app = Celery("bench", broker=os.environ["BENCH_REDIS_URL"])
app.conf.update(
    task_ignore_result=True,
    task_store_errors_even_if_ignored=False,
    worker_prefetch_multiplier=PREFETCH,
    worker_redirect_stdouts=False,  # stdout is how the worker tells its parent that it is ready
    broker_connection_retry_on_startup=True,
)
_sockets: list[ClientConnection] = []
"""The one connection of the pool's process; it is opened before the first task."""


@signals.worker_process_init.connect
def open_connection(**_: Any) -> None:
    socket = connect(os.environ["BENCH_FACILITATOR_URL"], compression=None, proxy=None)
    socket.send("{}")
    socket.recv()
    _sockets.append(socket)


@signals.worker_ready.connect
def tell_parent(**_: Any) -> None:
    print(_READY, flush=True)


@app.task(name="bench.forward")
def forward(payload: dict[str, Any]) -> None:
    """Send one update and wait for its reply."""
    (socket,) = _sockets
    socket.send(json.dumps(payload))
    reply = socket.recv()
    if json.loads(reply)["status"] != "success":
        raise RuntimeError(f"the sink refused an update: {reply!r}")


async def start_worker() -> asyncio.subprocess.Process:
    """Start a Celery worker, and return once it takes tasks. Raises RuntimeError if it ends before."""
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "celery", "--app", "bench.systems.celery_relay", "--quiet", "worker"),
        *("--pool", "prefork", "--concurrency", "1", "--loglevel", "WARNING"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        stdout=asyncio.subprocess.PIPE,
        preexec_fn=die_with_parent(),
    )
    assert worker.stdout is not None
    async for line in worker.stdout:
        if line.decode().strip() == _READY:
            return worker
    raise RuntimeError(f"the Celery worker ended with exit status {await worker.wait()} before it was ready")


async def end(worker: asyncio.subprocess.Process) -> None:
    """A warm shutdown (SIGTERM), or SIGKILL if that takes too long."""
    if worker.returncode is not None:
        raise RuntimeError(f"the Celery worker ended by itself with exit status {worker.returncode}")
    worker.terminate()
    try:
        async with asyncio.timeout(_END_S):
            await worker.wait()
    except TimeoutError:
        worker.kill()
        await worker.wait()


async def hand_over(payload: dict[str, Any]) -> None:
    # Blocks the loop while Redis takes the task. `delay` did so in the replaced design, too.
    forward.delay(payload)  # pyright: ignore[reportFunctionMemberAccess]  # Celery comes without types


async def main() -> None:
    worker = await start_worker()
    try:
        await listen_to_all(hand_over)
    finally:
        await end(worker)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
