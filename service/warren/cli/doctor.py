"""`warren doctor`: a report on the broker's version, our permissions there, and the store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated
from uuid import uuid4

import typer
from rich.markup import escape

from warren.agents.app import AgentSpec
from warren.bus.connection import Connection, Message
from warren.bus.consumer import Browser
from warren.bus.messages import new_id
from warren.bus.publisher import Publisher
from warren.bus.topology import WEAKER, Names, Queue, Topology, exchanges, too_long_for, topology
from warren.cli import runtime
from warren.cli.shared import connected, out, read_settings
from warren.errors import (
    AccessRefused,
    NotDeclared,
    QueueMismatch,
    StoreUnavailable,
    StoreUnusable,
    Unroutable,
)
from warren.settings import Settings, without_password
from warren.store.database import Store
from warren.support.local_broker import find as broker


@dataclass(frozen=True)
class Finding:
    """One line of the report. `ok` is None for information that is neither good nor bad."""

    ok: bool | None
    text: str


def doctor(
    app: Annotated[
        str | None, typer.Argument(metavar="[MODULE:APP]", help="Look at the queues of this application too.")
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Only the exit status: for health checks.")
    ] = False,
) -> None:
    """Examine broker and store: servers, version, permissions, queues. Exit status 1 if anything is wrong.

    One server of several that is away is shown, and is no fault while another takes connections.
    """
    settings = read_settings()
    runtime.configure_logging(settings)
    agents = list(runtime.load(app).agents.values()) if app else []
    findings = runtime.run(_examine(settings, agents, each_server=not quiet))
    marks = {True: "[green]✓[/]", False: "[red]✗[/]", None: "[yellow]·[/]"}
    for finding in [] if quiet else findings:
        out.print(f"{marks[finding.ok]} {escape(finding.text)}", soft_wrap=True, highlight=False)
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(1)


async def _examine(settings: Settings, agents: Sequence[AgentSpec], *, each_server: bool) -> list[Finding]:
    found = broker.locate(settings)
    async with connected(settings, "warren doctor") as (connection, publisher):
        profile = connection.profile
        return [
            Finding(True, f"{found.kind} broker at {without_password(found.url)}"),
            *(await _servers(connection) if each_server else []),
            Finding(True, f"RabbitMQ {connection.version}, queue profile {profile}"),
            *[Finding(None, f"weaker on this broker: {point}") for point in WEAKER[profile]],
            *await _permissions(connection, publisher, settings),
            *await _exchanges(connection, settings),
            *await _queues(connection, settings, [agent.agent_type for agent in agents]),
            *_timeouts(connection, settings, agents),
            await _store(settings),
        ]


async def _servers(connection: Connection) -> list[Finding]:
    """Each server, where the address has several. One that is away is no fault while another takes us."""
    good, errors = await connection.examine()
    if len(good) + len(errors) == 1:
        return []
    return [
        *[Finding(True, f"server {server} takes connections") for server in good],
        *[Finding(None, f"server {error}; the others are used") for error in errors],
    ]


async def _store(settings: Settings) -> Finding:
    store = Store.of(settings)
    if store is None:
        return Finding(
            None, "no store (WARREN_STORE_URL is `none`): a worker forgets everything when it ends"
        )
    try:
        async with store:
            pass
    except (StoreUnavailable, StoreUnusable) as error:
        return Finding(False, str(error))
    if not store.is_sqlite:
        return Finding(True, f"store {store.url}")
    return Finding(
        None,
        f"store {store.url}: good for all workers of this host; workers on several hosts need PostgreSQL, "
        "or each remembers only its own tasks",
    )


async def _permissions(connection: Connection, publisher: Publisher, settings: Settings) -> list[Finding]:
    """Try each of RabbitMQ's three permissions, on a queue that goes with the connection.

    Its name is one that a worker may use: this is the health check of workers with no other rights.
    """
    names = Names(settings.namespace)
    queue = Queue(f"{settings.namespace}.peers.doctor-{uuid4().hex}", exclusive=True)
    # No agent type has such a name: the broker returns the message, if we may publish it at all.
    stray = Message(names.tasks, "-doctor-", b"{}", message_id=str(new_id()))

    async def read() -> None:
        async with Browser(connection, queue.name) as browser:
            async for delivery in browser:
                delivery.ack()

    checks: dict[str, Callable[[], Awaitable[None]]] = {
        f"may configure queues named {queue.name.rpartition('.')[0]}.*": lambda: connection.declare(
            Topology((), (queue,), ())
        ),
        "may publish through the default exchange (results go this way)": lambda: publisher.publish(
            Message("", queue.name, b"{}", message_id=str(new_id()))
        ),
        f"may publish tasks to {names.tasks}": lambda: publisher.publish(stray),
        f"may read queues named {queue.name.rpartition('.')[0]}.*": read,
    }
    return [await _permission(text, check) for text, check in checks.items()]


async def _permission(text: str, check: Callable[[], Awaitable[None]]) -> Finding:
    try:
        await check()
    except (AccessRefused, NotDeclared) as error:
        return Finding(False, str(error))
    except Unroutable:
        pass  # the broker looked where it would go: we may publish
    return Finding(True, text)


async def _exchanges(connection: Connection, settings: Settings) -> list[Finding]:
    findings = []
    for exchange in exchanges(Names(settings.namespace)):
        there = await connection.has_exchange(exchange.name)
        text = f"exchange {exchange.name} ({exchange.kind})"
        findings.append(Finding(True, text) if there else Finding(None, f"{text}: made by the first worker"))
    return findings


def _timeouts(connection: Connection, settings: Settings, agents: Sequence[AgentSpec]) -> list[Finding]:
    problems = {
        agent.agent_type: too_long_for(
            agent.timeout or settings.task_timeout, connection.profile, connection.version, settings
        )
        for agent in agents
    }
    return [
        Finding(ok=False, text=f"agent {agent_type}: {problem}")
        for agent_type, problem in problems.items()
        if problem
    ]


async def _queues(connection: Connection, settings: Settings, agent_types: Iterable[str]) -> list[Finding]:
    return [
        await _queue(connection, queue)
        for queue in topology(agent_types, connection.profile, settings, connection.version).queues
    ]


async def _queue(connection: Connection, queue: Queue) -> Finding:
    """Declaring a queue that is there compares its arguments with ours, and changes nothing."""
    arguments = ", ".join(f"{name}={value}" for name, value in queue.arguments.items())
    try:
        depth = await connection.depth(queue.name)
    except AccessRefused as error:
        return Finding(False, str(error))
    except NotDeclared:
        return Finding(None, f"queue {queue.name}: made by the first worker ({arguments})")
    try:
        await connection.declare(Topology((), (queue,), ()))
    except (QueueMismatch, AccessRefused) as error:
        return Finding(False, str(error))
    return Finding(True, f"queue {queue.name}: {depth} waiting ({arguments})")
