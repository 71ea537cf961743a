"""Snapshot of queue depths and store statistics."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import structlog

from warren.bus.connection import Connection, QueueState
from warren.bus.topology import Names
from warren.errors import BrokerError, StoreUnavailable, StoreUnusable
from warren.store.database import Store
from warren.store.statistics import StoreSight, look_into

STORE_PATIENCE = 3.0  # seconds: who looks on (Prometheus gives up after 10) is told that it does not answer

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Sight:
    """Queues by agent type, without those that cannot be seen now, and the store.

    `store` is None where it cannot be seen; then `has_store` says whether there should be one.
    """

    broker_is_up: bool = False
    queues: Mapping[str, QueueState] = field(default_factory=dict)
    has_store: bool = False
    store: StoreSight | None = None


async def look_around(
    connection: Connection, names: Names, agent_types: Collection[str], store: Store | None
) -> Sight:
    """Look at the queues of these agent types and at the store; what is away is left out."""
    queues: dict[str, QueueState] = {}
    for name in sorted(agent_types):
        if not connection.is_open:
            break
        try:
            queues[name] = await connection.look(names.queue(name))
        except BrokerError as error:
            log.info("queue.unknown", agent_type=name, error=str(error))
    return Sight(connection.is_open, queues, store is not None, await _seen(store))


async def _seen(store: Store | None) -> StoreSight | None:
    if store is None:
        return None
    try:
        async with asyncio.timeout(STORE_PATIENCE):
            return await look_into(store)
    except (StoreUnavailable, StoreUnusable, TimeoutError) as error:
        log.warning("store.unseen", error=str(error) or f"no answer within {STORE_PATIENCE:g} s")
        return None
