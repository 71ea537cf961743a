"""Sender of answers: publishes results to the queues that producers named in `reply_to`."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final
from uuid import UUID

import structlog

from warren.bus.connection import Message
from warren.bus.publisher import Publisher
from warren.bus.replies import Replies, result_message, undelivered_body
from warren.bus.retrying_publisher import REFUSALS, RetryingPublisher
from warren.errors import AccessRefused, MessageRefused, QueueFull, Unroutable
from warren.settings import Settings
from warren.support.loops import GrowingPause
from warren.worker.settlement import Answer

log = structlog.get_logger(__name__)

PAUSE: Final = 0.5  # seconds before a refused answer is sent again; doubles each time
LONGEST_PAUSE: Final = 5.0
# Seconds that answers wait for the permission to publish. A change of permissions takes about this long, and
# each waiting answer keeps its task's place in the worker. After that the permission counts as refused.
PATIENCE: Final = 60.0


class Answers:
    """Sends the answers of one worker, at least once. `replies` decides which queues are allowed.

    All answers need the same permission: to write to the default exchange. While it is missing, one answer is
    tried again and again, and the others wait, because each refusal closes the channel. So `publisher` must
    have no other users.
    """

    def __init__(self, publisher: Publisher, settings: Settings) -> None:
        self._publisher = RetryingPublisher(publisher)
        self.replies = Replies(settings)
        self._asking = asyncio.Lock()
        self._refused_at: float | None = None

    async def send(self, task_id: UUID, answer: Answer, attempts: int) -> None:
        """Send the result to each wanted and allowed queue.

        If the broker refuses the message, an error is sent in its place, so that the producer does not wait
        in vain.
        """
        for reply_to, correlation_id in answer.wanted:
            if not self.replies.allow(reply_to):
                continue
            message = result_message(answer.body, task_id, reply_to, correlation_id, answer.headers)
            try:
                try:
                    await self._publish(message)
                except MessageRefused as error:
                    log.warning("result.refused", task_id=str(task_id), reply_to=reply_to, error=str(error))
                    apology = undelivered_body(task_id, attempts, str(error))
                    await self._publish(replace(message, body=apology))
            except (Unroutable, QueueFull, MessageRefused, AccessRefused) as error:
                log.warning("result.unwanted", task_id=str(task_id), reply_to=reply_to, error=str(error))

    async def _publish(self, answer: Message) -> None:
        """Publish, and wait for a missing permission. Raises AccessRefused after PATIENCE seconds of it."""
        if self._refused_at is None:
            try:
                return await self._try(answer)
            except AccessRefused:
                pass
        async with self._asking:
            pauses = GrowingPause(PAUSE, LONGEST_PAUSE)
            while True:
                try:
                    return await self._try(answer)
                except AccessRefused:
                    if self._refused_for() >= PATIENCE:
                        raise
                await asyncio.sleep(pauses.failed())

    async def _try(self, answer: Message) -> None:
        try:
            await self._publisher.publish(answer, raises=(*REFUSALS, Unroutable, AccessRefused))
        except AccessRefused as error:
            if self._refused_at is None:
                self._refused_at = asyncio.get_running_loop().time()
                log.warning("answers.wait", longest_s=PATIENCE, error=str(error))
            raise
        except (QueueFull, Unroutable, MessageRefused):
            self._allowed()
            raise
        self._allowed()

    def _refused_for(self) -> float:
        return 0.0 if self._refused_at is None else asyncio.get_running_loop().time() - self._refused_at

    def _allowed(self) -> None:
        if self._refused_at is not None:
            log.info("answers.allowed", after_s=round(self._refused_for(), 1))
            self._refused_at = None
