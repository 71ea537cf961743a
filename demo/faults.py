"""Faults that the demo causes in working workers: cut, freeze, kill."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from demo.report import Show
from demo.tasks import Tasks
from demo.watch import Watch
from demo.workers import PREFETCH, WorkerProcess
from warren.store.database import Store
from warren.testing.proxy import TcpProxy

# Part of the tasks that have their result by then. A fault begins when the one before is over. What a frozen
# worker had can come back behind all that waits, so little should wait by then.
CUT_AT, FREEZE_AT, KILL_AT = 0.1, 0.5, 0.7
TICK: Final = 0.1  # seconds between two looks at how far it is
BACK_AT_MOST: Final = 4.0  # seconds that a worker may take to come back after the cut
FULL_AT_MOST: Final = 1.0  # seconds that the one to be frozen, or killed, has to fill up
FROZEN_AT_MOST: Final = 7.0  # seconds, and less than an attempt may take


@dataclass(frozen=True, slots=True)
class Cast:
    """A worker, and the proxy that all its connections go through."""

    worker: WorkerProcess
    proxy: TcpProxy


class Faults:
    """The faults, in their order: of the cast the first is killed, the second frozen, and all are cut off.

    `met` says which have happened so far.
    """

    def __init__(self, tasks: Tasks, watch: Watch, store: Store, show: Show, cast: Sequence[Cast]) -> None:
        self._tasks, self._watch, self._store, self._show = tasks, watch, store, show
        self._cast, self._first, self._second = cast, cast[0], cast[1]
        self._taken = 0
        self.met: list[str] = []

    async def run(self) -> None:
        """Do each as soon as enough tasks are done."""
        plan: tuple[tuple[float, Callable[[], Awaitable[None]]], ...] = (
            (CUT_AT, self._cut),
            (FREEZE_AT, self._freeze),
            (KILL_AT, self._kill),
        )
        for share, act in plan:
            await _until(lambda: self._done >= share * len(self._tasks.paths))  # noqa: B023 - awaited here
            await act()

    @property
    def _done(self) -> int:
        return len(self._tasks.results)

    async def _cut(self) -> None:
        """Cut, and wait until the one that will be frozen is back: there must be something to give up."""
        before = self._redelivered(self._second)
        number = sum(one.proxy.cut() for one in self._cast)
        self.met.append("cut connections")
        self._say(f"cut {number} connections of the workers")
        await _until(lambda: self._redelivered(self._second) > before, BACK_AT_MOST)

    async def _freeze(self) -> None:
        """Stop a process for so long that the broker gives it up and the other takes its tasks over.

        When it goes on it does not know: its runs are late twins.
        """
        worker = self._second.worker
        await self._filled(worker)
        # SQLite has one writer: a process that is stopped amid a write holds up all others. While we hold
        # the store, no process writes.
        await self._store.run(lambda _: worker.freeze())
        running = self._watch.running([worker.pid])
        self.met.append("a frozen worker")
        self._say(f"froze worker {worker.pid} with {running} tasks in it")
        try:
            given_up = await _until(self._given_up, FROZEN_AT_MOST / 2)
            enough = self._taken + max(1, running // 2)
            taken = await _until(lambda: self._redelivered_to_others() >= enough, FROZEN_AT_MOST / 2)
        finally:
            worker.thaw()
        if given_up and taken:
            self._say(f"worker {worker.pid} goes on, and does not know that others have its tasks")
        else:
            self._say(f"worker {worker.pid} goes on; not much of it was taken over in time")

    def _given_up(self) -> bool:
        """Whether the broker has closed the connections; until then, note what others have taken so far."""
        if self._second.proxy.connections:
            self._taken = self._redelivered_to_others()
        return not self._second.proxy.connections

    async def _kill(self) -> None:
        """Kill, so that what it had is run by others."""
        worker = self._first.worker
        await self._filled(worker)
        worker.kill()
        self.met.append("a killed worker")
        running = self._watch.running([worker.pid])
        self._say(f"killed worker {worker.pid} with {running} tasks in it")

    async def _filled(self, worker: WorkerProcess) -> None:
        """Wait until there is something to lose: after a fault a worker first has to fill up again."""
        await _until(lambda: self._watch.running([worker.pid]) >= PREFETCH // 4, FULL_AT_MOST)

    def _redelivered(self, *some: Cast) -> int:
        return self._watch.total("redelivered", [one.worker.pid for one in some])

    def _redelivered_to_others(self) -> int:
        return self._redelivered(*(one for one in self._cast if one is not self._second))

    def _say(self, text: str) -> None:
        self._show.say(f"{self._done} done: {text}")


async def _until(condition: Callable[[], bool], seconds: float | None = None) -> bool:
    """Wait for the condition, at most so long. Returns whether it came true."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - what happens in other processes has no event here
                await asyncio.sleep(TICK)
    except TimeoutError:
        return False
    return True
