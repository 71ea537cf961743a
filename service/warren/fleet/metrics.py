"""The fleet's metrics: for Prometheus as text, for people and programs as JSON.

Workers open no port for this. A worker's heartbeats and its `stopped` event carry its counts. The process
that serves the metrics reads those events, and looks at the queues and the store at each request:

    metrics = Metrics(settings)
    metrics.take(event, loop.time())                    # every event of `health.worker.#`
    metrics.excuse(loop.time() + reconnect_max_delay)   # after a time in which no event could be heard
    await metrics.look_up_lost(archive, loop.time())    # now and then
    sight = await look_around(connection, names, metrics.agent_types, store)    # from `lookout`
    body = metrics.exposition(sight, loop.time())       # bytes, of CONTENT_TYPE
    metrics.as_json(sight, loop.time())

Counters begin with this object and leave out what workers did before (see `fleet_totals`). They
include what a killed worker told last, with what the store says that it ended after that, and never go down.
Gauges are of workers that can be heard.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Final, get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from pydantic import JsonValue

from warren.fleet.counters import REFUSED, MemberState
from warren.fleet.event_reader import EventReader
from warren.fleet.membership import MISSED, Peer, Peers
from warren.fleet.overview import MOST_AGENT_TYPES, AgentTypeLine, Overview, overview
from warren.fleet.snapshot import Sight
from warren.fleet.totals import CONNECTIONS, FleetTotals, Timed
from warren.settings import Settings
from warren.store.task_records import Archive
from warren.support.histogram import cumulative, quantile
from warren_schemas import Event

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
# What becomes of a run; a task may have several of these, but only one of the first three.
OUTCOMES: Final = ("succeeded", "dead", "cancelled", "released", "postponed", "superseded", "stale")
# Counters by their names in a worker's totals.
COUNTERS: Final = {
    "delivered": ("warren_task_deliveries", "Tasks that workers were given, again and again included."),
    "redelivered": ("warren_task_redeliveries", "Deliveries that may have been a second copy."),
    "adopted": ("warren_task_adoptions", "Second copies that were settled with the run of the first."),
    "retried": ("warren_task_retries", "Attempts that failed and are made again."),
    "promoted": ("warren_task_promotions", "Tasks that rose a class because they had waited long."),
}
TIMES: Final[dict[Timed, tuple[str, str]]] = {
    "run": ("warren_task_run_seconds", "How long attempts took, however they ended."),
    "wait": ("warren_task_wait_seconds", "How long tasks stood ready before their first attempt."),
}
QUANTILES: Final = {"p50_s": 0.5, "p90_s": 0.9, "p99_s": 0.99}
AGENT_STATES: Final = frozenset(get_args(MemberState))
BREAKER_STATES: Final = ("closed", "open", "half_open")
WORKER_STATES: Final = ("up", "draining", "silent")
# After so many missed heartbeats a worker counts as lost, announced or not: maybe no peer is left to do it.
GIVEN_UP: Final = 2 * MISSED
MOST_LOST: Final = 1000  # lost workers that wait to be looked up in the store


class Metrics:
    """The metrics of a fleet. Not thread-safe."""

    def __init__(self, settings: Settings, since: datetime | None = None) -> None:
        self.totals = FleetTotals(since or datetime.now(UTC))
        self.peers = Peers(settings.heartbeat_interval)
        self._capacity = settings.queue_capacity
        self.events = EventReader()
        self._lost = 0
        self._to_look_up: OrderedDict[str, None] = OrderedDict()

    @property
    def agent_types(self) -> set[str]:
        """Agent types that workers have told of."""
        reported = Counter(name for peer in self.peers for name in peer.report.breakers)
        return self.totals.agent_types | {name for name, _ in reported.most_common(MOST_AGENT_TYPES)}

    @property
    def refused(self) -> dict[str, int]:
        """The number of refused events by reason."""
        return {
            "event": self.events.refusals.count,
            "heartbeat": self.peers.refusals.count,
            "tally": self.totals.refusals.count,
        }

    def take(self, event: Event, now: float) -> None:
        """Take in an event of a worker; others do nothing. `now`: seconds on the listener's own clock."""
        self.totals.take(event)
        before = len(self.peers)
        self.peers.take(event, now)
        if event.kind == "worker" and event.state == "lost" and len(self.peers) < before:
            self._note_lost(event.subject)

    def excuse(self, now: float) -> None:
        """Reset the silence of all workers to 0, because no event could be heard until now."""
        self.peers.excuse(now)

    def exposition(self, sight: Sight, now: float) -> bytes:
        """The metrics as Prometheus reads them (text format 0.0.4)."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Families(self._snapshot(sight, now)))
        return generate_latest(registry)

    def as_json(self, sight: Sight, now: float) -> dict[str, JsonValue]:
        """The same numbers by agent type, with estimates of quantiles (seconds)."""
        seen = self._snapshot(sight, now)
        store = sight.store
        workers: dict[str, JsonValue] = {state: seen.workers(state) for state in WORKER_STATES}
        return {
            "since": self.totals.since.isoformat(),
            "workers": workers | {"lost": self._lost},
            "agent_types": {name: seen.line(name) for name in seen.agent_types},
            "commit": seen.timed("commit", ""),
            "store": None
            if store is None
            else {"waiting": store.waiting, "due": store.due, "relay_lag_s": round(store.lag_s, 3)},
        }

    async def look_up_lost(self, archive: Archive, now: float) -> None:
        """Count what lost workers have ended since they were heard last. Raises StoreUnavailable."""
        self._give_up(now)
        while self._to_look_up:
            worker_id = next(iter(self._to_look_up))
            self.totals.ended(worker_id, await archive.ended_by(worker_id))
            self._to_look_up.pop(worker_id, None)

    def _note_lost(self, worker_id: str) -> None:
        self._lost += 1
        self._to_look_up[worker_id] = None
        if len(self._to_look_up) > MOST_LOST:
            self._to_look_up.popitem(last=False)

    def _give_up(self, now: float) -> None:
        for peer in self.peers.silent(now):
            if peer.missed(now) > GIVEN_UP:
                self.peers.lose(peer.worker_id, now)
                self._note_lost(peer.worker_id)

    def _snapshot(self, sight: Sight, now: float) -> Snapshot:
        self._give_up(now)
        return Snapshot(self, sight, now, capacity=self._capacity, lost=self._lost)


class Snapshot:
    """The metrics at one moment."""

    def __init__(self, metrics: Metrics, sight: Sight, now: float, *, capacity: int, lost: int) -> None:
        self.totals, self.sight, self.capacity, self.lost = metrics.totals, sight, capacity, lost
        self.refused = metrics.refused
        self.fleet: Overview = overview(metrics.peers, now)
        self.heard: list[Peer] = metrics.peers.heard(now)
        in_store = set(sight.store.dead) | sight.store.paused if sight.store else set()
        self.agent_types = sorted(metrics.agent_types | set(sight.queues) | in_store)
        self._awaiting = Counter[str]()
        for peer in self.heard:
            self._awaiting.update(peer.report.awaiting_agent)

    def workers(self, state: str) -> int:
        """The number of workers in this state."""
        return sum(worker.state == state for worker in self.fleet.workers)

    def of(self, name: str) -> AgentTypeLine:
        """An agent type over all workers that have it."""
        nobody = AgentTypeLine(workers=0, waiting=None, running=0, breakers={}, agents={}, rates=None)
        return self.fleet.agent_types.get(name, nobody)

    def awaiting(self, name: str) -> int:
        """Tasks that wait for an agent of the pool."""
        return self._awaiting[name]

    def timed(self, which: Timed, name: str) -> dict[str, JsonValue]:
        """A histogram in a few numbers; None where nothing was observed."""
        buckets, seconds = self.totals.buckets(which, name)
        count = sum(buckets.values())
        estimates = {label: quantile(part, buckets) for label, part in QUANTILES.items()}
        return {"count": int(count), "mean_s": seconds / count if count else None, **estimates}

    def line(self, name: str) -> dict[str, JsonValue]:
        """All about one agent type."""
        queue, store, of = self.sight.queues.get(name), self.sight.store, self.of(name)
        return {
            "tasks": {outcome: int(self.totals.count(name, outcome)) for outcome in OUTCOMES},
            **{counted: int(self.totals.count(name, counted)) for counted in COUNTERS},
            "run": self.timed("run", name),
            "wait": self.timed("wait", name),
            "running": of.running,
            "awaiting_agent": self.awaiting(name),
            "workers": of.workers,
            "breakers": dict(of.breakers),
            "agents": dict(of.agents),
            "queue": {
                "messages": queue.ready if queue else None,
                "consumers": queue.consumers if queue else None,
                "capacity": self.capacity,
            },
            "dead_letters": store.dead.get(name, 0) if store else None,
            "is_paused": name in store.paused if store else None,
        }


class _Families(Collector):
    """A snapshot as metric families, named by https://prometheus.io/docs/practices/naming/."""

    def __init__(self, seen: Snapshot) -> None:
        self._seen = seen

    def collect(self) -> Iterable[Metric]:
        yield from self._counters()
        yield from self._histograms()
        yield from self._of_agent_types()
        yield from self._of_workers()
        yield from self._of_queues()
        yield from self._of_the_store()

    def _counters(self) -> Iterator[Metric]:
        totals, names = self._seen.totals, self._seen.agent_types
        tasks = CounterMetricFamily(
            "warren_tasks", "Runs of tasks by what became of them.", labels=["agent_type", "outcome"]
        )
        for name in names:
            for outcome in OUTCOMES:
                tasks.add_metric([name, outcome], totals.count(name, outcome))
        yield tasks
        for counted, (metric, text) in COUNTERS.items():
            family = CounterMetricFamily(metric, text, labels=["agent_type"])
            for name in names:
                family.add_metric([name], totals.count(name, counted))
            yield family
        reconnects = CounterMetricFamily(
            "warren_reconnects", "Connections to the broker that were opened again.", labels=["connection"]
        )
        for connection in sorted(CONNECTIONS):
            reconnects.add_metric([connection], totals.reconnects(connection))
        yield reconnects
        events = CounterMetricFamily(
            "warren_events_refused", "Events that do not fit, by what was wrong with them.", labels=["what"]
        )
        for what, count in self._seen.refused.items():
            events.add_metric([what], count)
        yield events
        messages = CounterMetricFamily(
            "warren_messages_refused",
            "Commands and answers that workers refused, and rows that they set aside.",
            labels=["what"],
        )
        for what in sorted(REFUSED):
            messages.add_metric([what], totals.refused(what))
        yield messages
        yield CounterMetricFamily("warren_workers_lost", "Workers that fell silent.", value=self._seen.lost)

    def _histograms(self) -> Iterator[Metric]:
        for which, (metric, text) in TIMES.items():
            family = HistogramMetricFamily(metric, text, labels=["agent_type"])
            for name in self._seen.agent_types:
                buckets, seconds = self._seen.totals.buckets(which, name)
                family.add_metric([name], cumulative(buckets), seconds)
            yield family
        buckets, seconds = self._seen.totals.buckets("commit")
        text = "How long groups of ends took to be durable in the store."
        yield HistogramMetricFamily(
            "warren_store_commit_seconds", text, buckets=cumulative(buckets), sum_value=seconds
        )

    def _of_agent_types(self) -> Iterator[Metric]:
        seen = self._seen
        running = _gauge("warren_tasks_running", "Tasks that run now.", "agent_type")
        awaiting = _gauge("warren_tasks_awaiting_agent", "Tasks that wait for an agent.", "agent_type")
        workers = _gauge("warren_agent_type_workers", "Workers that have the agent type.", "agent_type")
        breakers = _gauge("warren_breakers", "Workers by the state of a breaker.", "agent_type", "state")
        agents = _gauge("warren_agents", "Agents by their state.", "agent_type", "state")
        for name in seen.agent_types:
            of = seen.of(name)
            running.add_metric([name], of.running)
            awaiting.add_metric([name], seen.awaiting(name))
            workers.add_metric([name], of.workers)
            for state in BREAKER_STATES:
                breakers.add_metric([name, state], of.breakers.get(state, 0))
            for state, count in of.agents.items():
                if state in AGENT_STATES:
                    agents.add_metric([name, state], count)
        yield from (running, awaiting, workers, breakers, agents)

    def _of_workers(self) -> Iterator[Metric]:
        states = _gauge("warren_workers", "Workers by their state.", "state")
        lag = _gauge("warren_worker_loop_lag_seconds", "Longest delay of the event loop lately.", "worker_id")
        memory = _gauge("warren_worker_memory_bytes", "Largest resident set so far.", "worker_id")
        store = _gauge("warren_worker_store_up", "Whether the worker reaches its store.", "worker_id")
        for state in WORKER_STATES:
            states.add_metric([state], self._seen.workers(state))
        for peer in self._seen.heard:
            lag.add_metric([peer.worker_id], peer.report.loop_lag_s)
            memory.add_metric([peer.worker_id], peer.report.memory_bytes)
            if peer.report.store_is_up is not None:
                store.add_metric([peer.worker_id], peer.report.store_is_up)
        prefetch = self._seen.fleet.prefetch
        yield GaugeMetricFamily("warren_prefetch_tasks", "Tasks that may run at once.", value=prefetch)
        yield from (states, lag, memory, store)

    def _of_queues(self) -> Iterator[Metric]:
        messages = _gauge("warren_queue_messages", "Tasks that wait in their queue.", "agent_type")
        consumers = _gauge("warren_queue_consumers", "Consumers of a task queue.", "agent_type")
        capacity = _gauge("warren_queue_capacity", "Tasks that a queue takes at most.", "agent_type")
        for name, queue in self._seen.sight.queues.items():
            messages.add_metric([name], queue.ready)
            consumers.add_metric([name], queue.consumers)
            capacity.add_metric([name], self._seen.capacity)
        is_up = self._seen.sight.broker_is_up
        yield GaugeMetricFamily("warren_broker_up", "Whether the broker can be reached.", value=is_up)
        yield from (messages, consumers, capacity)

    def _of_the_store(self) -> Iterator[Metric]:
        sight, store = self._seen.sight, self._seen.sight.store
        if sight.has_store:
            is_up = store is not None
            yield GaugeMetricFamily("warren_store_up", "Whether the store can be reached.", value=is_up)
        if store is None:
            return
        dead = _gauge("warren_dead_letters", "Dead letters in the store.", "agent_type")
        paused = _gauge("warren_agent_type_paused", "Whether the agent type is paused.", "agent_type")
        for name in self._seen.agent_types:
            dead.add_metric([name], store.dead.get(name, 0))
            paused.add_metric([name], name in store.paused)
        yield from (dead, paused)
        for metric, text, value in (
            ("warren_store_waiting_tasks", "Tasks that wait in the store.", store.waiting),
            ("warren_store_due_tasks", "Tasks in the store whose time has come.", store.due),
            ("warren_relay_lag_seconds", "How long the oldest of these has been due.", store.lag_s),
        ):
            yield GaugeMetricFamily(metric, text, value=value)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=labels)
