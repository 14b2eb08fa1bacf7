"""The workers of one parent as probes see them: their answers, put together into those of one port."""

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics
from prometheus_client.exposition import generate_latest

from relay.service.channel import METRICS, MISSING, NoAnswer, WorkerChannel
from relay.service.exposition import merge

_ANSWER_WITHIN_S: Final = 1.0
"""A probe waits no longer for a worker than it may let its own client wait."""
_METRICS_WITHIN_S: Final = 3.0
"""They are made slowly, so as not to disturb what the worker is for; Prometheus waits for 10 s."""
_LOOK_EVERY_S: Final = 1.0
_HANGS_AFTER_S: Final = 10.0
_STARTS_WITHIN_S: Final = 60.0
"""Opening an encrypted hotkey takes seconds, on a busy machine many of them."""


@dataclass(slots=True)
class _Life:
    """A worker that runs."""

    channel: WorkerChannel
    began_s: float
    answered_s: float | None = None

    def silent_s(self, now: float) -> float | None:
        """For how long it has said nothing, if that is too long."""
        since_s, patience_s = self.began_s, _STARTS_WITHIN_S
        if self.answered_s is not None:
            since_s, patience_s = self.answered_s, _HANGS_AFTER_S
        return now - since_s if now - since_s > patience_s else None

    async def ask(self, question: bytes, timeout_s: float) -> bytes:
        answer = await self.channel.ask(question, timeout_s)
        self.answered_s = time.monotonic()
        return answer


class WorkerProbes:
    """The answers of `workers` workers, numbered from 0; see health.py."""

    def __init__(self, workers: int) -> None:
        self._lives: dict[int, _Life | None] = dict.fromkeys(range(workers))
        disable_created_metrics()
        self._registry = CollectorRegistry()
        up = Gauge("relay_worker_up", "1 if the worker gave its metrics, else 0.", ["worker"], registry=self._registry)
        restarts = Counter(
            "relay_worker_restarts", "Times that a dead worker was started again.", ["worker"], registry=self._registry
        )
        self._up = [up.labels(str(worker)) for worker in self._lives]
        self._restarts = [restarts.labels(str(worker)) for worker in self._lives]

    async def watch(self, worker: int, channel: WorkerChannel) -> None:
        """Ask a worker how it is for as long as it lives: until the channel ends, or until cancelled."""
        life = self._lives[worker] = _Life(channel, time.monotonic())
        looking = asyncio.create_task(self._look(life))
        try:
            await channel.run()
        finally:
            looking.cancel()
            self._lives[worker] = None

    def restarted(self, worker: int) -> None:
        """A worker that died is started again."""
        self._restarts[worker].inc()

    def hung(self) -> Sequence[str]:
        now = time.monotonic()
        silent = {worker: life.silent_s(now) for worker, life in self._lives.items() if life is not None}
        return [
            f"worker {worker}: no answer for {silent_s:.0f} s; its event loop stands still"
            for worker, silent_s in silent.items()
            if silent_s is not None
        ]

    async def readiness(self) -> Mapping[str, Any]:
        """As of one worker; in `missing` each says its number first, and `workers` has them one by one."""
        missing = await asyncio.gather(*map(self._missing, self._lives))
        return {
            "ready": not any(missing),
            "missing": [f"worker {worker}: {each}" for worker, found in enumerate(missing) for each in found],
            "workers": [
                {"worker": worker, "ready": not found, "missing": found} for worker, found in enumerate(missing)
            ],
        }

    async def exposition(self) -> bytes:
        """The metrics of all workers that answer in time, each series with the label `worker`."""
        given = await asyncio.gather(*map(self._exposition, self._lives))
        for worker, text in enumerate(given):
            self._up[worker].set(text is not None)
        merged = merge({worker: text for worker, text in enumerate(given) if text is not None})
        return generate_latest(self._registry) + merged.encode()

    async def _missing(self, worker: int) -> list[str]:
        try:
            found: list[str] = json.loads(await self._ask(worker, MISSING, _ANSWER_WITHIN_S))
        except NoAnswer as silent:
            return [str(silent)]
        return found

    async def _exposition(self, worker: int) -> str | None:
        try:
            return (await self._ask(worker, METRICS, _METRICS_WITHIN_S)).decode()
        except NoAnswer:
            return None

    async def _ask(self, worker: int, question: bytes, timeout_s: float) -> bytes:
        life = self._lives[worker]
        if life is None:
            raise NoAnswer("it is not running; the parent starts it again")
        return await life.ask(question, timeout_s)

    async def _look(self, life: _Life) -> None:
        """Ask the one question that every worker whose event loop runs can answer, again and again."""
        while True:
            with contextlib.suppress(NoAnswer):  # how long it has been so is what counts
                await life.ask(MISSING, _HANGS_AFTER_S)
            await asyncio.sleep(_LOOK_EVERY_S)
