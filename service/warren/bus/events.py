"""Publisher of health and task events. It queues them in memory and publishes in the background."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

import structlog
from pydantic import JsonValue

from warren.bus.connection import Message
from warren.bus.messages import new_id
from warren.bus.publisher import Publisher
from warren.bus.topology import Names
from warren.errors import BrokerError, MessageTooLarge
from warren.support.rare_log import Rarely
from warren_schemas import Event, Kind, State

log = structlog.get_logger(__name__)

# Events that wait here while the broker is away. A full backlog drops the oldest: events carry no work.
BACKLOG: Final = 10_000
BATCH: Final = 100  # events in flight at once
PAUSE: Final = 1.0  # seconds between attempts while the broker refuses
LONGEST: Final = 2000  # characters of a text in an event: texts of agents and producers have no limit


class Events:
    """The events of one worker. `tell` never blocks and may be called from any thread."""

    def __init__(self, publisher: Publisher, names: Names, worker_id: str) -> None:
        self._publisher, self._names, self._worker_id = publisher, names, worker_id
        self._backlog: deque[Message] = deque(maxlen=BACKLOG)
        self._wake = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._loop = asyncio.get_running_loop()
        self._telling = Rarely()

    def tell(
        self,
        kind: Kind,
        subject: str,
        state: State,
        *,
        previous: State | None = None,
        reason: str | None = None,
        details: Mapping[str, JsonValue] | None = None,
    ) -> None:
        """Publish an event as soon as possible.

        Raises ValueError for a state that its kind does not have, and for details that are not JSON.
        """
        event = Event(
            version=1,
            event_id=new_id(),
            at=datetime.now(UTC),
            kind=kind,
            subject=subject,
            state=state,
            previous=previous,
            reason=_short(reason) if reason else None,
            worker_id=self._worker_id,
            details={
                name: _short(value) if isinstance(value, str) else value
                for name, value in (details or {}).items()
            },
        )
        self._loop.call_soon_threadsafe(self._append, self._message(event))

    def _append(self, message: Message) -> None:
        if len(self._backlog) == BACKLOG:
            log.warning("event.dropped", routing_key=self._backlog[0].routing_key, backlog=BACKLOG)
        self._backlog.append(message)
        self._empty.clear()
        self._wake.set()

    async def run(self) -> None:
        """Publish the queued events until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._backlog:
                batch = [self._backlog.popleft() for _ in range(min(BATCH, len(self._backlog)))]
                await asyncio.gather(*(self._publish(message) for message in batch))
            self._empty.set()

    async def _publish(self, message: Message) -> None:
        while True:
            try:
                return await self._publisher.publish(message)
            except MessageTooLarge as error:
                log.error("event.refused", routing_key=message.routing_key, error=str(error))
                return None
            except BrokerError as error:  # includes a lost permission or exchange: both can come back
                if self._telling.is_time(self._loop.time()):
                    log.warning("event.waits", routing_key=message.routing_key, error=str(error))
                await asyncio.sleep(PAUSE)

    def _message(self, event: Event) -> Message:
        return Message(
            exchange=self._names.events,
            routing_key=event.routing_key,
            body=event.model_dump_json().encode(),
            message_id=str(event.event_id),
            mandatory=False,  # an event needs no subscriber
        )

    async def flushed(self) -> None:
        """Wait until all events so far are published."""
        await asyncio.sleep(0)  # `tell` puts an event into the backlog at the next turn of the event loop
        await self._empty.wait()


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
