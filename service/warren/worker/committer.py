"""Committer: the loop that carries out settlements, and the only place that acknowledges tasks.

For each group there is one commit, then its publishes with confirms, then its acknowledgements. A publish
that is refused or must wait delays only its own settlement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from itertools import count
from typing import Any, Final
from uuid import UUID

import structlog

from warren.bus.events import Events
from warren.bus.retrying_publisher import RetryingPublisher
from warren.bus.topology import Names
from warren.errors import MessageRefused, QueueFull, StoreRefused
from warren.fleet.counters import Tally
from warren.store.commit_group import Entry, Verdict
from warren.store.ledger import FailedAttempt, Ledger
from warren.store.run_writes import Postponed, run_of
from warren.worker.answers import Answers
from warren.worker.in_flight import Runs
from warren.worker.outcome import Cancelled, Dead, Outcome, RetryLater, Succeeded, Superseded
from warren.worker.records import unwritable
from warren.worker.settlement import Planner, Settlement, Subject
from warren.worker.trouble import pause_after

log = structlog.get_logger(__name__)

GROUP: Final = 500  # settlements in one commit at most
GROUP_BYTES: Final = 16 * 1024 * 1024  # bytes of results and of dead tasks in one commit


class Committer:
    """Carries out the settlements of one worker."""

    def __init__(
        self,
        publisher: RetryingPublisher,
        answers: Answers,
        events: Events,
        planner: Planner,
        names: Names,
        runs: Runs,
        tally: Tally,
        ledger: Ledger | None,
    ) -> None:
        self._publisher, self._answers, self._events = publisher, answers, events
        self._planner, self._names, self._ledger = planner, names, ledger
        self._runs, self._tally = runs, tally
        self._waiting: list[Settlement] = []
        self._writing: Sequence[Settlement] = ()
        self._attempts: list[FailedAttempt] = []
        self._wake = asyncio.Event()
        self._carrying: set[asyncio.Task[None]] = set()
        self._awaited: dict[Subject, asyncio.Future[Outcome]] = {}

    # -- handed over --------------------------------------------------------------------------------------

    def hand_over(self, settlement: Settlement) -> None:
        """Queue a settlement without waiting. It is carried out with the others of its group."""
        if settlement.write is None or self._ledger is None:
            self._carry(settlement)
        else:
            self._waiting.append(settlement)
            self._wake.set()

    async def settle(self, settlement: Settlement) -> Outcome:
        """Carry out a settlement and wait. Returns the final outcome: Superseded for an overtaken run."""
        ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._awaited[settlement.subject] = ended
        self.hand_over(settlement)
        return await ended

    def note(self, attempt: FailedAttempt) -> None:
        """Record a failed attempt soon."""
        if self._ledger is not None:
            self._attempts.append(attempt)
            self._wake.set()

    def abandon(self) -> None:
        """Stop waiting: the broker delivers unsettled messages again."""
        for settlement in (*self._writing, *self._waiting):
            log.warning("worker.abandoned", task_id=str(settlement.subject.task_id))
        for carrying in tuple(self._carrying):
            log.warning("worker.abandoned", handler=carrying.get_name())
            carrying.cancel()

    # -- written ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write queued settlements until cancelled: one commit at a time, while the next group gathers."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._ledger is None:
                continue
            if self._attempts:
                noted, self._attempts = self._attempts, []
                await self._ledger.note_attempts(noted)
            if group := self._next_group():
                self._writing = group
                verdicts = await self._ledger.write([one.write for one in group if one.write is not None])
                self._writing = ()
                for settlement, verdict in zip(group, verdicts, strict=True):
                    self._go_on(settlement, verdict)

    def _next_group(self) -> Sequence[Settlement]:
        """The next group, with each task once: one statement cannot change a row twice."""
        group: dict[UUID, Settlement] = {}
        later: list[Settlement] = []
        size = 0
        for settlement in self._waiting:
            assert settlement.write is not None
            task_id = run_of(settlement.write).task_id
            if task_id in group or len(group) >= GROUP or size > GROUP_BYTES:
                later.append(settlement)
            else:
                group[task_id] = settlement
                size += _bytes_of(settlement)
        self._waiting = later
        if later:
            self._wake.set()
        return tuple(group.values())

    def _go_on(self, settlement: Settlement, verdict: Verdict) -> None:
        """Continue after the write. It must not raise: that would end the loop for all other tasks."""
        try:
            self._judge(settlement, verdict)
        except Exception:
            log.exception("worker.failed", agent_type=settlement.subject.agent_type, doing="settling")
            self._start(self._reject(settlement), settlement)

    def _judge(self, settlement: Settlement, verdict: Verdict) -> None:
        match verdict:
            case Verdict.COUNTS:
                self._carry(settlement)
            case Verdict.OVERTAKEN:
                self._carry(self._planner.plan(Superseded(), settlement.subject))
            case Verdict.REFUSED:
                self._set_aside(settlement)

    def _set_aside(self, settlement: Settlement) -> None:
        """Handle a refused write: the task becomes dead, and its row says so if the store accepts that."""
        if settlement.is_refused or not isinstance(settlement.write, Entry | Postponed):
            self._carry(settlement)
            return
        error = StoreRefused("the store does not take what became of this task: the worker's log says why")
        dead = unwritable(_attempts_of(settlement.outcome), error)
        again = self._planner.plan(dead, settlement.subject)
        again.is_refused = True
        self.hand_over(again)

    # -- published and acknowledged -----------------------------------------------------------------------

    def _carry(self, settlement: Settlement) -> None:
        """Do the steps after the write. Most settlements publish nothing, and need no asyncio task."""
        if settlement.is_quick:
            self._tell(settlement)
            self._acknowledge(settlement)
            return
        self._start(self._carry_patiently(settlement), settlement)

    def _start(self, carrying: Coroutine[Any, Any, None], settlement: Settlement) -> None:
        task = asyncio.create_task(carrying, name=f"settling {settlement.subject.agent_type}")
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)

    async def _carry_patiently(self, settlement: Settlement) -> None:
        """Publish and end. After an error of ours it is tried again, and at last the message is rejected."""
        for tries in count(1):
            try:
                return await self._publish_and_end(settlement)
            except Exception as error:
                pause = pause_after(error, tries)
                log.error(
                    "worker.failed",
                    agent_type=settlement.subject.agent_type,
                    doing="settling",
                    tries=tries,
                    again_in_s=pause,
                    exc_info=error,
                )
            if pause is None:
                return await self._reject(settlement)
            await asyncio.sleep(pause)
        return None

    async def _publish_and_end(self, settlement: Settlement) -> None:
        if settlement.dead_letter is not None:
            await self._bury(settlement)
        if settlement.answer is not None:
            attempts = _attempts_of(settlement.outcome)
            await self._answers.send(settlement.subject.task_id, settlement.answer, attempts)
        self._tell(settlement)
        if settlement.copy is not None and not await self._is_copied(settlement):
            settlement.ending = "give back"
        if settlement.ending == "acknowledge":
            self._acknowledge(settlement)
        else:
            await self._give_back(settlement)

    async def _bury(self, settlement: Settlement) -> None:
        """Publish a dead letter. If the broker refuses it, reject the message, so that the broker moves it.

        The broker refuses it if its size limit for messages was lowered. The failure record is then in the
        store and the log. Raises MessageRefused for a message of a queue without a dead-letter exchange.
        """
        letter, subject = settlement.dead_letter, settlement.subject
        assert letter is not None
        try:
            await self._publisher.publish(letter)
        except MessageRefused as error:
            if subject.deliveries[0].queue != self._names.queue(subject.agent_type):
                raise
            record = {name: value for name, value in letter.headers.items() if name.startswith("warren-")}
            log.error("dead_letter.refused", message_id=letter.message_id, error=str(error), **record)
            await subject.deliveries[0].reject()

    async def _is_copied(self, settlement: Settlement) -> bool:
        """Publish the copy behind others of its priority. False if the queue is full."""
        assert settlement.copy is not None
        try:
            await self._publisher.publish(settlement.copy)
        except QueueFull:
            return False
        return True

    def _tell(self, settlement: Settlement) -> None:
        event, subject = settlement.event, settlement.subject
        if event is None:
            return
        details = (
            event.details if subject.task is None else {"task_id": str(subject.task_id), **event.details}
        )
        self._events.tell("task", subject.agent_type, event.state, reason=event.reason, details=details)

    # -- the end ------------------------------------------------------------------------------------------

    def _acknowledge(self, settlement: Settlement) -> None:
        for delivery in settlement.subject.deliveries:
            delivery.ack()
        self._ended(settlement)

    async def _give_back(self, settlement: Settlement) -> None:
        """Give the deliveries back. A run that steps back first takes back its crash: its worker still lives.

        The deliveries are not acknowledged: one of them may be the task's only message, and the run that took
        the task over may have died. They are looked up when they return.
        """
        subject = settlement.subject
        if settlement.ending == "step back":
            log.warning("task.superseded", task_id=str(subject.task_id))
            if self._ledger is not None and subject.record is not None:
                await self._ledger.exonerate(subject.record)
        await asyncio.gather(*(delivery.release() for delivery in subject.deliveries))
        self._ended(settlement)

    async def _reject(self, settlement: Settlement) -> None:
        """Last resort: the broker makes the message a dead letter, without a failure record."""
        log.error("task.rejected", task_id=str(settlement.subject.task_id))
        await asyncio.gather(*(delivery.reject() for delivery in settlement.subject.deliveries))
        self._ended(settlement)

    def _ended(self, settlement: Settlement) -> None:
        subject = settlement.subject
        self._tally.of(subject.agent_type).totals.count(settlement.counted_as)
        if subject.key is not None:
            self._runs.settled(subject.key, settlement.outcome)
        ended = self._awaited.pop(subject, None)
        if ended is not None and not ended.done():
            ended.set_result(settlement.outcome)


def _bytes_of(settlement: Settlement) -> int:
    match settlement.outcome:
        case Succeeded(result=result):
            return len(result)
        case Dead() | RetryLater():
            return len(settlement.subject.deliveries[-1].body)
    return 0


def _attempts_of(outcome: Outcome) -> int:
    return outcome.attempts if isinstance(outcome, Succeeded | Dead | Cancelled | RetryLater) else 0
