"""Registry of the tasks in flight in one worker, which detects second copies of them."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias
from uuid import UUID

import structlog

from warren.agents.steps import Memory
from warren.bus.delivery import Delivery
from warren.bus.messages import Key, dispatch_of
from warren.worker.execution import Execution
from warren.worker.outcome import Cancelled, Dead, Outcome, Released, Succeeded, Superseded
from warren_schemas import Task

log = structlog.get_logger(__name__)

# Finished tasks that are remembered, to recognise a task that is delivered again because its
# acknowledgement was lost. Many times the number that can be unacknowledged at once.
REMEMBERED: Final = 20_000

Adoption: TypeAlias = Literal["new", "joined", "ended before"]
"""A delivery is the first of its task, a copy of a running task, or a copy of a finished task."""


@dataclass(slots=True, eq=False)
class Run:
    """One task in this worker, with every delivery of it that has arrived so far.

    `is_recorded`: the ledger has its outcome already. `is_foreign`: the row with its id belongs to another
    task, and is not changed. `is_cancelled`: the task was cancelled. `is_again`: this worker failed to handle
    it before. `is_watched`: another worker has a copy, and asked for signs of life. `is_handed_over`: the
    committer has its settlement. `handler` is the asyncio task that runs it; cancelling that before there is
    an outcome releases the task. `began` is when it got its slot (monotonic seconds), None without a slot.
    """

    key: Key
    task: Task
    deliveries: list[Delivery]
    execution: Execution
    memory: Memory
    handler: asyncio.Task[None]
    is_recorded: bool = False
    is_foreign: bool = False
    is_cancelled: bool = False
    is_again: bool = False
    is_watched: bool = False
    is_handed_over: bool = False
    began: float | None = None
    outcome: Outcome | None = None

    @property
    def dispatch(self) -> int:
        """The dispatch number of the message that this run came with."""
        return dispatch_of(self.deliveries[0].headers)

    @property
    def is_adrift(self) -> bool:
        """Whether it runs although the broker has taken a message back: another worker may have that."""
        return self.began is not None and not all(delivery.is_live for delivery in self.deliveries)

    @property
    def is_taken_back(self) -> bool:
        """Whether the broker will deliver all its messages again, perhaps to other workers."""
        return all(not delivery.is_live and delivery.comes_back for delivery in self.deliveries)

    @property
    def is_idle(self) -> bool:
        """Whether no attempt runs: the task waits for a slot, for its time or for its next attempt."""
        return self.outcome is None and not self.execution.attempting


def released(run: Run, reason: str) -> Released:
    """The outcome Released for a run whose agent did not begin."""
    return Released(run.execution.attempts, tried=False, probe=False, reason=reason)


class Runs:
    """The tasks in flight: running, being settled, or ended recently."""

    def __init__(self) -> None:
        self._running: dict[Key, Run] = {}
        self._awaited: dict[Key, asyncio.Event] = {}
        self._finished: OrderedDict[Key, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._running)

    def __iter__(self) -> Iterator[Run]:
        return iter(tuple(self._running.values()))

    def by_agent_type(self) -> Counter[str]:
        """Running tasks by agent type, without those that wait for a slot after a reconnect."""
        return Counter(run.task.agent_type for run in self._running.values() if run.began is not None)

    def begin(self, run: Run) -> None:
        """Register a run."""
        self._running[run.key] = run

    def drop(self, key: Key) -> None:
        """Remove a run that has no outcome."""
        if self._running.pop(key, None) is not None:
            self._tell_of(key)

    def settled(self, key: Key, outcome: Outcome) -> None:
        """Remove a settled run. If the task ended for good, it is remembered.

        An overtaken run gives its deliveries back, perhaps with another producer's `reply_to`. They were not
        settled here, even if this worker has finished the task before, so the task is forgotten.
        """
        if isinstance(outcome, Superseded):
            self._finished.pop(key, None)
        elif isinstance(outcome, Succeeded | Dead | Cancelled):
            self._finished[key] = None
            if len(self._finished) > REMEMBERED:
                self._finished.popitem(last=False)
        self.drop(key)

    async def all_gone(self) -> None:
        """Wait until no task is in this worker."""
        while self._running:
            await self._gone(next(iter(self._running)))

    async def _gone(self, key: Key) -> None:
        """Wait until a task has left this worker."""
        await self._awaited.setdefault(key, asyncio.Event()).wait()

    def _tell_of(self, key: Key) -> None:
        if (event := self._awaited.pop(key, None)) is not None:
            event.set()

    async def adopt(self, key: Key, delivery: Delivery) -> Adoption:
        """Let a second copy join the run of its task, if that is or was in this worker.

        A copy of a running task joins its run, and both end with its outcome. If the task is being settled,
        the copy waits: a released task is published again, and the copy may be that message. A delivery with
        a higher dispatch number also waits: if the run turns out to be stale, it is the only live message.
        """
        while (run := self._running.get(key)) is not None:
            if run.outcome is None and dispatch_of(delivery.headers) <= run.dispatch:
                run.deliveries.append(delivery)
                log.info("task.adopted", task_id=str(key.task_id), redelivered=delivery.redelivered)
                return "joined"
            await self._gone(key)
        # An unmarked delivery that wants a reply may be a new publication: run it, so that it gets one.
        if key not in self._finished or not (
            delivery.may_be_second_copy or delivery.properties.reply_to is None
        ):
            return "new"
        log.info("task.finished_before", task_id=str(key.task_id))
        return "ended before"

    def cancel(self, task_id: UUID) -> None:
        """Cancel the runs of this task that have no outcome yet."""
        for run in self:
            if run.key.task_id == task_id and run.outcome is None and not run.is_cancelled:
                run.is_cancelled = True
                run.handler.cancel()

    def watch(self, task_id: UUID) -> None:
        """Mark the runs of this task as watched: another worker has a copy and waits for signs of life."""
        for run in self:
            if run.key.task_id == task_id:
                run.is_watched = True

    def running_since(self, moment: float) -> list[Run]:
        """Runs that got their slot before this moment (monotonic seconds) and have no outcome yet."""
        return [run for run in self if run.began is not None and run.began < moment and run.outcome is None]

    def release(self, wanted: Callable[[Run], bool]) -> None:
        """Release the runs for which `wanted` is true and that have no outcome yet."""
        for run in self:
            if run.outcome is None and wanted(run):
                run.handler.cancel()
