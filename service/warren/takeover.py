"""Before a task is run that somebody may have run before: look it up, take a fence, isolate a suspect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from uuid import UUID

import structlog

from warren.bus_delivery import Delivery
from warren.failure import Failure
from warren.loops import forget_cancellations, is_cancelled
from warren.outcome import SHUTDOWN, Dead, Outcome, Released, Stale
from warren.records import kept
from warren.runs import Run
from warren.settings import Settings
from warren.store_ledger import Ledger
from warren.wire import attempts_of, dispatch_of
from warren_schemas import REPLAY

log = structlog.get_logger(__name__)


class Takeover:
    """The look-ups of one worker, and its lane for suspects."""

    def __init__(self, ledger: Ledger, settings: Settings, is_cancelled: Callable[[UUID], bool]) -> None:
        self._ledger, self._settings, self._is_cancelled = ledger, settings, is_cancelled
        self._alone = asyncio.Semaphore(1)

    def concerns(self, run: Run) -> bool:
        """Whether the task has to be looked up before it runs; most need not, and pay nothing."""
        return run.is_again or _may_have_run(run.deliveries[0]) or self._is_cancelled(run.key.task_id)

    @asynccontextmanager
    async def admitted(self, run: Run) -> AsyncIterator[Outcome | None]:
        """Admit a run; what it yields is the outcome of a task that must not run, or None.

        A task whose worker vanished while it ran has its next start recorded. Most of those were only beside
        the cause, or the worker lost its connection, so they run together as always. But for its last chance
        before `crash_limit` a task is alone: no other suspect beside it, and its end recorded before the next
        one begins, so that whatever it does to this worker can be laid at its door.
        """
        async with AsyncExitStack() as alone:
            try:
                outcome = await self._admit(run, alone)
            except asyncio.CancelledError:
                if not is_cancelled(since=0):
                    raise
                forget_cancellations()
                outcome = Released(run.execution.attempts, tried=False, probe=False, reason=SHUTDOWN)
            yield outcome

    async def _admit(self, run: Run, alone: AsyncExitStack) -> Outcome | None:
        if not self.concerns(run):
            return None
        delivery = run.deliveries[0]
        if delivery.may_be_second_copy and await self._is_last_chance(run.key.task_id, delivery):
            await alone.enter_async_context(self._alone)
        return await self._claim(run, crashed=delivery.was_dropped)

    async def _is_last_chance(self, task_id: UUID, delivery: Delivery) -> bool:
        crashes = max(await self._ledger.crashes(task_id), delivery.was_dropped)
        return crashes + 1 >= self._settings.crash_limit

    async def _claim(self, run: Run, *, crashed: bool) -> Outcome | None:
        task, key = run.task, run.key
        claim = await self._ledger.claim(
            key.task_id,
            key.replay,
            task.agent_type,
            task.user_id,
            crashed=crashed,
            dispatch=dispatch_of(run.deliveries[0].headers),
        )
        if claim.is_stale:
            log.info("task.stale", task_id=str(key.task_id))
            return Stale()
        if claim.kept is not None:
            run.is_recorded = True
            log.info("task.ended_before", task_id=str(key.task_id), status=claim.kept["status"])
            return kept(claim.kept)
        run.memory.take_over(claim)
        if not claim.crashes:
            return None
        log.warning("task.suspect", task_id=str(key.task_id), crashes=claim.crashes)
        return self._poison(run) if claim.crashes >= self._settings.crash_limit else None

    def _poison(self, run: Run) -> Dead:
        limit = self._settings.crash_limit
        failure = Failure.told("WorkerDied", f"{limit} workers died while they ran this task (crash_limit)")
        now = datetime.now(UTC)
        return Dead("poison", failure, run.execution.attempts, now, now)


def _may_have_run(delivery: Delivery) -> bool:
    """Only these pay for a look-up: copies, replays, what was tried before or comes from the store."""
    headers = delivery.headers
    return (
        delivery.may_be_second_copy
        or attempts_of(headers) > 0
        or dispatch_of(headers) > 0
        or REPLAY in headers
    )
