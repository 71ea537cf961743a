"""Pending results of a client. Answers arrive at least once, in any order, and perhaps too late."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pydantic import ValidationError

from warren.bus.delivery import Delivery
from warren.errors import InvalidResult
from warren.support.failure import what_does_not_fit
from warren.support.refusals import Refusals
from warren_schemas import Result


@dataclass(slots=True)
class _Awaited:
    """One pending answer, and the number of its waiters."""

    result: asyncio.Future[Result] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    waiters: int = 0


class Awaited:
    """The pending answers by task. Answers without a waiter are dropped and not stored.

    An answer arrives again if a worker or a client loses its connection before it has acknowledged.
    """

    def __init__(self) -> None:
        self._by_task: dict[str, _Awaited] = {}
        self._unreadable = Refusals("result.unreadable")

    def __len__(self) -> int:
        return len(self._by_task)

    @contextmanager
    def result_of(self, task_id: str) -> Iterator[asyncio.Future[Result]]:
        """The answer about this task, shared by all that wait for it now.

        It may raise InvalidResult.
        """
        awaited = self._by_task.setdefault(task_id, _Awaited())
        awaited.waiters += 1
        try:
            yield awaited.result
        finally:
            awaited.waiters -= 1
            if not awaited.waiters:
                del self._by_task[task_id]
                _mark_as_seen(awaited.result)

    def take(self, delivery: Delivery) -> None:
        """Give an answer to its waiters, and acknowledge it."""
        try:
            result = Result.model_validate_json(delivery.body)
        except ValidationError as error:
            self._refuse(str(delivery.properties.correlation_id), what_does_not_fit(error))
        else:
            awaited = self._by_task.get(str(result.task_id))
            if awaited is not None and not awaited.result.done():
                awaited.result.set_result(result)
        delivery.ack()

    def _refuse(self, task_id: str, told: str) -> None:
        self._unreadable.note(told)
        awaited = self._by_task.get(task_id)
        if awaited is not None and not awaited.result.done():
            awaited.result.set_exception(InvalidResult(f"the answer is no result that can be read: {told}"))


def _mark_as_seen(result: asyncio.Future[Result]) -> None:
    """Keep asyncio from logging an error that arrived after the last waiter had gone."""
    if result.done() and not result.cancelled():
        result.exception()
