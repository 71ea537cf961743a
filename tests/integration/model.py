"""Workers without a broker: the real look-ups, settling, outbox and relay over queues that are lists.

Each act of a worker is done before the next one begins, but it may die in the middle of it: before a message
that it publishes, behind it, or before it acknowledges.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any, Literal, cast
from uuid import UUID

from aiormq import spec

from warren.agents.steps import Memory
from warren.bus.connection import Message
from warren.bus.delivery import Delivery
from warren.bus.messages import Key, attempts_of, decode, dispatch_of, key_of
from warren.bus.retrying_publisher import RetryingPublisher
from warren.bus.topology import Names
from warren.fleet.counters import Tally
from warren.settings import Settings
from warren.store.commit_group import Verdict
from warren.store.database import Store
from warren.store.ledger import Entry, Ledger
from warren.store.outbox import Outbox
from warren.store.run_writes import Write, run_of
from warren.support.stall_detector import Pulse
from warren.worker.answers import Answers
from warren.worker.committer import Committer
from warren.worker.in_flight import Run, Runs
from warren.worker.outcome import Outcome
from warren.worker.records import begun
from warren.worker.redelivery import Takeover
from warren.worker.relay import Relay
from warren.worker.settlement import Planner, Subject

# Whoever is killed so often is innocent here.
SETTINGS = Settings(namespace="model", crash_limit=1_000_000)
NEVER = float("inf")  # seconds: no worker of the model stands still

Death = Literal["never", "before publishing", "after publishing", "before acknowledging"]


class Died(Exception):
    """The worker is dead."""


@dataclass(eq=False)
class Copy:
    """One message in some queue. As on classic queues, the broker only says that it was delivered before."""

    message: Message
    redelivered: bool = False

    def delivered_to(self, channel: Channel, tag: int = 0) -> Delivery:
        """What a consumer gets."""
        message = self.message
        properties = spec.Basic.Properties(
            message_id=message.message_id,
            headers=dict(message.headers),
            priority=message.priority,
            reply_to=message.reply_to,
            correlation_id=message.correlation_id,
        )
        raw = SimpleNamespace(
            body=message.body,
            header=SimpleNamespace(properties=properties),
            redelivered=self.redelivered,
            routing_key=message.routing_key,
            delivery_tag=tag,
            consumer_tag=None,
        )
        return Delivery("model", cast("Any", raw), cast("Any", channel), lambda _: None, counted=False)


@dataclass
class Broker:
    """The queues: what is ready, what is dead, and all that was answered, by the life of the task."""

    ready: list[Copy] = field(default_factory=list)
    dead: list[Copy] = field(default_factory=list)
    answers: defaultdict[Key, list[bytes]] = field(default_factory=lambda: defaultdict(list))

    def take(self, message: Message, of: Key | None = None) -> None:
        """Route a message, as the exchanges do. An answer says not of which life it is: `of` does."""
        match message.exchange.rpartition(".")[2]:
            case "tasks":
                self.ready.append(Copy(message))
            case "dlx":
                self.dead.append(Copy(message))
            case "":
                assert of is not None
                self.answers[of].append(message.body)


class Channel:
    """What one connection of a worker holds unacknowledged."""

    queue_gone = False

    def __init__(self, broker: Broker) -> None:
        self._broker, self._tags = broker, count(1)
        self.held: dict[int, Copy] = {}
        self.is_open = True

    def deliver(self, copy: Copy) -> Delivery:
        """Hand a message that was ready to the worker."""
        self._broker.ready.remove(copy)
        tag = next(self._tags)
        self.held[tag] = copy
        return copy.delivered_to(self, tag)

    def delivered(self, tag: int) -> None:
        """Nothing to do: no acknowledgements are put together."""

    def ack(self, tag: int) -> None:
        """On a lost connection it changes nothing."""
        if self.is_open:
            del self.held[tag]

    def is_settled(self, tag: int) -> bool:
        """Whether the worker has settled it; with a lost connection nothing is held any more."""
        return tag not in self.held

    async def give_back(self, tag: int, *, requeue: bool) -> None:
        """Back to the queue, unless it is there already."""
        assert requeue, "the model has no dead-letter exchange"
        if self.is_open:
            self._return(self.held.pop(tag))

    def lose(self) -> None:
        """The connection is gone, and all that it held is ready again."""
        self.is_open = False
        for copy in self.held.values():
            self._return(copy)
        self.held.clear()

    def _return(self, copy: Copy) -> None:
        copy.redelivered = True
        self._broker.ready.append(copy)


class CountingLedger(Ledger):
    """Counts the ends that were accepted, by the life of the task."""

    ends: Counter[Key]

    async def write(self, writes: Sequence[Write]) -> list[Verdict]:
        """Write what became of runs, and count the ends that count."""
        verdicts = await super().write(writes)
        for one, verdict in zip(writes, verdicts, strict=True):
            if isinstance(one, Entry) and verdict is Verdict.COUNTS:
                self.ends[Key(run_of(one).task_id, run_of(one).life)] += 1
        return verdicts


class Mortal:
    """Publishes for a worker, which may die of it: then the publish never ends."""

    def __init__(self, worker: ModelWorker) -> None:
        self._worker = worker
        self.died = asyncio.Event()

    async def publish(self, message: Message, **_: Any) -> None:
        """Publish and see the confirm, as the worker's publisher does."""
        try:
            await self._worker.publish(message)
        except Died:
            self.died.set()
            await asyncio.Event().wait()


