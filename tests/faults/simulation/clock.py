"""Virtual time, and processes that live in it.

Each process has an event loop of its own, so that it can be killed or stopped at any moment: its loop is simply not
run any more. `Clock.run` lets every process run until it has nothing left to do, and only then moves time on, to the
next event. Nothing really waits, and nothing depends on the speed of the machine.
"""

import asyncio
import heapq
import itertools
import math
from collections.abc import Callable, Coroutine
from typing import Any

_RESOLUTION_S = 1e-9
"""The resolution of an event loop's timers: what is due within it is due now."""
_EPOCH_S = 1.7e9
_MAX_TURNS = 20_000
"""A process that takes more turns than this at one instant is spinning."""
_MAX_FUNERAL_TURNS = 50


class Spinning(Exception):  # noqa: N818 - named for what was found
    """A process never waits, so that time cannot move on."""


class Clock:
    """The time, the pending events and the processes. It replaces the module `time` in the modules under test."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.processes: list[Process] = []
        self.running: Process | None = None
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = itertools.count()

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return _EPOCH_S + self.now

    def at(self, when_s: float, call: Callable[..., None], *args: Any) -> None:
        """Call back at `when_s`; calls that are due at the same time are made in the order of scheduling."""
        heapq.heappush(self._due, (when_s, next(self._serial), call, args))

    def after(self, delay_s: float, call: Callable[..., None], *args: Any) -> None:
        self.at(self.now + delay_s, call, *args)

    def run(self, done: Callable[[], bool], until_s: float) -> bool:
        """Let time pass until `done()`; False if that is not reached by `until_s`."""
        while not done():
            for process in list(self.processes):
                process.run()
            next_s = min((process.due_s for process in self.processes), default=math.inf)
            if self._due:
                next_s = min(next_s, self._due[0][0])
            if next_s > until_s:
                self.now = until_s
                return done()
            self.now = max(self.now, next_s)
            while self._due and self._due[0][0] <= self.now:
                _, _, call, args = heapq.heappop(self._due)
                call(*args)
        return True


class Process:
    """One process: everything that `main` starts runs in it, and ends with it.

    Args:
        ended: called when `main` returns, or with what it raised.
    """

    def __init__(self, clock: Clock, name: str, ended: Callable[[BaseException | None], None]) -> None:
        self.name = name
        self.alive = True
        self._stopped = False
        self._clock = clock
        self._ended = ended
        self._wake_s = math.inf
        self._turns = 0
        self._interruption: tuple[int, Callable[[], None]] | None = None
        self._main: asyncio.Task[None] | None = None
        self.loop = asyncio.SelectorEventLoop(_NoFiles(self._turn, self._idle))  # type: ignore[arg-type]
        self.loop.time = clock.monotonic
        self.loop.set_task_factory(_make_task)  # type: ignore[arg-type]
        clock.processes.append(self)

    def __repr__(self) -> str:
        return f"<Process {self.name}{'' if self.alive else ', dead'}{', stopped' if self._stopped else ''}>"

    @property
    def due_s(self) -> float:
        """When the process next has something to do."""
        return math.inf if self._stopped else self._wake_s

    def start(self, main: Coroutine[Any, Any, None]) -> None:
        self._main = self.loop.create_task(main)
        self._wake_s = self._clock.now

    def post(self, call: Callable[..., Any], *args: Any) -> None:
        """Call `call` in the process as soon as it runs, as for input from outside; never, if it is dead."""
        if self.alive:
            self.loop.call_soon(call, *args)
            self._wake_s = self._clock.now

    def run(self) -> None:
        """Run until there is nothing left to do at this moment."""
        if self._stopped or self._wake_s > self._clock.now:
            return
        assert self._main is not None, "it was never started"
        self._turns = 0
        self._clock.running = self
        self.loop.run_forever()
        self._clock.running = None
        if self._interruption is not None and self._interruption[0] < 0:
            (_, act), self._interruption = self._interruption, None
            act()
        if self.alive and self._main.done():
            self.kill()
            self._ended(self._main.exception())

    def interrupt(self, after_turns: int, act: Callable[[], None]) -> None:
        """Call `act` after that many turns of the event loop, so that it interrupts the process's work."""
        if after_turns:
            self._interruption = (after_turns, act)
        else:
            act()

    def kill(self) -> None:
        """As SIGKILL does: the process never runs again."""
        self.alive = False
        self._clock.processes.remove(self)

    def stop(self) -> None:
        """As SIGSTOP does: the process does not run until `resume`."""
        self._stopped = True

    def resume(self) -> None:
        """As SIGCONT does: input that arrived meanwhile is handled first, then the overdue timers."""
        self._stopped = False
        self._wake_s = min(self._wake_s, self._clock.now) if self.alive else math.inf

    def bury(self) -> None:
        """Cancel the dead process's tasks silently; call it when its connections are closed and nothing observes it."""
        self.loop.set_exception_handler(lambda *_: None)
        for _ in range(_MAX_FUNERAL_TURNS):
            if not (tasks := asyncio.all_tasks(self.loop)):
                break
            for task in tasks:
                task.cancel()
            self._turns = 0
            self.loop.run_forever()
        self.loop.close()

    def _turn(self) -> None:
        # A turn takes time, as in reality: code that wakes slightly early and checks the time again must see it move
        # on.
        self._clock.now += _RESOLUTION_S
        self._turns += 1
        if self._turns > _MAX_TURNS:
            raise Spinning(f"{self.name} took {_MAX_TURNS} turns without waiting for anything")
        if self._interruption is not None:
            left, act = self._interruption
            self._interruption = (left - 1, act)
            if left <= 0:
                self._wake_s = self._clock.now
                self.loop.stop()

    def _idle(self, for_s: float | None) -> None:
        self._wake_s = math.inf if for_s is None else self._clock.now + for_s
        self.loop.stop()


class _NoFiles:
    """A selector without files: when the event loop would wait in it, it calls back. Its wake-up pipe is unused."""

    def __init__(self, turn: Callable[[], None], idle: Callable[[float | None], None]) -> None:
        self._turn = turn
        self._idle = idle

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is not None and timeout <= _RESOLUTION_S:
            self._turn()
        else:
            self._idle(timeout)
        return []

    def get_key(self, fileobj: Any) -> Any:
        raise KeyError(fileobj)

    def register(self, fileobj: Any, events: int, data: Any = None) -> None:
        pass

    def close(self) -> None:
        pass


_serials = itertools.count()


class _Task(asyncio.Task[Any]):
    """A task whose hash does not depend on its address: task groups cancel tasks in the order of a set."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._serial = next(_serials)
        super().__init__(*args, **options)

    def __hash__(self) -> int:
        return self._serial

    def __eq__(self, other: object) -> bool:
        return self is other


def _make_task(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any) -> _Task:
    return _Task(coroutine, loop=loop, **options)
