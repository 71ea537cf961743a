"""The routes' backend: the store, the broker connections, and the background loops."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, Literal, Self, TypeAlias

import structlog
from pydantic import JsonValue

from warren.bus.connection import Connection
from warren.bus.publisher import Publisher
from warren.bus.topology import Names, topology
from warren.errors import ConfigurationError, StoreError
from warren.fleet.snapshot import Sight, look_around
from warren.gateway.live.broadcast import Heard
from warren.gateway.middleware.authentication import Caller
from warren.gateway.middleware.json_bounds import Aside
from warren.gateway.replay_runs import Carrier
from warren.gateway.steering import Steering
from warren.settings import Settings
from warren.store.admission import Admission
from warren.store.audit import Audit, Note
from warren.store.keys import Keys
from warren.store.task_records import Archive
from warren.support.loops import Loops
from warren.support.tracing import Tracing
from warren.worker.services import Remembering

log = structlog.get_logger(__name__)

PartState: TypeAlias = Literal["up", "down"]

PROBE: Final = 2.0  # seconds in which the store has to answer to count as there
PROBED: Final = 1.0  # seconds for which that counts
SIGHT: Final = 1.0  # seconds for which a look at the queues and the store is good
DRAIN: Final = 5.0  # seconds that the relay has at the end for what it is publishing


class Backend:
    """An open store and supervised connections. Both may go away and come back; until then requests fail.

    The relay runs here too, with the scheduler and the desk, so that what is submitted leaves the store even
    where no worker has this store.
    """

    def __init__(self, remembering: Remembering, settings: Settings, url: str, name: str) -> None:
        self.settings, self.names = settings, Names(settings.namespace)
        self.store = remembering.ledger.store
        self.tracing = Tracing.of(settings, self.names.tasks)
        self.loops, self._begun = Loops(), asyncio.Event()
        self._remembering = remembering
        self._publishing = Connection(settings, url, f"{name} publishing", self._declare_on)
        self._consuming = Connection(settings, url, f"{name} consuming")
        publisher = Publisher(self._publishing)
        self._publisher = publisher
        self.archive, self.keys, self.audit = Archive(self.store), Keys(self.store), Audit(self.store)
        self.admission = Admission(
            self.store,
            max_tasks_per_user=settings.max_tasks_per_user,
            outbox_capacity=settings.outbox_capacity,
        )
        self._looking, self._sight, self._seen_at = asyncio.Lock(), Sight(), -SIGHT
        self.heard = Heard(self._consuming, self.archive, self.keys, settings)
        self._probing, self._probed_at = asyncio.Lock(), -PROBED
        self._state: PartState = "down"
        self.aside = Aside()
        self.steering = Steering(remembering.board, publisher, settings, self.loops)
        self.carrier = Carrier(self.store, settings, self.heard, self.loops)

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings, url: str) -> AsyncIterator[Self]:
        """With the store open; one that is not there yet is waited for.

        Raises StoreUnusable, or ConfigurationError where the settings name no store.
        """
        name = f"gateway-{os.getpid()}-{secrets.token_hex(3)}"
        async with AsyncExitStack() as stack:
            remembering = await Remembering.open(stack, settings, name, _unheard)
            if remembering is None:
                raise ConfigurationError(
                    "WARREN_STORE_URL is `none`: the gateway answers when a task is durable, "
                    "and that needs a store"
                )
            yield cls(remembering, settings, url, name)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """With the loops running. The broker need not be there."""
        async with self.loops as loops:
            loops.start("publishing connection", self._publishing.supervise())
            loops.start("consuming connection", self._consuming.supervise())
            loops.start("events", self.heard.listen())
            loops.start("listeners", self.heard.turns.run())
            loops.start("outcomes", self.heard.watch())
            loops.start("listeners' keys", self.heard.guard())
            loops.start("lost workers", self.heard.count_the_lost())
            self._remembering.start(
                loops, (), self._publisher, self._publishing, self._consuming, self._declare
            )
            self._begun.set()
            try:
                yield
            finally:
                if self.broker_state == "up":  # else the relay is not publishing
                    await self._remembering.drain(DRAIN)
        await self._consuming.close()
        await self._publishing.close()

    async def sight(self) -> Sight:
        """A snapshot of the queues and the store, a second old at most."""
        async with self._looking:
            if time.monotonic() - self._seen_at > SIGHT:
                types = self.heard.metrics.agent_types
                self._sight = await look_around(self._publishing, self.names, types, self.store)
                self._seen_at = time.monotonic()
            return self._sight

    def note(self, caller: Caller, action: str, details: JsonValue = None) -> Note:
        """The audit note of a request. The store writes it in the same transaction as the action."""
        return Note(caller.key_id, caller.user_id, action, details)

    async def store_state(self) -> PartState:
        """Whether the store answers. The answer is kept for a second, because any caller may ask."""
        async with self._probing:
            if time.monotonic() - self._probed_at > PROBED:
                self._state = await self._probe()
                self._probed_at = time.monotonic()
            return self._state

    async def _probe(self) -> PartState:
        try:
            async with asyncio.timeout(PROBE):
                await self.store.ping()
        except (StoreError, TimeoutError) as error:
            log.warning("gateway.store_down", error=str(error))
            return "down"
        return "up"

    async def watch(self) -> None:
        """Wait until a loop fails, and raise its error."""
        await self._begun.wait()
        await self.loops.watch()

    @property
    def broker_state(self) -> PartState:
        """Whether both connections to the broker can be used."""
        return "up" if self._publishing.is_open and self._consuming.is_open else "down"

    async def _declare(self) -> None:
        await self._declare_on(self._publishing)

    async def _declare_on(self, connection: Connection) -> None:
        """Declare the topology that needs no agent: exchanges, the ageing queue and the dead queue.

        Workers declare them too, so that a gateway needs no permission for it once they are there.
        """
        wanted = topology((), connection.profile, self.settings)
        if not await connection.has(wanted):
            await connection.declare(wanted)


def _unheard(_up: bool, _reason: str) -> None:  # noqa: FBT001 - the ledger calls it so
    """Ignore the change: the ledger logs it, and requests see the store's state themselves."""
