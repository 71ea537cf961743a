"""The worker: assembles its parts, runs their loops, and drains. It owns a lane for each agent type."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Final

import structlog
from pydantic import JsonValue

from warren.agents.app import AgentSpec, Warren, shares
from warren.bus.connection import Connection
from warren.bus.consumer import Consumer
from warren.bus.delivery import Delivery
from warren.bus.events import Events
from warren.bus.publisher import Publisher
from warren.bus.retrying_publisher import RetryingPublisher
from warren.bus.topology import Names, too_long_for, topology
from warren.bus.upkeep import Upkeep
from warren.errors import BrokerUnavailable, NotDeclared, StoreUnavailable
from warren.fleet.counters import Tally, Totals
from warren.settings import Settings
from warren.store.ledger import Ledger
from warren.support.loops import Loops
from warren.support.stall_detector import Pulse
from warren.support.tracing import Tracing
from warren.worker.ageing import Ageing
from warren.worker.agent_queue import Lane, Slots
from warren.worker.answers import Answers
from warren.worker.breaker import State, Valve
from warren.worker.committer import Committer
from warren.worker.control import Control, ask_for_signs
from warren.worker.failure_detector import Fleet
from warren.worker.handler import Intake
from warren.worker.heartbeat import Health
from warren.worker.in_flight import Runs
from warren.worker.pool.pool import Pool
from warren.worker.prefetch import Sharing
from warren.worker.redelivery import Takeover
from warren.worker.run_factory import RunFactory
from warren.worker.scheduler import warn_of_the_unscheduled
from warren.worker.services import Remembering, note_long
from warren.worker.settlement import Planner

log = structlog.get_logger(__name__)

# Seconds for the last settlements at shutdown, after all runs have been released.
LAST_WORDS: Final = 5.0


class Worker:
    """Runs an application's agents on the tasks of a broker, until `stop` is called.

    `run()` returns when everything is drained. Raises AgentError if the agents do not fit the prefetch,
    QueueMismatch if a queue exists with other arguments, AccessRefused if the broker refuses us at the start.
    While the broker is not reachable, the worker waits for it.
    """

    def __init__(self, app: Warren, settings: Settings, url: str) -> None:
        self.worker_id = f"{_host()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.settings = settings
        self._tally = Tally()
        self._shares = shares(list(app.agents.values()), settings.prefetch)
        self._app = app
        self._names = Names(settings.namespace)
        self._tracing = Tracing.of(settings, self._names.tasks)
        self._consuming = Connection(settings, url, f"{self.worker_id} consuming", self._declare_on)
        self._publishing = Connection(settings, url, f"{self.worker_id} publishing")
        self._publisher = Publisher(self._publishing)
        self.lanes: dict[str, Lane] = {}
        self._runs = Runs()
        # After this silence the broker takes a worker's messages back (RabbitMQ, *Heartbeats*).
        self._pulse = Pulse(settings.amqp_heartbeat)
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._fleet: Fleet | None = None
        self._health: Health | None = None
        self._is_warned = False

    # -- life -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until `stop`, then drain."""
        # Events have their own channel: a refusal closes it, which must not delay results and dead letters.
        self._events = Events(Publisher(self._publishing), self._names, self.worker_id)
        async with AsyncExitStack() as stack:
            remembering = await Remembering.open(stack, self.settings, self.worker_id, self._store_changed)
            if remembering is None:
                warn_of_the_unscheduled(self._app.agents.values())
            await self._run(remembering)

    async def _run(self, remembering: Remembering | None) -> None:
        control, ageing, health, fleet = self._assemble(remembering)
        with suppress(StoreUnavailable):  # the control loop tries again
            await control.catch_up()
        await self._connect_at_once()
        async with Loops() as loops:
            self._start_loops(loops, control, ageing, health, fleet)
            if remembering is not None:
                loops.start("long runs", note_long(self._runs, remembering.ledger))
                remembering.start(
                    loops,
                    self._app.agents.values(),
                    self._publisher,
                    self._publishing,
                    self._consuming,
                    self._declare,
                )
            self._start()
            try:
                await self._work(loops)
            finally:
                await self._drain(ageing, remembering)
                await self.pool.close()
                await self._say_goodbye(health)
        await self._close()

    def _assemble(self, remembering: Remembering | None) -> tuple[Control, Ageing, Health, Fleet]:
        """Put the parts together."""
        ledger = remembering.ledger if remembering else None
        board = remembering.board if remembering else None
        # Answers have their own channel, as events do: a refusal closes it.
        answers = Answers(Publisher(self._publishing), self.settings)
        publisher = RetryingPublisher(self._publisher, self._declare)
        planner = Planner(self._names, self.settings, self.worker_id)
        self._committer = Committer(
            publisher, answers, self._events, planner, self._names, self._runs, self._tally, ledger
        )
        control = Control(self._consuming, self._names, self.lanes, self._runs, board)
        self.pool = Pool(self.settings, self._events.tell)
        factory = RunFactory(
            self.worker_id,
            self.settings,
            self._tally,
            self._committer,
            self._events,
            ledger,
            self.pool,
            self._pulse,
            self._tracing,
        )
        self._intake = Intake(
            self.settings,
            self._runs,
            factory.make,
            self._tally,
            planner,
            self._committer,
            ledger,
            None if ledger is None else self._takeover(ledger, control),
            self._tracing,
        )
        self.lanes.update((name, self._lane(spec)) for name, spec in self._app.agents.items())
        ageing = Ageing(self._consuming, publisher, planner, self._committer, self.settings, self._declare)
        self._health = Health(
            self.worker_id, self.lanes, self._runs, self._tally, self.pool, self._events, self._consuming,
            self._publishing, ledger, self.settings,
            {"commands": control.refusals, "answers": answers.replies.refusals},
        )  # fmt: skip
        self._fleet = Fleet(self.worker_id, self.lanes, self._events, self._consuming, self.settings)
        return control, ageing, self._health, self._fleet

    def _takeover(self, ledger: Ledger, control: Control) -> Takeover:
        # Its own channel, as for events.
        ask = partial(ask_for_signs, Publisher(self._publishing), self._names)
        return Takeover(ledger, self.settings, control.is_cancelled, self._pulse, ask)

    def _start_loops(
        self, loops: Loops, control: Control, ageing: Ageing, health: Health, fleet: Fleet
    ) -> None:
        loops.start("pulse", self._pulse.run())
        loops.start("publishing connection", self._publishing.supervise())
        loops.start("consuming connection", self._consuming.supervise())
        loops.start("events", self._events.run())
        loops.start("settlements", self._committer.run())
        loops.start("heartbeat", health.beat())
        loops.start("event loop lag", health.watch_lag())
        loops.start("agent recovery", self.pool.recover())
        loops.start("idle agents", self.pool.retire())
        loops.start("ageing", ageing.run())
        upkeep = Upkeep(self._publishing, self._names, self._declare)
        loops.start("topology", upkeep.run())
        loops.start("sharing", Sharing(self.lanes, self.settings.prefetch).run())
        loops.start("peers", fleet.listen())
        loops.start("lost peers", fleet.watch())
        loops.start("control", control.listen())
        loops.start("control in the store", control.refresh())
        for lane in self.lanes.values():
            loops.start(f"consumer {lane.spec.agent_type}", lane.consumer.run())

    @property
    def running(self) -> int:
        """The number of tasks in this worker now."""
        return len(self._runs)

    @property
    def totals(self) -> Totals:
        """The counts since the start, summed over all agent types."""
        return self._tally.totals

    @property
    def peers(self) -> int:
        """The number of other workers that are heard, without lost ones."""
        return 0 if self._fleet is None else self._fleet.peers

    def health(self) -> dict[str, JsonValue]:
        """The state of this worker as JSON, as in its heartbeats.

        It has running tasks and agents in each state, by agent type; messages waiting in the queues at the
        last heartbeat; breakers; totals since the start; lag of the event loop (seconds); memory (bytes).
        Raises RuntimeError before `run` has begun to work.
        """
        if self._health is None:
            raise RuntimeError("this worker does not run yet")
        return self._health.report()

    def stop(self) -> None:
        """Drain and end. A second call releases running tasks at once."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    def _store_changed(self, up: bool, reason: str) -> None:  # noqa: FBT001 - a callback's signature
        """Pause consumption while the store is away: without it no task can end."""
        self._events.tell(
            "store", "store", "up" if up else "down", previous="down" if up else "up", reason=reason
        )
        for lane in self.lanes.values():
            (lane.resume if up else lane.hold)("store")

    async def _connect_at_once(self) -> None:
        """Make the first connection here, so that lasting errors are raised. Later ones are supervised."""
        try:
            await self._consuming.open()
        except (BrokerUnavailable, NotDeclared) as error:
            log.warning("broker.awaited", error=str(error))

    def _start(self) -> None:
        log.info(
            "worker.started",
            worker_id=self.worker_id,
            agents=self._shares,
            prefetch=self.settings.prefetch,
        )
        for agent in self._app.agents.values():
            self._warn_of_immortals(agent)
        self._events.tell("worker", self.worker_id, "started", details={"agents": dict(self._shares)})
        for lane in self.lanes.values():
            lane.feed()

    def _warn_of_the_long(self, connection: Connection) -> None:
        for agent in self._app.agents.values():
            timeout = agent.timeout or self.settings.task_timeout
            problem = too_long_for(timeout, connection.profile, connection.version, self.settings)
            if problem is not None:
                log.warning("agent.too_long", agent_type=agent.agent_type, hint=problem)

    def _warn_of_immortals(self, agent: AgentSpec) -> None:
        retries = self.settings.retries if agent.retries is None else agent.retries
        if retries + 1 >= self.settings.breaker_fail_max:
            log.warning(
                "agent.immortal",
                agent_type=agent.agent_type,
                hint=f"one task that always fails opens the breaker before its {retries + 1} attempts are "
                "used up, and never dies: raise WARREN_BREAKER_FAIL_MAX or lower its retries",
            )

    async def _work(self, loops: Loops) -> None:
        """Wait for `stop`, or for a loop that fails, and raise its error."""
        failing = asyncio.create_task(loops.watch())
        stopping = asyncio.create_task(self._stopping.wait())
        done, _ = await asyncio.wait({failing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for waiting in (failing, stopping):
            waiting.cancel()
        if failing in done:
            failing.result()

    async def _drain(self, ageing: Ageing, remembering: Remembering | None) -> None:
        """Stop consuming, let running tasks finish in time, release the rest, in this order."""
        self._events.tell("worker", self.worker_id, "draining", details={"running": len(self._runs)})
        log.info("worker.draining", running=len(self._runs), drain_timeout_s=self.settings.drain_timeout)
        for lane in self.lanes.values():
            lane.hold("drain")
        await asyncio.wait(
            [asyncio.create_task(lane.consumer.paused()) for lane in self.lanes.values()], timeout=LAST_WORDS
        )
        # Tasks that only wait are released at once: another worker may run them now.
        self._runs.release(lambda run: run.is_idle)
        self._intake.leave()
        hurry = asyncio.create_task(self._hurry.wait())
        rest = asyncio.create_task(self._intake.all_settled())
        await asyncio.wait(
            {hurry, rest}, timeout=self.settings.drain_timeout, return_when=asyncio.FIRST_COMPLETED
        )
        self._runs.release(lambda _: True)
        await asyncio.wait({rest}, timeout=LAST_WORDS)
        await ageing.drain(LAST_WORDS)
        if remembering is not None:
            await remembering.drain(LAST_WORDS)
        for waiting in (hurry, rest):
            waiting.cancel()
        self._intake.abandon()
        self._committer.abandon()

    async def _say_goodbye(self, health: Health) -> None:
        details = self.totals.as_json() | {"tally": health.tally()}
        self._events.tell("worker", self.worker_id, "stopped", details=details)
        try:
            async with asyncio.timeout(LAST_WORDS):
                await self._events.flushed()
        except TimeoutError:
            log.warning("worker.unheard", reason="the broker did not take the last events in time")

    async def _close(self) -> None:
        for lane in self.lanes.values():
            lane.valve.close()
            await lane.consumer.close()
        await self._consuming.close()
        await self._publishing.close()
        log.info("worker.stopped", worker_id=self.worker_id, **self.totals.as_json())

    # -- topology and lanes ----------------------------------------------------------------------------

    async def _declare_on(self, connection: Connection) -> None:
        await connection.declare(
            topology(self._app.agents, connection.profile, self.settings, connection.version)
        )
        if not self._is_warned:
            self._is_warned = True
            self._warn_of_the_long(connection)

    async def _declare(self) -> None:
        await self._declare_on(self._consuming)

    def _lane(self, spec: AgentSpec) -> Lane:
        name, share = spec.agent_type, self._shares[spec.agent_type]

        def deliver(delivery: Delivery) -> None:
            self._intake.take(self.lanes[name], delivery)

        return Lane(
            spec=spec,
            share=share,
            ceiling=spec.concurrency or self.settings.prefetch,
            consumer=Consumer(self._consuming, self._names.queue(name), deliver, self._declare),
            valve=Valve(
                name,
                fail_max=self.settings.breaker_fail_max,
                reset_timeout=self.settings.breaker_reset_timeout,
                on_change=lambda previous, state, reason: self._valve_changed(name, previous, state, reason),
                on_spare=lambda: self.lanes[name].consumer.renew(),  # noqa: PLW0108 - there is no lane yet
            ),
            slots=Slots(share),
        )

    def _valve_changed(self, name: str, previous: State, state: State, reason: str) -> None:
        log.warning("breaker.changed", agent_type=name, state=state, previous=previous, reason=reason)
        details: dict[str, JsonValue] = {"reset_timeout_s": self.settings.breaker_reset_timeout}
        if (worker_id := self.lanes[name].valve.adopted_from) is not None:
            details["adopted_from"] = worker_id
        self._events.tell(
            "breaker",
            name,
            state,
            previous=previous,
            reason=reason,
            details=details,
        )
        self.lanes[name].follow(state)


def _host() -> str:
    """The host's name as a single word of a routing key."""
    name = "".join(
        letter if letter.isascii() and letter.isalnum() else "-"
        for letter in socket.gethostname().split(".")[0]
    )
    return name.strip("-")[:40] or "worker"
