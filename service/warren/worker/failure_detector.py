"""What a worker does about its peers: it tells when one is lost, and opens its breakers with theirs."""

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
LOOKS: Final = 10  # looks at the peers in one heartbeat interval
# Of those who notice that a worker is lost, the first in line announces it at once, the next one so many
# intervals later, unless the announcement was heard by then. Who is far behind in the line waits a random
# time more than LAST, not its turn: many may have gone with the lost one.
TURN: Final = 0.5
LAST: Final = 4
ADOPTED_ONCE_IN: Final = 10  # reset timeouts of a breaker: it opens with a peer's at most once in so long


class Fleet:
    """The other workers, as one worker hears them."""

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
        """How many others work, as far as is heard."""
        return len(self._peers)

    async def listen(self) -> None:
        """Take in the events of others until cancelled. What is published while we are away is missed."""
        await self._subscription.run()

    async def watch(self) -> None:
        """Announce whoever is not heard any more, until cancelled."""
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
            # Our own heartbeats come back to us. Without one since the peer's, it is we who do not hear:
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
        """How many heartbeat intervals we leave to those who are before us in the line, which is by id."""
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
        """Open our breaker when a peer's has opened by five failures, so that ours need not fail as well.

        Not when it only adopted the opening itself, or it would go around for ever. Not when a probe failed
        there: where that worker alone is ill, it would close the others down with every probe. Nor soon after
        the last one: a worker that is ill again and again, or made up, must not keep ours open.
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
        """What was said meanwhile is missed.

        A broker that was away has cut off everybody, and some may need this long to be back.
        """
        self._peers.excuse(asyncio.get_running_loop().time() + self._settings.reconnect_max_delay)
