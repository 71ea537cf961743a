"""Intake of deliveries: from the arrival of a delivery until its settlement is handed over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from typing import Any, Final

import structlog

from warren.bus.delivery import Delivery
from warren.bus.messages import Key, attempts_of, decode, key_of
from warren.bus.topology import Names
from warren.errors import InvalidTask
from warren.fleet.counters import Tally
from warren.settings import Settings
from warren.store.ledger import Ledger
from warren.store.run_writes import GivenBack
from warren.support.failure import Failure
from warren.support.loops import forget_cancellations, is_cancelled
from warren.support.tracing import Tracing
from warren.worker.agent_queue import Lane, Slots
from warren.worker.byte_budget import Freight, weight
from warren.worker.committer import Committer
from warren.worker.in_flight import Run, Runs, released
from warren.worker.outcome import (
    BREAKER_OPEN,
    SHUTDOWN,
    TAKEN_BACK,
    Cancelled,
    Dead,
    Outcome,
    Released,
    Stale,
)
from warren.worker.redelivery import Takeover
from warren.worker.settlement import Planner, Subject
from warren.worker.trouble import given_up, pause_after
from warren_schemas import Task

log = structlog.get_logger(__name__)

# Longest wait in seconds for memory, before a delivery without room goes back to its queue.
PAUSE_AFTER_FAILURE: Final = 5.0


class Intake:
    """Handles the deliveries of one worker: each is decoded, joins a run or is run, and is handed over."""

    def __init__(
        self,
        settings: Settings,
        runs: Runs,
        make_run: Callable[[Key, Task, Lane, Delivery], Run],
        tally: Tally,
        planner: Planner,
        committer: Committer,
        ledger: Ledger | None,
        takeover: Takeover | None,
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing, self._names = tracing, Names(settings.namespace)
        self._settings, self._runs, self._make_run, self._tally = settings, runs, make_run, tally
        self._planner, self._committer = planner, committer
        self._ledger, self._takeover = ledger, takeover
        self._handlers: set[asyncio.Task[None]] = set()
        self._freight = Freight(settings.max_bytes_in_flight)
        self._failed: dict[Delivery, Run] = {}
        self._leaving = asyncio.Event()

    def take(self, lane: Lane, delivery: Delivery) -> None:
        """Start to handle a delivery; without memory for it, give it back later."""
        size = weight(delivery.body, self._settings.max_payload_bytes)
        if self._freight.admits(size):
            self._freight.load(size)
            self._start(self._handle(lane, delivery, size), lane)
        else:
            delivery.drop_body()
            self._start(self._put_off(delivery, size), lane)

    async def _put_off(self, delivery: Delivery, size: int) -> None:
        """Give back a delivery without memory for it. It keeps its place in the prefetch until then."""
        log.info("task.put_off", queue=delivery.queue, bytes_in_flight=self._freight.bytes)
        await self._freight.has_room(size, PAUSE_AFTER_FAILURE)
        await delivery.release()

    async def all_settled(self) -> None:
        """Wait until all deliveries are settled."""
        while self._handlers or len(self._runs):
            if self._handlers:
                await asyncio.wait(tuple(self._handlers))
            await self._runs.all_gone()

    def abandon(self) -> None:
        """Stop waiting: the broker delivers unsettled messages again."""
        for handler in tuple(self._handlers):
            log.warning("worker.abandoned", handler=handler.get_name())
            handler.cancel()

    def _start(self, handling: Coroutine[Any, Any, None], lane: Lane) -> None:
        handler = asyncio.create_task(handling, name=f"task {lane.spec.agent_type}")
        self._handlers.add(handler)
        handler.add_done_callback(self._handlers.discard)

    async def _handle(self, lane: Lane, delivery: Delivery, size: int) -> None:
        """Handle one delivery, and count its memory. Errors here are Warren's, not the agent's."""
        self._tally.of(lane.spec.agent_type).totals.delivered += 1
        try:
            await self._patiently(lane, delivery)
        finally:
            self._freight.unload(size)

    async def _patiently(self, lane: Lane, delivery: Delivery) -> None:
        """Take the delivery. After an error try again with growing pauses, and at last set it aside.

        It stays here between the tries: if it were given back, it would look as if its worker had died.
        """
        for tries in count(1):
            try:
                return await self._take(lane, delivery, is_again=tries > 1)
            except asyncio.CancelledError as error:
                if is_cancelled(since=0):
                    raise
                failed: BaseException = error  # raised by a lost connection or channel, not by us
            except Exception as error:  # noqa: BLE001 - a bug of ours must not affect other tasks
                failed = error
            pause = pause_after(failed, tries)
            log.error(
                "worker.failed",
                agent_type=lane.spec.agent_type,
                tries=tries,
                again_in_s=pause,
                exc_info=failed,
            )
            run = self._failed.pop(delivery, None)
            if pause is None:
                return await self._set_aside(lane, delivery, run, failed, tries)
            if await self._is_leaving_within(pause):
                return await delivery.release()
        return None

    async def _is_leaving_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._leaving.wait()
        return self._leaving.is_set()

    async def _set_aside(
        self, lane: Lane, delivery: Delivery, run: Run | None, error: BaseException, tries: int
    ) -> None:
        """Make the task a dead letter. If that fails, the broker does it, without a failure record."""
        dead = given_up(error, tries, attempts_of(delivery.headers))
        subject = Subject(lane.spec.agent_type, None, [delivery]) if run is None else self._subject_of(run)
        subject.deliveries = [delivery]
        try:
            await self._committer.settle(self._planner.plan(dead, subject))
        except Exception:
            log.exception("task.rejected", agent_type=lane.spec.agent_type)
            await delivery.reject()

    def leave(self) -> None:
        """End the retries at shutdown: deliveries that would be tried again are given back."""
        self._leaving.set()

    async def _take(self, lane: Lane, delivery: Delivery, *, is_again: bool) -> None:
        try:
            task = decode(delivery, self._settings, agent_type=lane.spec.agent_type)
        except InvalidTask as error:
            self._refuse(lane, delivery, error)
            return
        key, totals = key_of(task, delivery.headers), self._tally.of(task.agent_type).totals
        totals.redelivered += delivery.may_be_second_copy
        match await self._runs.adopt(key, delivery):
            case "joined":
                totals.adopted += 1
                lane.valve.pass_by()
                return
            case "ended before":
                lane.valve.pass_by()
                subject = Subject(task.agent_type, task, [delivery], is_recorded=True)
                self._committer.hand_over(self._planner.plan(Stale(), subject))
                return
        run = self._make_run(key, task, lane, delivery)
        run.is_again = is_again
        self._runs.begin(run)
        try:
            if self._tracing is None:
                await self._run(run, lane)
            else:
                queue = self._names.queue(task.agent_type)
                with self._tracing.processing(task.agent_type, task.task_id, queue, delivery.headers):
                    await self._run(run, lane)
        except (Exception, asyncio.CancelledError):
            if not is_cancelled(since=0):
                await self._note_failure(run)
            raise
        finally:
            if not run.is_handed_over:
                self._runs.drop(run.key)

    async def _note_failure(self, run: Run) -> None:
        """Record that this run failed through a fault of ours, so that no crash is counted for its task."""
        self._failed[run.deliveries[0]] = run
        await self._excuse(run)
        # Give back the adopted deliveries; `_patiently` handles the first one.
        await asyncio.gather(*(adopted.release() for adopted in run.deliveries[1:]))

    async def _excuse(self, run: Run) -> None:
        if self._ledger is None or not (run.memory.has_row or not run.deliveries[0].counted):
            return
        try:
            await self._ledger.write([GivenBack(run.memory.run)])
        except Exception:
            log.exception("worker.failed", agent_type=run.task.agent_type, doing="noting its failure")

    async def _run(self, run: Run, lane: Lane) -> None:
        """Run the task, unless the look-up says otherwise, and hand over its outcome."""
        if self._takeover is None or not self._takeover.concerns(run):
            await self._end(run, lane, await self._outcome_of(run, lane.slots))
            return
        async with self._takeover.admitted(run) as known:
            await self._end(run, lane, known or await self._outcome_of(run, lane.slots), is_awaited=True)

    async def _end(self, run: Run, lane: Lane, outcome: Outcome, *, is_awaited: bool = False) -> None:
        """Hand over the outcome for settlement.

        With `is_awaited`, wait until it is settled, so that a suspect of a crash runs alone until its end is
        recorded. With tracing it also waits, so that the span includes the settlement.
        """
        if run.is_cancelled and isinstance(outcome, Released):
            outcome = Cancelled(outcome.attempts)
        run.outcome = outcome
        if isinstance(outcome, Released) and outcome.reason == BREAKER_OPEN:
            await self._until_paused(lane)
        settlement = self._planner.plan(outcome, self._subject_of(run))
        run.is_handed_over = True
        if self._tracing is None and not is_awaited:
            self._committer.hand_over(settlement)
            return
        outcome = await self._committer.settle(settlement)
        if self._tracing is not None:
            error = outcome.failure.error_type if isinstance(outcome, Dead) else None
            self._tracing.settled(outcome.name, run.execution.attempts, error)

    async def _until_paused(self, lane: Lane) -> None:
        """Wait until this consumer is paused, so that a released task does not come straight back to it.

        The wait is limited: a half-open lane keeps consuming for a probe, and another worker may run it.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.breaker_reset_timeout):
                await lane.consumer.paused()

    def _subject_of(self, run: Run) -> Subject:
        has_record = self._ledger is not None and not run.is_recorded and not run.is_foreign
        return Subject(
            run.task.agent_type,
            run.task,
            run.deliveries,
            run.memory.run if has_record else None,
            run.memory.has_row,
            run.is_recorded,
            run.key,
            None if self._tracing is None else self._tracing.here(),
        )

    async def _outcome_of(self, run: Run, slots: Slots) -> Outcome:
        """Run the task in one of its lane's slots.

        A slot is always free, except after a reconnect: runs from before still hold slots, and the broker
        does not know of them.
        """
        try:
            await slots.acquire()
        except asyncio.CancelledError:
            forget_cancellations()
            return released(run, SHUTDOWN)
        run.began = time.monotonic()
        try:
            # Once there is an outcome, a cancellation is too late, and a copy waits for the settlement.
            run.outcome = await self._no_longer_ours(run) or await run.execution.run()
            await run.memory.at_rest()
            return run.outcome
        finally:
            run.began = None
            slots.release()

    async def _no_longer_ours(self, run: Run) -> Outcome | None:
        """The outcome of a task that another worker got while it waited here for its slot; else None."""
        if run.is_taken_back:
            return released(run, TAKEN_BACK)
        if self._takeover is None or not run.memory.stood_still:
            return None
        return await self._takeover.look_again(run)

    def _refuse(self, lane: Lane, delivery: Delivery, error: InvalidTask) -> None:
        """Make a message that is not a task a dead letter. If it has a `reply_to`, it gets a reply."""
        now = datetime.now(UTC)
        failure = Failure.told("InvalidTask", str(error))
        dead = Dead("invalid", failure, attempts_of(delivery.headers), now, now)
        log.warning("task.invalid", agent_type=lane.spec.agent_type, error=str(error))
        self._committer.hand_over(self._planner.plan(dead, Subject(lane.spec.agent_type, None, [delivery])))
