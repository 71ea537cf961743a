"""Failure detector of a worker: announces lost peers, and opens circuit breakers together with them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Final

import structlog

from warren.bus.connection import Connection
from warren.bus.delivery import Delivery
from warren.bus.events import Events
from warren.bus.subscription import Subscription
from warren.bus.topology import Names
from warren.fleet.event_reader import EventReader
from warren.fleet.membership import MISSED, Peer, Peers
from warren.settings import Settings
from warren.worker.agent_queue import Lane
from warren_schemas import Event

log = structlog.get_logger(__name__)

HEARD: Final = ("health.worker.#", "health.breaker.*.open")
LOOKS: Final = 10  # checks of the peers in one heartbeat interval
# Workers announce a lost peer in the order of their ids. The first announces it at once, each next one TURN
# intervals later, unless it has heard the announcement. A worker behind the first LAST waits a random time
# instead of its turn: many workers may have been lost together.
TURN: Final = 0.5
LAST: Final = 4
ADOPTED_ONCE_IN: Final = 10  # reset timeouts: a breaker adopts a peer's opening at most once in this time


class Fleet:
    """The membership of the fleet, as one worker hears it."""

    def __init__(
        self,
        worker_id: str,
        lanes: Mapping[str, Lane],
        events: Events,
        connection: Connection,
        settings: Settings,
    ) -> None:
        self._worker_id, self._lanes, self._events = worker_id, lanes, events
        self._settings = settings
        self._peers = Peers(settings.heartbeat_interval)
        self._reader = EventReader()
        self._adopted_at: dict[str, float] = {}  # by agent type
        self._heard_ourselves = 0.0
        self._luck = random.random()  # noqa: S311 - no secret hangs on it
        self._subscription = Subscription(
            connection,
            Names(settings.namespace).events,
            HEARD,
            f"{settings.namespace}.peers",
            self._on_delivery,
            self._excuse_everybody,
            kind="topic",
        )

    @property
    def peers(self) -> int:
        """The number of other workers that are heard."""
        return len(self._peers)

    async def listen(self) -> None:
        """Receive the events of others until cancelled. Events published while disconnected are missed."""
        await self._subscription.run()

    async def watch(self) -> None:
        """Announce lost workers until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._settings.heartbeat_interval / LOOKS)
            self._look(loop.time())

    def _look(self, now: float) -> None:
        silent = self._peers.silent(now)
        if not silent:
            return
        patience = MISSED + self._turn(now)
        for peer in silent:
            # We also receive our own heartbeats. If none came since the peer's last one, the fault is here:
            # the network is cut, the broker is away, or this process stood still.
            heard_without_it = self._heard_ourselves - peer.heard_at > (MISSED - 1) * peer.interval
            if peer.missed(now) > patience and heard_without_it:
                self._announce(peer, now)

    def _announce(self, peer: Peer, now: float) -> None:
        self._peers.lose(peer.worker_id, now)
        seconds = round(now - peer.heard_at, 1)
        log.warning("worker.lost", worker_id=peer.worker_id, silent_s=seconds)
        self._events.tell(
            "worker",
            peer.worker_id,
            "lost",
            reason=f"not heard for {seconds:g} s",
            details={"silent_s": seconds, "interval_s": peer.interval},
        )

    def _turn(self, now: float) -> float:
        """Heartbeat intervals to wait for workers with smaller ids, which announce first."""
        before = sum(peer.worker_id < self._worker_id for peer in self._peers.heard(now))
        return TURN * before if before < LAST else TURN * LAST + self._luck

    def _on_delivery(self, delivery: Delivery) -> None:
        delivery.ack()
        event = self._reader.read(delivery)
        if event is None:
            return
        now = asyncio.get_running_loop().time()
        if event.kind == "breaker":
            self._open_too(event, now)
        elif event.worker_id == self._worker_id:
            self._heard_ourselves = now
        elif event.subject == self._worker_id:
            log.warning("worker.presumed_lost", by=event.worker_id, reason=event.reason)
        else:
            self._peers.take(event, now)

    def _open_too(self, event: Event, now: float) -> None:
        """Open our breaker after a peer's has opened by failures, so that ours need not fail as often.

        There are three exceptions. An opening that the peer only adopted is ignored, or it would go around
        without end. An opening by a failed probe is ignored: if only that worker is ill, each of its probes
        would stop the others. An opening soon after the last adopted one is ignored: a worker that fails
        again and again, or an invented one, must not keep our breaker open.
        """
        lane = self._lanes.get(event.subject)
        is_echo = event.worker_id in (None, self._worker_id) or "adopted_from" in event.details
        if lane is None or is_echo or event.previous == "half_open":
            return
        pause = ADOPTED_ONCE_IN * self._settings.breaker_reset_timeout
        if lane.valve.state != "closed" or now - self._adopted_at.get(event.subject, -pause) < pause:
            return
        self._adopted_at[event.subject] = now
        lane.valve.adopt_open(str(event.worker_id), event.reason or "")

    def _excuse_everybody(self) -> None:
        """Give all peers time after a new subscription, because events before it were missed.

        An outage of the broker disconnects all workers, and some need up to `reconnect_max_delay` to return.
        """
        self._peers.excuse(asyncio.get_running_loop().time() + self._settings.reconnect_max_delay)
