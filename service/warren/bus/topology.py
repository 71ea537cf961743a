"""Exchanges, queues and bindings as frozen data; `bus` declares what stands here.

Names and arguments are the wire contract. Both queue profiles are built from one description: what a
profile cannot do is left out, and told by `WEAKER`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from warren.settings import Settings
from warren_schemas import REASON

Profile = Literal["quorum", "classic"]
Arguments = dict[str, str | int | bool | None]

# Strict priorities on quorum queues, and a headers exchange that splits by `x-first-death-reason`.
QUORUM_SINCE = (4, 3)
# Brokers whose classic queues take `x-consumer-timeout`; before them, and where a queue was made without it,
# the node's own `consumer_timeout` counts. Since 4.3 classic queues take no deliveries back, and no argument.
CONSUMER_TIMEOUT_SINCE = (3, 12)
DEFAULT_CONSUMER_TIMEOUT = 1800.0  # seconds: RabbitMQ's default of `consumer_timeout`
# Priorities run from 2 (low) to 8 (urgent); one above, so that an odd priority between two classes fits.
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
    """A queue and its arguments (`x-…`), which the broker never lets anybody change.

    It is durable, unless it is exclusive: then it goes with the connection that declared it.
    """

    name: str
    arguments: Arguments = field(default_factory=dict)
    exclusive: bool = False


@dataclass(frozen=True)
class Binding:
    """What makes an exchange pass messages on to a queue."""

    exchange: str
    queue: str
    routing_key: str = ""
    arguments: Arguments = field(default_factory=dict)


@dataclass(frozen=True)
class Topology:
    """Everything to be declared, in this order: exchanges, queues, bindings."""

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
        """The exchange for everything that leaves a task queue without having succeeded."""
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
        """The queue of tasks that waited one step."""
        return f"{self.namespace}.ageing"

    @property
    def dead(self) -> str:
        """The queue of dead letters."""
        return f"{self.namespace}.dead"

    @property
    def prefix(self) -> str:
        """What the name of everything here begins with."""
        return f"{self.namespace}."

    @property
    def replies(self) -> str:
        """What the names of the queues begin with that clients receive results on."""
        return f"{self.namespace}.replies."

    def queue(self, agent_type: str) -> str:
        """The task queue of an agent type."""
        return f"{self.namespace}.tasks.{agent_type}"

    def agent_type(self, queue: str) -> str:
        """The agent type of a task queue: the inverse of `queue`."""
        return queue.removeprefix(f"{self.namespace}.tasks.")


def profile_for(version: str, settings: Settings) -> Profile:
    """The queue profile for a broker of this version (`"4.3.6"`), unless the settings insist on one."""
    if settings.queue_profile != "auto":
        return settings.queue_profile
    return "quorum" if _number(version) >= QUORUM_SINCE else "classic"


def _number(version: str) -> tuple[int, int]:
    major, minor = (int(part) for part in version.split(".")[:2])
    return major, minor


def carries_consumer_timeout(profile: Profile, version: str) -> bool:
    """Whether task queues of this profile carry `x-consumer-timeout` on a broker of this version.

    A classic queue that was made without it may be declared with it: the broker compares the argument of
    quorum queues only, and leaves a classic queue as it is.
    """
    return profile == "quorum" or CONSUMER_TIMEOUT_SINCE <= _number(version) < QUORUM_SINCE


def longest_delivery(profile: Profile, version: str, settings: Settings) -> float | None:
    """Seconds that the broker leaves a delivery unacknowledged, as far as can be known; None: for ever.

    A policy, or a node's own `consumer_timeout`, may say otherwise, and AMQP does not tell.
    """
    if carries_consumer_timeout(profile, version):
        return settings.consumer_timeout
    return None if _number(version) >= QUORUM_SINCE else DEFAULT_CONSUMER_TIMEOUT


def too_long_for(timeout: float, profile: Profile, version: str, settings: Settings) -> str | None:
    """What to tell of an agent whose attempts may last so many seconds, or None where that is no problem."""
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
    """The four exchanges."""
    return (
        Exchange(names.tasks, "direct"),
        Exchange(names.dlx, "headers"),
        Exchange(names.events, "topic"),
        Exchange(names.control, "fanout"),
    )


def task_queue(
    agent_type: str, names: Names, profile: Profile, settings: Settings, version: str = "0.0"
) -> Queue:
    """The queue of one agent type: priorities, a capacity that refuses, a dead-letter exchange."""
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
    """A queue that gives nothing away: no capacity, and no delivery limit.

    Quorum queues have a limit of 20 deliveries by default (RabbitMQ 4.0), after which a message without a
    dead-letter exchange is dropped: -1 takes that limit away.
    """
    if profile == "quorum":
        return Queue(name, {"x-queue-type": "quorum", "x-delivery-limit": -1})
    return Queue(name, {"x-queue-type": "classic"})


def bindings(names: Names) -> tuple[Binding, ...]:
    """How the dead-letter exchange splits: expired tasks to ageing, the others to dead.

    `any-with-x`: headers that begin with `x-` take part in the match (RabbitMQ, *Headers Exchange*).
    """

    def died_of(reason: str, queue: str) -> Binding:
        return Binding(names.dlx, queue, "", {"x-match": "any-with-x", "x-first-death-reason": reason})

    return (
        died_of("expired", names.ageing),
        died_of("rejected", names.dead),
        died_of("delivery_limit", names.dead),
        died_of("maxlen", names.dead),
        # No value: the header only has to be there.
        Binding(names.dlx, names.dead, "", {"x-match": "any", REASON: None}),
    )


def topology(
    agent_types: Iterable[str], profile: Profile, settings: Settings, version: str = "0.0"
) -> Topology:
    """Everything that a worker with these agent types needs on a broker of this version."""
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
