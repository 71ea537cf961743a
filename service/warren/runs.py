"""The tasks of one worker: those that run now, and those that it has finished lately."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import structlog

from warren.bus_delivery import Delivery
from warren.execution import Cancelled, Dead, Execution, Outcome, Succeeded
from warren.memory import Memory
from warren.wire import Key, dispatch_of
from warren_schemas import Task

log = structlog.get_logger(__name__)

# Finished tasks that are remembered, to recognise one that is delivered again because its
# acknowledgement was lost. Many times what can be unacknowledged at once.
REMEMBERED: Final = 20_000


@dataclass(slots=True, eq=False)
class Run:
    """One task in this worker, with every delivery of it that has arrived so far.

    `is_recorded`: its outcome stands in the ledger already. `is_cancelled`: nobody wants it any more.
    `handler` is the asyncio task that runs and settles it; cancelling it before there is an outcome
    releases the task.
    """

    key: Key
    task: Task
    deliveries: list[Delivery]
    execution: Execution
    memory: Memory
    handler: asyncio.Task[None]
    is_recorded: bool = False
    is_cancelled: bool = False
    has_slot: bool = False
    outcome: Outcome | None = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def dispatch(self) -> int:
        """Which publication by the relay this run came with."""
        return dispatch_of(self.deliveries[0].headers)

    @property
    def is_idle(self) -> bool:
        """Whether no attempt runs: the task waits for a slot, for its time or for its next attempt."""
        return self.outcome is None and not self.execution.attempting


class Runs:
    """What a worker knows of its own tasks, so that a second copy of one does not run beside it."""

    def __init__(self) -> None:
        self._running: dict[Key, Run] = {}
        self._finished: OrderedDict[Key, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._running)

    def __iter__(self) -> Iterator[Run]:
        return iter(tuple(self._running.values()))

    def by_agent_type(self) -> Counter[str]:
        """How many run of each agent type; those that wait for a slot after a reconnect do not."""
        return Counter(run.task.agent_type for run in self._running.values() if run.has_slot)

    def begin(self, run: Run) -> None:
        """The task is in this worker from now on."""
        self._running[run.key] = run

    def end(self, run: Run) -> None:
        """The task is not in this worker any more, settled or not."""
        del self._running[run.key]
        run.settled.set()

    def finish(self, run: Run, outcome: Outcome) -> None:
        """Remember a task that was settled for good; others come again."""
        if not isinstance(outcome, Succeeded | Dead | Cancelled):
            return
        self._finished[run.key] = None
        if len(self._finished) > REMEMBERED:
            self._finished.popitem(last=False)

    async def adopt(self, key: Key, delivery: Delivery) -> bool:
        """Let a second copy be settled by the run that is, or has been, in this worker. False: it is new.

        A copy of a task that is still running joins that run: both end with its outcome. A copy of one
        that is being settled has to wait: a released task is published anew, and the copy may be that. So has
        a later dispatch of the relay: should the run turn out to be stale, that is the only message.
        """
        while (run := self._running.get(key)) is not None:
            if run.outcome is None and dispatch_of(delivery.headers) <= run.dispatch:
                run.deliveries.append(delivery)
                log.info("task.adopted", task_id=str(key.task_id), redelivered=delivery.redelivered)
                return True
            await run.settled.wait()
        # One that asks for an answer and is not marked may be a fresh publish: it is run, to be answered.
        if key not in self._finished or not (
            delivery.may_be_second_copy or delivery.properties.reply_to is None
        ):
            return False
        log.info("task.finished_before", task_id=str(key.task_id))
        delivery.ack()
        return True

    def cancel(self, task_id: UUID) -> None:
        """End the runs of this task that have no outcome yet: it is not wanted any more."""
        for run in self:
            if run.key.task_id == task_id and run.outcome is None and not run.is_cancelled:
                run.is_cancelled = True
                run.handler.cancel()

    def release(self, wanted: Callable[[Run], bool]) -> None:
        """Release those that are wanted and have no outcome yet."""
        for run in self:
            if run.outcome is None and wanted(run):
                run.handler.cancel()