class ModelWorker:
    """One worker; after `die` or `lose_connection` it goes on as a new one, or with a new connection."""

    def __init__(self, name: str, broker: Broker, store: Store, ends: Counter[Key]) -> None:
        self.name, self._broker = name, broker
        self.ledger = CountingLedger(store, name, lambda _up, _reason: None)
        self.ledger.ends = ends
        self._death: Death = "never"
        self._settles: Key | None = None
        self._start()

    def _start(self) -> None:
        publisher, events = cast("Any", self), cast("Any", SimpleNamespace(tell=lambda *_, **__: None))
        self.runs, self.channel = Runs(), Channel(self._broker)
        self._takeover = Takeover(self.ledger, SETTINGS, lambda _: False, Pulse(NEVER), _nobody_hears)
        names, self._mortal = Names(SETTINGS.namespace), Mortal(self)
        self._planner = Planner(names, SETTINGS, self.name)
        self._committer = Committer(
            RetryingPublisher(cast("Any", self._mortal), _no_declare),
            Answers(cast("Any", self._mortal), SETTINGS),
            events,
            self._planner,
            names,
            self.runs,
            Tally(),
            self.ledger,
        )
        self._writing: asyncio.Task[None] | None = None
        self._outbox = Outbox(self.ledger)
        self._relay = Relay(self._outbox, publisher, cast("Any", None), SETTINGS)

    # -- what happens to it -------------------------------------------------------------------------------

    def die(self) -> None:
        """Everything in its memory is lost; another one takes its place."""
        self.channel.lose()
        self.close()
        self._start()

    def close(self) -> None:
        """End what it does in the background."""
        self._committer.abandon()
        if self._writing is not None:
            self._writing.cancel()

    def lose_connection(self) -> None:
        """Its runs go on, and their messages are delivered to whoever comes first."""
        self.channel.lose()
        self.channel = Channel(self._broker)

    # -- what it does -------------------------------------------------------------------------------------

    async def receive(self, copy: Copy) -> None:
        """Take a message: it joins a run of its task, is settled from what is kept, or begins to run."""
        seen = copy.delivered_to(Channel(self._broker))
        task = decode(seen, SETTINGS)
        key = key_of(task, seen.headers)
        if any(run.key == key and run.dispatch < dispatch_of(seen.headers) for run in self.runs):
            return  # it would wait for the run
        delivery = self.channel.deliver(copy)
        match await self.runs.adopt(key, delivery):
            case "joined":
                return
            case "ended before":
                delivery.ack()
                return
        memory = Memory(self.ledger, begun(task, key, self.name), SETTINGS.max_result_bytes)
        execution = cast("Any", SimpleNamespace(attempts=attempts_of(delivery.headers)))
        handler = cast("Any", asyncio.current_task())
        run = Run(key, task, [delivery], execution, memory, handler)
        self.runs.begin(run)
        async with self._takeover.admitted(run) as outcome:
            if outcome is not None:
                await self.end(run, outcome)

    async def end(self, run: Run, outcome: Outcome, death: Death = "never") -> None:
        """Settle a run, and die on the way if that is so."""
        run.outcome, self._settles, self._death = outcome, Key(run.key.task_id, run.key.replay), death
        if death == "before acknowledging":
            self.channel.lose()
        record = None if run.is_recorded else run.memory.run
        subject = Subject(
            run.task.agent_type,
            run.task,
            run.deliveries,
            record,
            run.memory.has_row,
            run.is_recorded,
            run.key,
        )
        self._writing = self._writing or asyncio.create_task(self._committer.run())
        settling = asyncio.ensure_future(self._committer.settle(self._planner.plan(outcome, subject)))
        dying = asyncio.ensure_future(self._mortal.died.wait())
        await asyncio.wait({settling, dying}, return_when=asyncio.FIRST_COMPLETED)
        if self._mortal.died.is_set() or death == "before acknowledging":
            self.die()
        for one in (settling, dying):
            one.cancel()

    async def relay(self, death: Death = "never") -> None:
        """Publish what is due."""
        self._death = death
        due = await self._outbox.claim_due(100)
        try:
            await self._relay._publish(due)
        except Died:
            self.die()

    async def publish(self, message: Message, **_: Any) -> None:
        """Publish and see the confirm, as the worker's publisher does."""
        if self._death == "before publishing":
            raise Died
        self._broker.take(message, self._settles)
        if self._death == "after publishing":
            raise Died

    def holds(self) -> list[Copy]:
        """The messages that it has not acknowledged."""
        return list(self.channel.held.values())


async def _nobody_hears(task_id: UUID) -> None:
    """Workers of the model that live on give no signs of life."""


async def _no_declare() -> None:
    raise AssertionError("every queue is there")


def life_of(copy: Copy) -> tuple[Key, int]:
    """The life that a message is of, and which publication it is."""
    headers = copy.message.headers
    replay = str(headers.get("warren-replay", ""))
    return Key(UUID(copy.message.message_id), replay), dispatch_of(headers)
