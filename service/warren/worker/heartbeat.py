"""Health reports of a worker: heartbeats, full queues, lag of the event loop."""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import Mapping
from typing import Final

import structlog
from pydantic import JsonValue

from warren.bus.connection import Connection
from warren.bus.events import Events
from warren.bus.topology import Names
from warren.errors import BrokerError
from warren.fleet.counters import Tally
from warren.settings import Settings
from warren.store.ledger import Ledger
from warren.support.refusals import Refusals
from warren.worker.agent_queue import Lane
from warren.worker.in_flight import Runs
from warren.worker.pool.pool import Pool

log = structlog.get_logger(__name__)

LAG_INTERVAL: Final = 0.25  # seconds between two measurements
LAG_TOLD: Final = 1.0  # seconds of lag above which the event loop is reported as blocked
AVAILABLE_BELOW: Final = 0.9  # part of the capacity below which a full queue counts as available again


class Health:
    """Loops that measure one worker and report on it."""

    def __init__(
        self,
        worker_id: str,
        lanes: Mapping[str, Lane],
        runs: Runs,
        tally: Tally,
        pool: Pool,
        events: Events,
        consuming: Connection,
        publishing: Connection,
        ledger: Ledger | None,
        settings: Settings,
        refused: Mapping[str, Refusals],
    ) -> None:
        self._worker_id, self._lanes, self._runs, self._tally = worker_id, lanes, runs, tally
        self._pool, self._refused = pool, refused
        self._events, self._settings, self._ledger = events, settings, ledger
        self._connection, self._publishing = consuming, publishing
        self._names = Names(settings.namespace)
        self._full: set[str] = set()
        self._lag = 0.0
        self._waiting: dict[str, int] = {}

    async def beat(self) -> None:
        """Publish a heartbeat every `heartbeat_interval` seconds, with the depths of the queues."""
        while True:
            self._waiting = await self._depths()
            self._events.tell("worker", self._worker_id, "heartbeat", details=self.report())
            self._lag = 0.0
            await asyncio.sleep(self._settings.heartbeat_interval)

    async def watch_lag(self) -> None:
        """Measure the lag of the event loop: an agent that blocks the loop stops the whole worker."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_INTERVAL
            await asyncio.sleep(LAG_INTERVAL)
            lag = loop.time() - due
            self._lag = max(self._lag, lag)
            if lag > LAG_TOLD:
                log.warning(
                    "loop.blocked",
                    seconds=round(lag, 1),
                    running=dict(self._runs.by_agent_type()),
                    hint="an `async def` agent runs blocking code: a plain `def` gets a thread",
                )

    def report(self) -> dict[str, JsonValue]:
        """The state of the worker as JSON. The lag is the largest since the last heartbeat."""
        running, agents, awaiting = self._runs.by_agent_type(), self._pool.counts(), self._pool.waiting()
        return {
            "interval_s": self._settings.heartbeat_interval,
            "prefetch": self._settings.prefetch,
            "running": {name: running[name] for name in self._lanes},
            "waiting": dict(self._waiting),
            "awaiting_agent": {name: awaiting[name] for name in self._lanes},
            "agents": {name: dict(agents.get(name, {})) for name in self._lanes},
            "left_behind": self._pool.isolation.left_behind,
            "paused": [name for name, lane in self._lanes.items() if "pause" in lane.holds],
            "breakers": {name: lane.valve.state for name, lane in self._lanes.items()},
            "totals": self._tally.totals.as_json(),
            "tally": self.tally(),
            "store_is_up": self._ledger.is_up if self._ledger else None,
            "loop_lag_s": round(self._lag, 4),
            "memory_bytes": _peak_memory(),
        }

    def tally(self) -> dict[str, JsonValue]:
        """All counters since the worker started. They only grow."""
        connections = {"consuming": self._connection, "publishing": self._publishing}
        counted = self._tally.as_json()
        counted["reconnects"] = {name: max(0, one.reconnects) for name, one in connections.items()}
        refused: dict[str, JsonValue] = {what: refusals.count for what, refusals in self._refused.items()}
        counted["refused"] = refused
        if self._ledger is not None:
            refused["rows"] = self._ledger.refused
            counted["commit"] = self._ledger.commits.as_json()
        return counted

    async def _depths(self) -> dict[str, int]:
        """Messages waiting in each task queue. Queues that cannot be checked now are left out."""
        depths: dict[str, int] = {}
        for name in self._lanes:
            if not self._connection.is_open:
                break
            try:
                depths[name] = await self._connection.depth(self._names.queue(name))
            except BrokerError as error:
                log.info("queue.unknown", agent_type=name, error=str(error))
                continue
            self._tell_fullness(name, depths[name])
        return depths

    def _tell_fullness(self, name: str, depth: int) -> None:
        capacity = self._settings.queue_capacity
        if name not in self._full and depth >= capacity:
            self._full.add(name)
            self._events.tell(
                "queue", name, "full", previous="available", details={"waiting": depth, "capacity": capacity}
            )
        elif name in self._full and depth < capacity * AVAILABLE_BELOW:
            self._full.discard(name)
            self._events.tell(
                "queue", name, "available", previous="full", details={"waiting": depth, "capacity": capacity}
            )


def _peak_memory() -> int:
    """The largest resident set of this process so far, in bytes (getrusage gives KiB, on macOS bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
