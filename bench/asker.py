"""The open-loop asker: `python -m bench.asker URL --jobs N --rate R --seconds S [--to server]`.

Question k, on `job.query.<uuid>` about one of the first N jobs of `load.job_uuids`, is due at start + k / rate, however
long the answers take. Its time is counted from when it was due. `--to server` asks nats-server itself for the job's
last stored update, which the relay must do for each answer: this is the floor. At the end it prints one line of JSON:
`asked`, `refused` (each kind of error, or of missing answer, with its count), `pending` (how many answers say so), and
`latencies_ms` in order.
"""

import argparse
import gc
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from random import Random
from typing import Any, Final

import msgspec

from bench.arrivals import say
from bench.load import job_uuids
from bench.nats_line import NatsLine
from bench.publisher import wake_up_in_time
from relay.contract.subjects import STATUS_STREAM, api_message_get, job_filter, query_subject
from relay.nats.frames import publication
from relay.query.replies import UpdateProgress

_PATIENCE_S: Final = 5.0
"""How long to wait for the last answers."""
_FIRST_ONES: Final = 50
"""A new process takes longer for its first questions; these are not counted."""
_HEAD_START_S: Final = 0.02
NO_ANSWER: Final = "no answer"


class _Answer(msgspec.Struct):
    """The fields of an answer, of the relay or of the server, that are looked at."""

    progress: UpdateProgress | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Answer).decode


def to_relay(job: str) -> tuple[str, bytes]:
    return query_subject(job), b""


def to_server(job: str) -> tuple[str, bytes]:
    return api_message_get(STATUS_STREAM), msgspec.json.encode({"last_by_subj": job_filter(job)})


class Asker:
    """Asks over a connection of its own, which the caller closes.

    Args:
        question: the subject and the body of a request about a job.
        patience_s: how long to wait for answers after the last question.
    """

    def __init__(
        self, url: str, question: Callable[[str], tuple[str, bytes]], *, patience_s: float = _PATIENCE_S
    ) -> None:
        self._question = question
        self._patience_s = patience_s
        self._answers: list[tuple[int, float, bytes]] = []
        """For each answer: the number of its question, when it came, and its bytes. They are decoded after the run."""
        self._line = NatsLine(url, self._take)

    def close(self) -> None:
        self._line.close()

    def ask(self, jobs: Sequence[str], rate: float) -> dict[str, Any]:
        """Ask about each of `jobs`, `rate` questions a second, and wait for the answers."""
        questions = [self._lines(number, job) for number, job in enumerate(jobs)]
        self._answers.clear()
        began_s = time.monotonic() + _HEAD_START_S
        end_s = began_s + len(jobs) / rate + self._patience_s
        asked = 0
        while len(self._answers) < len(jobs) and (now_s := time.monotonic()) < end_s:
            due = min(len(jobs), int((now_s - began_s) * rate) + 1) if now_s >= began_s else 0
            if due > asked:
                self._line.send(b"".join(questions[asked:due]))
                asked = due
            next_s = began_s + asked / rate if asked < len(jobs) else end_s
            self._line.read(next_s - time.monotonic())
        return self._summary(len(jobs), lambda number: began_s + number / rate)

    def _lines(self, number: int, job: str) -> bytes:
        subject, body = self._question(job)
        return publication(subject.encode(), body, b"%b.%d" % (self._line.inbox, number))

    def _take(self, subject: bytes, answer: bytes) -> None:
        self._answers.append((int(subject[subject.rindex(b".") + 1 :]), time.monotonic(), answer))

    def _summary(self, asked: int, due_s: Callable[[int], float]) -> dict[str, Any]:
        refused: Counter[str] = Counter()
        pending = 0
        for _, _, content in self._answers:
            if content.startswith(b"NATS/1.0"):
                refused[content.decode().strip()] += 1
                continue
            answer = _decode(content)
            if answer.error is not None:
                refused[str(answer.error)] += 1
            elif answer.progress is UpdateProgress.PENDING:
                pending += 1
        if missing := asked - len(self._answers):
            refused[NO_ANSWER] = missing
        latencies_ms = [round(1e3 * (came_s - due_s(number)), 4) for number, came_s, _ in self._answers]
        return {"asked": asked, "refused": refused, "pending": pending, "latencies_ms": latencies_ms}


def main() -> None:
    arguments = argparse.ArgumentParser(prog="python -m bench.asker", description="the open-loop asker")
    arguments.add_argument("url")
    arguments.add_argument("--jobs", type=int, default=1000)
    arguments.add_argument("--rate", type=float, default=500.0)
    arguments.add_argument("--seconds", type=float, default=1.0)
    arguments.add_argument("--to", choices=("relay", "server"), default="relay")
    options = arguments.parse_args()
    wake_up_in_time()
    jobs, rng = job_uuids(options.jobs), Random(1)
    with closing(Asker(options.url, to_server if options.to == "server" else to_relay)) as asker:
        asker.ask(rng.choices(jobs, k=_FIRST_ONES), options.rate)
        wanted = rng.choices(jobs, k=round(options.rate * options.seconds))
        gc.freeze()
        gc.disable()
        say(asker.ask(wanted, options.rate))


if __name__ == "__main__":
    main()
