"""The open-loop asker: `python -m bench.asker URL --jobs N --rate R --seconds S [--to server]`.

Question k, on `job.query.<uuid>` about one of the first N jobs of `load.job_uuids`, is due at start + k / rate,
however long the answers take, and its time is counted from then. `--to server` asks nats-server itself for the job's
last stored update, as the relay has to do for its answer: the floor. Prints one line of JSON at the end: `asked`,
`refused` (what the errors were, or that there was no answer, and how often), `pending` (answers that say so), and
`latencies_ms` in order.
"""

import argparse
import asyncio
import gc
import selectors
import time
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any, Final

import msgspec
import nats.errors
from nats.aio.client import Client

from bench.arrivals import say
from bench.load import job_uuids
from relay.broker.connection import close, connect
from relay.query.replies import Progress
from relay.settings import NatsSettings
from relay.subjects import STATUS_STREAM, api_message_get, job_filter, query_subject

_TIMEOUT_S: Final = 5.0


class _Answer(msgspec.Struct):
    """As much of either's answer as is looked at."""

    progress: Progress | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Answer).decode


def to_relay(job: str) -> tuple[str, bytes]:
    return query_subject(job), b""


def to_server(job: str) -> tuple[str, bytes]:
    return api_message_get(STATUS_STREAM), msgspec.json.encode({"last_by_subj": job_filter(job)})


class Tally:
    """What the questions led to.

    Args:
        question: the subject and the body of a request about a job.
    """

    def __init__(self, question: Callable[[str], tuple[str, bytes]]) -> None:
        self._question = question
        self.latencies_ms: list[float] = []
        self.refused: Counter[str] = Counter()
        self.pending = 0

    async def ask(self, nc: Client, job: str, due_s: float) -> None:
        subject, body = self._question(job)
        try:
            reply = await nc.request(subject, body, timeout=_TIMEOUT_S)
        except nats.errors.Error as error:
            self.refused[repr(error)] += 1
            return
        self.latencies_ms.append(1e3 * (time.monotonic() - due_s))
        if reply.headers:
            self.refused[" ".join(reply.headers.values())] += 1
            return
        answer = _decode(reply.data)
        if answer.error is not None:
            self.refused[str(answer.error)] += 1
        elif answer.progress is Progress.PENDING:
            self.pending += 1


async def ask_all(options: argparse.Namespace) -> None:
    nc = await connect(NatsSettings(urls=(options.url,)), name="asker")
    question = to_server if options.to == "server" else to_relay
    jobs, rng, tally = job_uuids(options.jobs), Random(1), Tally(question)
    total = round(options.rate * options.seconds)
    for _ in range(50):  # the first ones of any process take longer
        await Tally(question).ask(nc, rng.choice(jobs), time.monotonic())
    gc.freeze()
    gc.disable()
    began_s = time.monotonic() + 0.02
    async with asyncio.TaskGroup() as group:
        for number in range(total):
            due_s = began_s + number / options.rate
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            group.create_task(tally.ask(nc, rng.choice(jobs), due_s))
    say(
        {
            "asked": total,
            "refused": tally.refused,
            "pending": tally.pending,
            "latencies_ms": [round(each, 4) for each in tally.latencies_ms],
        }
    )
    await close(nc)


def main() -> None:
    arguments = argparse.ArgumentParser(prog="python -m bench.asker", description="the open-loop asker")
    arguments.add_argument("url")
    arguments.add_argument("--jobs", type=int, default=1000)
    arguments.add_argument("--rate", type=float, default=500.0)
    arguments.add_argument("--seconds", type=float, default=1.0)
    arguments.add_argument("--to", choices=("relay", "server"), default="relay")
    # epoll and uvloop count their timeouts in milliseconds, select in microseconds.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(ask_all(arguments.parse_args()))


if __name__ == "__main__":
    main()
