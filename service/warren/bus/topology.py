"""Topology: exchanges, queues and bindings as frozen data, which `Connection.declare` declares.

Names and arguments are part of the wire contract. One description serves both queue profiles. Features that a
profile lacks are left out, and `WEAKER` lists them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from warren.settings import Settings
from warren_schemas import REASON

Profile = Literal["quorum", "classic"]
Arguments = dict[str, str | int | bool | None]

# The first version with strict priorities on quorum queues and a headers exchange that can match
# `x-first-death-reason`.
QUORUM_SINCE = (4, 3)
# The first version whose classic queues accept `x-consumer-timeout`. Older brokers, and queues made without
# it, use the node's own `consumer_timeout`. Since 4.3 classic queues have no time-out and no such argument.
CONSUMER_TIMEOUT_SINCE = (3, 12)
DEFAULT_CONSUMER_TIMEOUT = 1800.0  # seconds: RabbitMQ's default for `consumer_timeout`
# Classes have the priorities 2 (low) to 8 (urgent). Promoted tasks have odd priorities, up to 9.
CLASSIC_MAX_PRIORITY = 9

WEAKER: dict[Profile, tuple[str, ...]] = {
    "quorum": (),
    "classic": (
        "queues live on one node: they are durable, but not replicated",
        "a task expires or rises only at the head of its queue: behind endless urgent tasks, others starve",
        "it counts no deliveries: without a store, a task that kills its worker comes back without a limit",
        "what the broker itself dead-letters moves without confirms: at most once, should it crash",
    ),
}


@dataclass(frozen=True)
class Exchange:
    """A durable exchange."""

    name: str
    kind: Literal["direct", "headers", "topic", "fanout"]


@dataclass(frozen=True)
class Queue:
    """A queue and its arguments (`x-…`). The broker does not allow a change of the arguments.

    A queue is durable unless it is exclusive; an exclusive one ends with the connection that declared it.
    """

    name: str
    arguments: Arguments = field(default_factory=dict)
    exclusive: bool = False


@dataclass(frozen=True)
class Binding:
    """A binding: the exchange passes matching messages on to the queue."""

    exchange: str
    queue: str
    routing_key: str = ""
    arguments: Arguments = field(default_factory=dict)


@dataclass(frozen=True)
class Topology:
    """Everything to declare, in this order: exchanges, queues, bindings."""

    exchanges: tuple[Exchange, ...]
    queues: tuple[Queue, ...]
    bindings: tuple[Binding, ...]


@dataclass(frozen=True)
class Names:
    """The names of one namespace."""

    namespace: str

    @property
    def tasks(self) -> str:
        """The exchange that tasks are published to, with their agent type as the routing key."""
        return f"{self.namespace}.tasks"

    @property
    def dlx(self) -> str:
        """The dead-letter exchange, for messages that leave a task queue without success."""
        return f"{self.namespace}.dlx"

    @property
    def events(self) -> str:
        """The topic exchange of health and task events."""
        return f"{self.namespace}.events"

    @property
    def control(self) -> str:
        """The fanout exchange that reaches every worker."""
        return f"{self.namespace}.control"

    @property
    def ageing(self) -> str:
        """The queue of tasks that waited one ageing step."""
        return f"{self.namespace}.ageing"

    @property
    def dead(self) -> str:
        """The queue of dead letters."""
        return f"{self.namespace}.dead"

    @property
    def prefix(self) -> str:
        """The prefix of all names in this namespace."""
        return f"{self.namespace}."

    @property
    def replies(self) -> str:
        """The prefix of the reply queues that clients receive results on."""
        return f"{self.namespace}.replies."

    def queue(self, agent_type: str) -> str:
        """The task queue of an agent type."""
        return f"{self.namespace}.tasks.{agent_type}"

    def agent_type(self, queue: str) -> str:
        """The agent type of a task queue: the inverse of `queue`."""
        return queue.removeprefix(f"{self.namespace}.tasks.")


def profile_for(version: str, settings: Settings) -> Profile:
    """The queue profile: the one in the settings, or else the best for this broker version (`"4.3.6"`)."""
    if settings.queue_profile != "auto":
        return settings.queue_profile
    return "quorum" if _number(version) >= QUORUM_SINCE else "classic"


def _number(version: str) -> tuple[int, int]:
    major, minor = (int(part) for part in version.split(".")[:2])
    return major, minor


def carries_consumer_timeout(profile: Profile, version: str) -> bool:
    """Whether task queues of this profile carry `x-consumer-timeout` on a broker of this version.

    A classic queue made without the argument may be declared with it: the broker compares this argument for
    quorum queues only, and leaves a classic queue unchanged.
    """
    return profile == "quorum" or CONSUMER_TIMEOUT_SINCE <= _number(version) < QUORUM_SINCE


def longest_delivery(profile: Profile, version: str, settings: Settings) -> float | None:
    """The broker's time-out for an unacknowledged delivery, in seconds; None if there is none.

    A policy or a node's own `consumer_timeout` may differ, and AMQP offers no way to read them.
    """
    if carries_consumer_timeout(profile, version):
        return settings.consumer_timeout
    return None if _number(version) >= QUORUM_SINCE else DEFAULT_CONSUMER_TIMEOUT


def too_long_for(timeout: float, profile: Profile, version: str, settings: Settings) -> str | None:
    """A warning if an attempt of `timeout` seconds can outlast the consumer time-out; None if it cannot."""
    held = longest_delivery(profile, version, settings)
    if held is None or timeout < held:
        return None
    way_out = (
        "raise WARREN_CONSUMER_TIMEOUT (existing queues keep theirs: empty and delete them, or use another "
        "WARREN_NAMESPACE) or lower the agent's timeout"
        if carries_consumer_timeout(profile, version)
        else "set consumer_timeout in rabbitmq.conf, if that is not done yet, or lower the agent's timeout"
    )
    return (
        f"an attempt may take {timeout:g} s, and RabbitMQ {version} takes a delivery back after {held:g} s "
        f"(consumer timeout): {way_out}"
    )


def exchanges(names: Names) -> tuple[Exchange, ...]:
    """The four exchanges of a namespace."""
    return (
        Exchange(names.tasks, "direct"),
        Exchange(names.dlx, "headers"),
        Exchange(names.events, "topic"),
        Exchange(names.control, "fanout"),
    )


def task_queue(
    agent_type: str, names: Names, profile: Profile, settings: Settings, version: str = "0.0"
) -> Queue:
    """The queue of one agent type, with priorities, a capacity that refuses more, a dead-letter exchange."""
    arguments: Arguments = {
        "x-max-length": settings.queue_capacity,
        "x-overflow": "reject-publish",
        "x-dead-letter-exchange": names.dlx,
    }
    if profile == "quorum":
        arguments |= {
            "x-queue-type": "quorum",
            "x-dead-letter-strategy": "at-least-once",
            "x-delivery-limit": settings.delivery_limit,
        }
    else:
        arguments |= {"x-queue-type": "classic", "x-max-priority": CLASSIC_MAX_PRIORITY}
    if carries_consumer_timeout(profile, version):
        arguments["x-consumer-timeout"] = int(settings.consumer_timeout * 1000)
    return Queue(names.queue(agent_type), arguments)


def keeping_queue(name: str, profile: Profile) -> Queue:
    """A queue that drops no message: it has no capacity and no delivery limit.

    Quorum queues have a default limit of 20 deliveries (RabbitMQ 4.0). After it, a message without a
    dead-letter exchange is dropped. -1 removes that limit.
    """
    if profile == "quorum":
        return Queue(name, {"x-queue-type": "quorum", "x-delivery-limit": -1})
    return Queue(name, {"x-queue-type": "classic"})


def bindings(names: Names) -> tuple[Binding, ...]:
    """The bindings of the dead-letter exchange: expired tasks go to ageing, the others to the dead queue.

    With `any-with-x`, headers that begin with `x-` take part in the match (RabbitMQ, *Headers Exchange*).
    """

    def died_of(reason: str, queue: str) -> Binding:
        return Binding(names.dlx, queue, "", {"x-match": "any-with-x", "x-first-death-reason": reason})

    return (
        died_of("expired", names.ageing),
        died_of("rejected", names.dead),
        died_of("delivery_limit", names.dead),
        died_of("maxlen", names.dead),
        # No value: the header only has to exist.
        Binding(names.dlx, names.dead, "", {"x-match": "any", REASON: None}),
    )


def topology(
    agent_types: Iterable[str], profile: Profile, settings: Settings, version: str = "0.0"
) -> Topology:
    """The topology that a worker with these agent types needs on a broker of this version."""
    names = Names(settings.namespace)
    types = tuple(agent_types)
    return Topology(
        exchanges=exchanges(names),
        queues=(
            keeping_queue(names.dead, profile),
            keeping_queue(names.ageing, profile),
            *(task_queue(agent_type, names, profile, settings, version) for agent_type in types),
        ),
        bindings=(
            *bindings(names),
            *(Binding(names.tasks, names.queue(agent_type), agent_type) for agent_type in types),
        ),
    )
