"""Takeover of redelivered tasks: look the task up, take a fence, isolate a suspect of a crash."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import structlog

from warren.bus.delivery import Delivery
from warren.bus.messages import attempts_of, dispatch_of
from warren.errors import FenceLost, StoreRefused
from warren.settings import Settings
from warren.store.ledger import Ledger
from warren.support.failure import Failure
from warren.support.loops import forget_cancellations, is_cancelled
from warren.support.stall_detector import Pulse
from warren.worker.in_flight import Run, released
from warren.worker.outcome import RUNS_ELSEWHERE, SHUTDOWN, Dead, Outcome, Stale, Superseded
from warren.worker.records import kept, unwritable
from warren_schemas import REPLAY

log = structlog.get_logger(__name__)

# Seconds between two checks for a sign of life of another worker; seconds of silence after which that worker
# counts as dead; seconds after which a copy of a task that still runs goes back to its queue.
LOOK: Final = 0.5
SILENCE: Final = 3.0
LONGEST_WATCH: Final = 30.0


class Takeover:
    """The look-ups of one worker, and its lock for suspects of a crash.

    `ask(task_id)` asks the worker that runs a task for signs of life, if it can be reached.
    """

    def __init__(
        self,
        ledger: Ledger,
        settings: Settings,
        is_cancelled: Callable[[UUID], bool],
        pulse: Pulse,
        ask: Callable[[UUID], Awaitable[None]],
    ) -> None:
        self._ledger, self._settings, self._is_cancelled = ledger, settings, is_cancelled
        self._pulse, self._ask = pulse, ask
        self._alone = asyncio.Semaphore(1)

    def concerns(self, run: Run) -> bool:
        """Whether the task must be looked up before it runs. Most tasks need no look-up."""
        return (
            run.is_again
            or _may_have_run(run.deliveries[0])
            or self._pulse.is_suspicious
            or self._is_cancelled(run.key.task_id)
        )

    @asynccontextmanager
    async def admitted(self, run: Run) -> AsyncIterator[Outcome | None]:
        """Admit a run. Yields the outcome of a task that must not run, or None.

        If a task's worker vanished while it ran, its next start is recorded. Most such tasks did not cause
        the crash, or the worker only lost its connection, so they run beside others as usual. On its last
        chance before `crash_limit` a task runs without other suspects, and its end is recorded before the
        next suspect begins. If the worker crashes then, this task is the only suspect.
        """
        async with AsyncExitStack() as alone:
            try:
                outcome = await self._admit(run, alone)
            except asyncio.CancelledError:
                if not is_cancelled(since=0):
                    raise
                forget_cancellations()
                outcome = released(run, SHUTDOWN)
            yield outcome

    async def _admit(self, run: Run, alone: AsyncExitStack) -> Outcome | None:
        if not self.concerns(run):
            return None
        delivery = run.deliveries[0]
        may_run_elsewhere = delivery.may_be_second_copy or self._pulse.is_suspicious
        if may_run_elsewhere and await self._still_runs_elsewhere(run):
            return released(run, RUNS_ELSEWHERE)
        if delivery.may_be_second_copy and await self._is_last_chance(run.key.task_id, delivery):
            await alone.enter_async_context(self._alone)
        return await self._claim(run, crashed=delivery.was_dropped)

    async def look_again(self, run: Run) -> Outcome | None:
        """Look up a task again that waited for its slot while this worker stood still.

        Returns the outcome of a task that must not run any more, or None.
        """
        try:
            if run.memory.run.fence:
                await self._ledger.confirm(run.memory.run)
                return None
            if await self._still_runs_elsewhere(run):
                return released(run, RUNS_ELSEWHERE)
            return await self._claim(run, crashed=False)
        except FenceLost:
            return Superseded()
        except asyncio.CancelledError:
            if not is_cancelled(since=0):
                raise
            forget_cancellations()
            return released(run, SHUTDOWN)

    async def _still_runs_elsewhere(self, run: Run) -> bool:
        """Whether another living worker runs this task.

        That run has precedence. This copy waits here for its end, up to LONGEST_WATCH seconds, and then goes
        back to its queue; if the broker has already taken the copy back, it ends at once. The other worker
        gives a sign of life each second if it was asked, or if its own message was taken back. Silence is
        measured on our own clock.
        """
        seen = await self._ledger.running_elsewhere(run.key.task_id, run.key.replay)
        if seen is None:
            return False
        run.is_recorded = True  # another run owns the row: an end of this wait must not write to it
        log.info("task.watched", task_id=str(run.key.task_id))
        await self._ask(run.key.task_id)
        loop = asyncio.get_running_loop()
        gives_up_at, silent_at = loop.time() + LONGEST_WATCH, loop.time() + SILENCE
        while loop.time() < min(gives_up_at, silent_at):
            await asyncio.sleep(LOOK)
            if run.is_taken_back:
                return True
            sign = await self._ledger.running_elsewhere(run.key.task_id, run.key.replay)
            if sign is None:
                break
            if sign != seen:
                seen, silent_at = sign, loop.time() + SILENCE
        else:
            if loop.time() >= gives_up_at:
                log.info("task.runs_elsewhere", task_id=str(run.key.task_id))
                return True
        run.is_recorded = False
        return False

    async def _is_last_chance(self, task_id: UUID, delivery: Delivery) -> bool:
        crashes = max(await self._ledger.crashes(task_id), delivery.was_dropped)
        return crashes + 1 >= self._settings.crash_limit

    async def _claim(self, run: Run, *, crashed: bool) -> Outcome | None:
        task, key = run.task, run.key
        try:
            claim = await self._ledger.claim(
                key.task_id,
                key.replay,
                task.agent_type,
                task.user_id,
                crashed=crashed,
                dispatch=dispatch_of(run.deliveries[0].headers),
            )
        except StoreRefused as error:
            run.is_foreign = True
            return unwritable(run.execution.attempts, error)
        if claim.is_foreign:
            run.is_foreign = True
            return self._refuse(run)
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

    def _refuse(self, run: Run) -> Dead:
        """The outcome of a task whose id belongs to another user's task: it is dead, the row unchanged."""
        log.warning("task.foreign", task_id=str(run.key.task_id), user_id=run.task.user_id)
        told = (
            f"task_id {run.key.task_id} is taken by a task of another user or agent type: "
            "publish this one with an id of its own"
        )
        now = datetime.now(UTC)
        return Dead("invalid", Failure.told("TaskIdTaken", told), run.execution.attempts, now, now)

    def _poison(self, run: Run) -> Dead:
        limit = self._settings.crash_limit
        failure = Failure.told("WorkerDied", f"{limit} workers died while they ran this task (crash_limit)")
        now = datetime.now(UTC)
        return Dead("poison", failure, run.execution.attempts, now, now)


def _may_have_run(delivery: Delivery) -> bool:
    """Whether a run may have begun before: for copies, replays, retries and messages from the store."""
    headers = delivery.headers
    return (
        delivery.may_be_second_copy
        or attempts_of(headers) > 0
        or dispatch_of(headers) > 0
        or REPLAY in headers
    )
