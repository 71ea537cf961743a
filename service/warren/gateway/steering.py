"""Steering the fleet from the gateway: the store decides at once, the workers are told in the background.

So it works while the broker is away: a worker that misses the message reads the store.
"""

from __future__ import annotations

from uuid import UUID

import structlog

from warren.bus.connection import Message
from warren.bus.control_messages import Command, control_message
from warren.bus.publisher import Publisher
from warren.bus.replies import Replies
from warren.bus.topology import Names
from warren.client.control import answer_to
from warren.errors import BrokerError
from warren.settings import Settings
from warren.store.audit import Note
from warren.store.control import Board, Cancelled
from warren.support.loops import Loops

log = structlog.get_logger(__name__)


class Steering:
    """Cancels tasks, pauses and resumes agent types; notes are written where something changes.

    Raises StoreUnavailable.
    """

    def __init__(self, board: Board, publisher: Publisher, settings: Settings, loops: Loops) -> None:
        self._board, self._publisher, self._loops = board, publisher, loops
        self._names, self._replies = Names(settings.namespace), Replies(settings)

    async def cancel(self, task_id: UUID, note: Note) -> Cancelled:
        """Cancel a task, wherever it is. One that has ended stays as it ended."""
        decided = await self._board.cancel(task_id, note)
        if not decided.had_ended:
            self._tell(control_message(Command(action="cancel", task_id=task_id), self._names))
            answer = answer_to(task_id, decided, self._replies)
            if answer is not None:
                self._tell(answer)
        return decided

    async def pause(self, agent_type: str, note: Note) -> bool:
        """Have the fleet stop running an agent type. False: it was paused already."""
        changed = await self._board.pause(agent_type, note)
        self._tell(control_message(Command(action="pause", agent_type=agent_type), self._names))
        return changed

    async def resume(self, agent_type: str, note: Note) -> bool:
        """Have the fleet run an agent type again. False: it was not paused."""
        changed = await self._board.resume(agent_type, note)
        self._tell(control_message(Command(action="resume", agent_type=agent_type), self._names))
        return changed

    async def paused(self) -> set[str]:
        """The agent types that are paused."""
        return await self._board.paused()

    def _tell(self, message: Message) -> None:
        self._loops.start("control message", self._publish(message))

    async def _publish(self, message: Message) -> None:
        try:
            await self._publisher.publish(message)
        except BrokerError as error:
            log.warning("control.untold", error=str(error), hint="workers read it from the store")
