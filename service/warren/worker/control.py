"""Control commands in a worker: cancel tasks, pause and resume agent types.

The store decides. A message only makes a command fast: a worker that misses one reads the store soon after.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from typing import Final
from uuid import UUID

import structlog
from pydantic import ValidationError

from warren.bus.connection import Connection
from warren.bus.control_messages import LARGEST, Command, control_message
from warren.bus.delivery import Delivery
from warren.bus.publisher import Publisher
from warren.bus.subscription import Subscription
from warren.bus.topology import Names
from warren.errors import BrokerError, StoreRefused, StoreUnavailable
from warren.store.control import Board
from warren.support.failure import what_does_not_fit
from warren.support.refusals import Refusals
from warren.worker.agent_queue import Lane
from warren.worker.in_flight import Runs

log = structlog.get_logger(__name__)

REFRESH: Final = 2.0  # seconds between two reads of the store
BACK: Final = 86_400.0  # seconds that a worker looks back at its start for cancelled tasks
OVERLAP: Final = 60.0  # seconds that each later read goes back: clocks differ, and commits take time
REMEMBERED: Final = 100_000  # cancelled tasks in a worker's memory; the store has all
# Limit for tasks that only a message has named, kept apart: a flood of invented ids must not push out the ids
# that come from the store.
TOLD: Final = 10_000
ASKING: Final = 1.0  # seconds that a question to the other workers may take


async def ask_for_signs(publisher: Publisher, names: Names, task_id: UUID) -> None:
    """Ask the worker that runs a task for signs of life. Without its connection it gives them unasked."""
    try:
        await publisher.publish(
            control_message(Command(action="watch", task_id=task_id), names), timeout=ASKING
        )
    except BrokerError as error:
        log.info("task.unasked", task_id=str(task_id), error=str(error))


class Control:
    """Carries out commands in one worker. Without a board (a store) it has only messages."""

    def __init__(
        self,
        connection: Connection,
        names: Names,
        lanes: Mapping[str, Lane],
        runs: Runs,
        board: Board | None,
    ) -> None:
        self._lanes, self._runs, self._board = lanes, runs, board
        self._cancelled: OrderedDict[UUID, None] = OrderedDict()  # by the store
        self._told: OrderedDict[UUID, None] = OrderedDict()  # by messages
        self.refusals = Refusals("control.unreadable")
        self._look_from = time.time() - BACK
        self._subscription = Subscription(connection, names.control, [""], names.control, self._on_delivery)

    def is_cancelled(self, task_id: UUID) -> bool:
        """Whether this worker has heard that the task was cancelled. The store must be asked to be sure."""
        return task_id in self._cancelled or task_id in self._told

    async def listen(self) -> None:
        """Carry out commands as they arrive, until cancelled."""
        await self._subscription.run()

    async def refresh(self) -> None:
        """Read the store every REFRESH seconds until cancelled: messages may have been missed."""
        while True:
            await asyncio.sleep(REFRESH)
            with suppress(StoreUnavailable, StoreRefused):  # the ledger reports it and pauses consumption
                await self.catch_up()

    async def catch_up(self) -> None:
        """Carry out the present state of the store. Raises StoreUnavailable."""
        if self._board is None:
            return
        paused = await self._board.paused()
        for name, lane in self._lanes.items():
            (lane.hold if name in paused else lane.resume)("pause")
        for task_id, moment in await self._board.cancelled_since(self._look_from):
            self._cancel(task_id, self._cancelled, REMEMBERED)
            self._look_from = max(self._look_from, moment - OVERLAP)

    def _on_delivery(self, delivery: Delivery) -> None:
        delivery.ack()
        if len(delivery.body) > LARGEST:
            self.refusals.note(f"{len(delivery.body)} bytes are over the limit of {LARGEST}")
            return
        try:
            command = Command.model_validate_json(delivery.body)
        except ValidationError as error:
            self.refusals.note(what_does_not_fit(error))
        else:
            self._carry_out(command)

    def _carry_out(self, command: Command) -> None:
        match command:
            case Command(action="cancel", task_id=UUID() as task_id):
                self._cancel(task_id, self._told, TOLD)
            case Command(action="watch", task_id=UUID() as task_id):
                self._runs.watch(task_id)
            case Command(action="pause" | "resume" as action, agent_type=str(agent_type)):
                self._set_paused(agent_type, paused=action == "pause")

    def _cancel(self, task_id: UUID, known: OrderedDict[UUID, None], most: int) -> None:
        """Cancel the runs of a task, and remember its id in case the task arrives later."""
        if task_id in known:
            return
        known[task_id] = None
        if len(known) > most:
            known.popitem(last=False)
        self._runs.cancel(task_id)

    def _set_paused(self, agent_type: str, *, paused: bool) -> None:
        lane = self._lanes.get(agent_type)
        if lane is None or ("pause" in lane.holds) is paused:
            return
        log.info("agent.paused" if paused else "agent.resumed", agent_type=agent_type)
        (lane.hold if paused else lane.resume)("pause")
