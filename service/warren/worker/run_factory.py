"""Makes the run of a task: its agent call, its steps, and what it tells while it lasts."""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext

from pydantic import JsonValue

from warren.agents.context import Context
from warren.agents.steps import Memory
from warren.bus.delivery import Delivery
from warren.bus.events import Events
from warren.bus.messages import Key, attempts_of
from warren.fleet.counters import Tally
from warren.settings import Settings
from warren.store.commit_group import Entry
from warren.store.ledger import FailedAttempt, Ledger
from warren.support.failure import Failure
from warren.support.stall_detector import Pulse
from warren.support.tracing import Tracing
from warren.worker.agent_queue import Lane
from warren.worker.committer import Committer
from warren.worker.execution import Execution
from warren.worker.in_flight import Run
from warren.worker.pool.pool import Pool
from warren.worker.records import begun
from warren_schemas import State, Task


class RunFactory:
    """Makes the runs of one worker. Failed attempts and progress become events, and notes in the store."""

    def __init__(
        self,
        worker_id: str,
        settings: Settings,
        tally: Tally,
        committer: Committer,
        events: Events,
        ledger: Ledger | None,
        pool: Pool,
        pulse: Pulse,
        tracing: Tracing | None,
    ) -> None:
        self._worker_id, self._settings, self._tally = worker_id, settings, tally
        self._committer, self._events, self._ledger = committer, events, ledger
        self._pool, self._pulse, self._tracing = pool, pulse, tracing

    def make(self, key: Key, task: Task, lane: Lane, delivery: Delivery) -> Run:
        """The run of a delivery. The asyncio task that calls this one handles it."""
        handler = asyncio.current_task()
        assert handler is not None
        memory = Memory(
            self._ledger,
            begun(task, key, self._worker_id),
            self._settings.max_result_bytes,
            self._pulse,
            lambda: run.is_adrift,
        )
        execution = Execution(
            task=task,
            spec=lane.spec,
            valve=lane.valve,
            pool=self._pool,
            settings=self._settings,
            context=Context(task, lambda fraction, text: self._progress(task, fraction, text), memory),
            attempts=attempts_of(delivery.headers),
            on_retry=lambda attempts, failure, seconds: self._retrying(
                task, memory.run, attempts, failure, seconds
            ),
            can_wait_outside=self._ledger is not None,
            times=self._tally.of(task.agent_type).times,
            span=nullcontext if self._tracing is None else self._tracing.attempt,
            body=delivery.body,
        )
        run = Run(key, task, [delivery], execution, memory, handler)
        return run

    def _retrying(self, task: Task, run: Entry, attempts: int, failure: Failure, seconds: float) -> None:
        self._tally.of(task.agent_type).totals.retried += 1
        failed = FailedAttempt(
            run.task_id, run.life, attempts, time.time(), failure.error_type, failure.message
        )
        self._committer.note(failed)
        details: dict[str, JsonValue] = {
            "attempts": attempts,
            "error": failure.error_type,
            "message": failure.message,
            "in_s": round(seconds, 3),
        }
        self._tell(task, "retrying", details)

    def _progress(self, task: Task, fraction: float, text: str) -> None:
        self._tell(task, "progress", {"fraction": fraction, "text": text})

    def _tell(self, task: Task, state: State, details: dict[str, JsonValue]) -> None:
        self._events.tell("task", task.agent_type, state, details={"task_id": str(task.task_id), **details})
