"""Fleet control: cancel a task, pause and resume an agent type."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from uuid import UUID

import structlog

from warren.bus.connection import Message
from warren.bus.control_messages import Command, control_message
from warren.bus.publisher import Publisher
from warren.bus.replies import Replies, cancelled_body, result_message
from warren.bus.topology import Names
from warren.client.store import ClientStore
from warren.errors import PublishError
from warren.settings import Settings
from warren.store.audit import by_account
from warren.store.control import Cancelled
from warren.store.schema import FINAL, SCHEDULED
from warren_schemas import Event

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Cancellation:
    """The outcome of a cancellation.

    `before` is the task's status in the store, None where it had none: it waited, ran for the first time, or
    never was. `worker_id` is the worker that has ended it, None when none has said so yet.
    """

    task_id: UUID
    before: str | None
    worker_id: str | None

    @property
    def had_ended(self) -> bool:
        """Whether the task had ended before, so that the cancellation changed nothing."""
        return self.before in FINAL


class ClientControl:
    """Writes decisions to the store, which decides, and sends them to the workers, which speeds them up."""

    def __init__(self, store: ClientStore, publisher: Publisher, settings: Settings) -> None:
        self._store, self._publisher = store, publisher
        self._names, self._replies = Names(settings.namespace), Replies(settings)

    async def cancel(self, task_id: UUID, arrived: asyncio.Queue[Event], seconds: float) -> Cancellation:
        """Cancel a task; `arrived` is where events about cancelled tasks come in from now on."""
        decided = await (await self._store.board()).cancel(task_id, by_account("task.cancel"))
        if decided.had_ended:
            return Cancellation(task_id, decided.before, None)
        await self._tell(Command(action="cancel", task_id=task_id))
        if decided.before == SCHEDULED:
            await self._answer(answer_to(task_id, decided, self._replies))
            return Cancellation(task_id, decided.before, None)
        return Cancellation(task_id, decided.before, await _ender(task_id, arrived, seconds))

    async def pause(self, agent_type: str) -> bool:
        """Pause an agent type. False: it was paused already."""
        changed = await (await self._store.board()).pause(agent_type, by_account("agent.pause"))
        await self._tell(Command(action="pause", agent_type=agent_type))
        return changed

    async def resume(self, agent_type: str) -> bool:
        """Resume an agent type. False: it was not paused."""
        changed = await (await self._store.board()).resume(agent_type, by_account("agent.resume"))
        await self._tell(Command(action="resume", agent_type=agent_type))
        return changed

    async def _tell(self, command: Command) -> None:
        await self._publisher.publish(control_message(command, self._names))

    async def _answer(self, answer: Message | None) -> None:
        if answer is None:
            return
        try:
            await self._publisher.publish(answer)
        except PublishError as error:
            log.warning("result.unwanted", task_id=answer.message_id, error=str(error))


def answer_to(task_id: UUID, cancelled: Cancelled, replies: Replies) -> Message | None:
    """The reply for a task that is cancelled while it exists only in the store: no worker would send one."""
    if cancelled.before != SCHEDULED or cancelled.reply_to is None or not replies.allow(cancelled.reply_to):
        return None
    body = cancelled_body(task_id, cancelled.attempts)
    return result_message(body, task_id, cancelled.reply_to, cancelled.correlation_id)


async def _ender(task_id: UUID, arrived: asyncio.Queue[Event], seconds: float) -> str | None:
    """The worker that says, within this time, that it has ended the task."""
    try:
        async with asyncio.timeout(seconds):
            while True:
                event = await arrived.get()
                if event.details.get("task_id") == str(task_id):
                    return event.worker_id
    except TimeoutError:
        return None
