"""Broadcast of the fleet's events: one subscription serves all listeners of this gateway."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final
from uuid import UUID

import structlog

from warren.bus.connection import Connection
from warren.bus.delivery import Delivery
from warren.bus.subscription import Subscription
from warren.bus.topology import Names
from warren.errors import AccessRefused, BrokerUnavailable, StoreUnavailable
from warren.fleet.metrics import Metrics
from warren.fleet.overview import Overview, overview
from warren.gateway.live.listeners import Listener, Turns
from warren.gateway.live.server_sent import happened
from warren.gateway.middleware.authentication import Caller
from warren.gateway.middleware.problems import later
from warren.settings import Settings
from warren.store.keys import Keys
from warren.store.task_records import Archive
from warren.support.descriptors import room_for_streams
from warren_schemas import Event

PATTERNS: Final = ("health.worker.#", "health.breaker.*.open", "task.#")
ALARMS: Final = 100  # openings of breakers that a replay has before it
LOOK: Final = 0.5  # seconds between two looks for tasks that have ended
SHORTEST: Final = 0.1  # … and if an event says that one has
CHUNK: Final = 500  # tasks, keys or sessions that one look asks for at once
GUARD: Final = 2.0  # seconds between checks that listeners' keys are valid, and for lost workers
ENDED: Final = frozenset({"succeeded", "dead", "cancelled"})

log = structlog.get_logger(__name__)


class Heard:
    """Reads the fleet's events once: workers, breakers that open, and tasks with listeners."""

    def __init__(self, connection: Connection, archive: Archive, keys: Keys, settings: Settings) -> None:
        self.metrics = Metrics(settings)
        self._archive, self._keys = archive, keys
        # At most as many listeners as there are descriptors for streams, and never all of them for one user.
        room = room_for_streams()
        self._most = min(settings.gateway_listeners, room)
        self._most_of_one = min(settings.gateway_listeners_per_user, max(1, room // 2))
        self._grace = settings.reconnect_max_delay
        self._listeners: dict[UUID, set[Listener]] = {}
        self._alarms: set[asyncio.Queue[Event]] = set()
        self._look = asyncio.Event()
        self.turns = Turns()
        self._listening: Counter[str] = Counter()  # by user
        self._connection, self._exchange = connection, Names(settings.namespace).events
        self._subscription = Subscription(
            connection,
            self._exchange,
            PATTERNS,
            f"{settings.namespace}.gateway",
            self._on_delivery,
            self._excuse_everybody,
            kind="topic",
        )

    def now(self) -> float:
        """The time in seconds, on the clock for the workers' silence."""
        return asyncio.get_running_loop().time()

    def overview(self) -> Overview:
        """The overview of the fleet from its events."""
        return overview(self.metrics.peers, self.now())

    @property
    def listening(self) -> int:
        """The number of listeners to tasks."""
        return self._listening.total()

    @contextmanager
    def listened(self, listener: Listener) -> Iterator[None]:
        """Tell the listener what happens, from the moment that this is entered. Raises ProblemError (503, or
        429 for one user) where as many listen as may.
        """
        user_id = listener.caller.user_id
        self._refuse_too_many(user_id)
        self._listeners.setdefault(listener.task_id, set()).add(listener)
        self._listening[user_id] += 1
        self._look.set()
        try:
            yield
        finally:
            self._listening[user_id] -= 1
            if not self._listening[user_id]:
                del self._listening[user_id]
            self.turns.forget(listener)
            self._listeners[listener.task_id].discard(listener)
            if not self._listeners[listener.task_id]:
                del self._listeners[listener.task_id]

    def _refuse_too_many(self, user_id: str) -> None:
        if self.listening >= self._most:
            raise later(503, "as many streams are open as there may be", kind="too-many-streams")
        if self._listening[user_id] >= self._most_of_one:
            told = f"{user_id} has {self._most_of_one} streams open, as many as one user may"
            raise later(429, told, kind="too-many-streams", limit=self._most_of_one)

    async def breakers(self) -> AsyncIterator[Event]:
        """Events of breakers that open, from the first iteration on."""
        alarms: asyncio.Queue[Event] = asyncio.Queue(ALARMS)
        self._alarms.add(alarms)
        try:
            while True:
                yield await alarms.get()
        finally:
            self._alarms.discard(alarms)

    def close(self) -> None:
        """End all listeners."""
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.end()
                listener.wake()

    # -- loops --------------------------------------------------------------------------------------------

    async def listen(self) -> None:
        """Take events in until cancelled. What is published while the broker is away is missed.

        A gateway that may not declare the exchange waits for the first worker, which does.
        """
        while True:
            try:
                await self._subscription.run()
            except AccessRefused as error:
                if not await self._lacks_exchange():
                    raise
                log.warning("gateway.waits_for_worker", exchange=self._exchange, error=str(error))
                await asyncio.sleep(GUARD)

    async def _lacks_exchange(self) -> bool:
        """Whether the exchange of events is not there; true where the broker cannot be asked."""
        try:
            return not await self._connection.has_exchange(self._exchange)
        except BrokerUnavailable:
            return True

    async def watch(self) -> None:
        """Read from the store which tasks have ended, for ever: events may be missed or not be published."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await self._look.wait()
            self._look.clear()
            with suppress(StoreUnavailable):
                await self._end_those_that_have()
            await asyncio.sleep(SHORTEST)

    async def guard(self) -> None:
        """End the streams of keys that are no longer valid and of sessions that are over, for ever."""
        while True:
            await asyncio.sleep(GUARD)
            with suppress(StoreUnavailable):
                await self._end_those_locked_out()

    async def count_the_lost(self) -> None:
        """Count the tasks that lost workers ended after their last heartbeat, for ever."""
        while True:
            await asyncio.sleep(GUARD)
            with suppress(StoreUnavailable):
                await self.metrics.look_up_lost(self._archive, self.now())

    async def _end_those_locked_out(self) -> None:
        listeners = [one for listeners in self._listeners.values() for one in listeners]
        valid = await _those(self._keys.valid, {one.caller.key_id for one in listeners})
        sessions = {one.caller.session for one in listeners if one.caller.session is not None}
        live = await _those(self._keys.live_sessions, sessions)
        locked_out = [one for one in listeners if not _may_listen(one.caller, valid, live)]
        for listener in locked_out:
            listener.end()
        self.turns.wake_soon(locked_out)

    async def _end_those_that_have(self) -> None:
        task_ids = list(self._listeners)
        for start in range(0, len(task_ids), CHUNK):
            for task_id in await self._archive.ended(task_ids[start : start + CHUNK]):
                record = await self._archive.task(task_id)  # once, however many listen
                listeners = self._listeners.get(task_id, set())
                for listener in listeners:
                    listener.end(record)
                self.turns.wake_soon(listeners)

    def _on_delivery(self, delivery: Delivery) -> None:
        delivery.ack()
        if delivery.routing_key.startswith("task.") and not self._listeners:
            return
        event = self.metrics.events.read(delivery)
        if event is None:
            return
        match event.kind:
            case "worker":
                self.metrics.take(event, self.now())
            case "breaker":
                for alarms in self._alarms:
                    with suppress(asyncio.QueueFull):
                        alarms.put_nowait(event)
            case "task":
                self._pass_on(event)

    def _pass_on(self, event: Event) -> None:
        try:
            task_id = UUID(str(event.details.get("task_id")))
        except ValueError:
            return
        listeners = self._listeners.get(task_id)
        if not listeners:
            return
        if event.state in ENDED:
            self._look.set()  # the store has the outcome
            return
        told = happened(event)  # once, however many listen
        for listener in listeners:
            listener.tell(told)
        self.turns.wake_soon(listeners)

    def _excuse_everybody(self) -> None:
        self.metrics.excuse(self.now() + self._grace)


def _may_listen(caller: Caller, valid: set[str], live: set[str]) -> bool:
    return caller.key_id in valid and (caller.session is None or caller.session in live)


async def _those(ask: Callable[[Sequence[str]], Awaitable[set[str]]], names: Iterable[str]) -> set[str]:
    """The subset of these names that the store returns, queried in chunks."""
    asked, found = sorted(names), set[str]()
    for start in range(0, len(asked), CHUNK):
        found |= await ask(asked[start : start + CHUNK])
    return found
