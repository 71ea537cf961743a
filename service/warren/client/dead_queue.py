"""Direct operations on the dead queue: list, replay, discard."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime

from warren.bus.connection import Connection, Message
from warren.bus.consumer import Browser
from warren.bus.delivery import Delivery
from warren.bus.messages import carried_along, decode, new_id, task_message
from warren.bus.publisher import Publisher
from warren.bus.topology import Names
from warren.errors import InvalidTask, QueueFull, UnknownAgentType, Unroutable
from warren.settings import Settings
from warren_schemas import ATTEMPTS, REPLAY, DeadLetterHeaders, Reason, Task


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One message of the dead queue; `task` is None when its body is no task."""

    delivery: Delivery
    headers: DeadLetterHeaders
    task: Task | None
    problem: str

    @property
    def task_id(self) -> str:
        """The task's id, or the `message_id` if the body is no task."""
        return str(self.task.task_id) if self.task else str(self.delivery.properties.message_id or "?")

    @property
    def agent_type(self) -> str:
        """The agent type it was published for: the routing key survives where the body is no task."""
        return self.task.agent_type if self.task else self.delivery.routing_key


@dataclass(frozen=True, slots=True)
class Selection:
    """A selection of dead letters. A field that is None matches any."""

    agent_type: str | None = None
    reason: Reason | None = None
    task_id: str | None = None
    limit: int | None = None

    def fits(self, letter: DeadLetter) -> bool:
        """Whether a dead letter matches, without regard to the limit."""
        return (
            (self.agent_type is None or letter.agent_type == self.agent_type)
            and (self.reason is None or letter.headers.reason == self.reason)
            and (self.task_id is None or letter.task_id == self.task_id)
        )


class DeadLetters:
    """Works on the dead queue through a connection and a publisher."""

    def __init__(self, connection: Connection, publisher: Publisher, settings: Settings) -> None:
        self._connection, self._publisher, self._settings = connection, publisher, settings
        self._names = Names(settings.namespace)

    async def count(self) -> int:
        """Messages in the dead queue. Raises NotDeclared where there is no such queue yet."""
        return await self._connection.depth(self._names.dead)

    async def select(self, selection: Selection) -> AsyncIterator[DeadLetter]:
        """The selected dead letters, oldest first.

        Each is held until the iteration ends: `replay` or `discard` acknowledges it, or it goes back to the
        queue. Until then other consumers do not see it. Letters that arrive after the start are left out.
        """
        to_look_at = await self.count()
        found = 0
        async with Browser(self._connection, self._names.dead) as browser:
            if to_look_at == 0 or selection.limit == 0:
                return
            async for delivery in browser:
                letter = self._read(delivery)
                if selection.fits(letter):
                    found += 1
                    yield letter
                to_look_at -= 1
                if to_look_at <= 0 or found == selection.limit:
                    return

    def _read(self, delivery: Delivery) -> DeadLetter:
        headers = DeadLetterHeaders.from_headers(delivery.headers)
        try:
            return DeadLetter(delivery, headers, decode(delivery, self._settings), "")
        except InvalidTask as error:
            return DeadLetter(delivery, headers, None, str(error))

    async def replay(self, letter: DeadLetter) -> None:
        """Publish the task afresh, and only then acknowledge the dead letter.

        The attempts start over. An `expires_at` that has passed is removed, because a replayed task is meant
        to run. Raises InvalidTask when it is no task, UnknownAgentType, QueueFull or another
        PublishError; the dead letter then stays.
        """
        if letter.task is None:
            raise InvalidTask(f"message {letter.task_id} cannot be replayed: {letter.problem}")
        try:
            await self._publisher.publish(self._fresh(letter.task, letter.delivery))
        except Unroutable as error:
            raise UnknownAgentType(
                f"task {letter.task_id}: no queue takes agent type {letter.agent_type!r}: "
                "start a worker that has such an agent, then replay"
            ) from error
        except QueueFull as error:
            raise QueueFull(f"the queue of {letter.agent_type!r} is full: replay the rest later") from error
        letter.delivery.ack()

    def _fresh(self, task: Task, delivery: Delivery) -> Message:
        body = delivery.body
        if task.expires_at is not None and task.expires_at <= datetime.now(UTC):
            task = task.model_copy(update={"expires_at": None})
            body = task.model_dump_json(exclude_defaults=True).encode()
        headers = carried_along(delivery.headers) | {ATTEMPTS: 0, REPLAY: str(new_id())}
        return task_message(
            task,
            self._names,
            self._settings,
            body=body,
            headers=headers,
            reply_to=delivery.properties.reply_to,
            correlation_id=delivery.properties.correlation_id,
        )

    def discard(self, letter: DeadLetter) -> None:
        """Remove the dead letter for good."""
        letter.delivery.ack()
