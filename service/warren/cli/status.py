"""`warren status`: the fleet as its heartbeats show it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Annotated, Final

import typer
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from warren.cli import runtime
from warren.cli.shared import err, examples, out, print_wide, read_settings
from warren.client.client import Client
from warren.fleet.membership import RATES, Peers
from warren.fleet.overview import AgentTypeLine, Overview, WorkerLine, overview
from warren.settings import MIB, Settings
from warren.support.local_broker import find as broker
from warren.support.loops import Loops

EXAMPLES: Final = examples("warren status", "warren status --once", "warren status --once --json")
REFRESH: Final = 1.0  # seconds between two looks
# With --once: a little more than a heartbeat interval, so that every worker is heard.
ONCE_INTERVALS: Final = 1.2
ONCE_MORE: Final = 0.5  # seconds
LOST_SHOWN: Final = 5

_SHORT: Final = {"succeeded": "ok/s", "retried": "retry/s", "dead": "dead/s"}
_COLOURS: Final = {
    "up": "green", "draining": "yellow", "silent": "red",
    "closed": "green", "half_open": "yellow", "open": "red",
}  # fmt: skip


def status(
    once: Annotated[
        bool, typer.Option("--once", help="Listen for a little more than one heartbeat, show it and end.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show workers, agent types, queue depths, breakers and rates, live until Ctrl-C.

    What is no terminal gets it once, as with --once, unless --json. Once: exit status 1 when no worker was
    heard.
    """
    settings = read_settings()
    runtime.configure_logging(settings)
    if not runtime.run(_status(settings, once=once, json=json)):
        raise typer.Exit(1)


async def _status(settings: Settings, *, once: bool, json: bool) -> bool:
    """Show the status. False if no worker was heard."""
    peers = Peers(settings.heartbeat_interval)
    async with Client(broker.locate(settings).url, settings=settings) as client:
        if once or not (json or out.is_terminal):
            return await _look_once(client, peers, settings, json=json)
        async with Loops() as loops:
            loops.start("heartbeats", _follow(client, peers))
            if json:
                await _repeat(lambda: _print_json(_look(peers)), loops)
            with Live(console=out, auto_refresh=False) as live:
                await _repeat(lambda: live.update(_screen(_look(peers)), refresh=True), loops)
    return True


async def _look_once(client: Client, peers: Peers, settings: Settings, *, json: bool) -> bool:
    seconds = settings.heartbeat_interval * ONCE_INTERVALS + ONCE_MORE
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await _follow(client, peers)
    seen = _look(peers)
    if not seen.workers:
        err.print(
            f"no worker was heard in {seconds:.3g} s in namespace {settings.namespace!r}: "
            "start one with `warren worker MODULE:APP`",
            soft_wrap=True,
            highlight=False,
        )
        return False
    if json:
        _print_json(seen)
    else:
        print_wide(_screen(seen))
    return True


async def _follow(client: Client, peers: Peers) -> None:
    loop = asyncio.get_running_loop()
    async for event in client.events("health.worker.#"):
        peers.take(event, loop.time())


async def _repeat(show: Callable[[], None], loops: Loops) -> None:
    """Show it again and again, until a loop fails."""
    while True:
        show()
        with suppress(TimeoutError):
            async with asyncio.timeout(REFRESH):
                await loops.watch()


def _look(peers: Peers) -> Overview:
    return overview(peers, asyncio.get_running_loop().time())


def _print_json(seen: Overview) -> None:
    out.print(seen.model_dump_json(), soft_wrap=True, markup=False, highlight=False)


def _screen(seen: Overview) -> Group:
    parts: list[Table | str] = [_headline(seen)]
    if seen.workers:
        parts += ["", _agent_types(seen.agent_types), "", _workers(seen.workers)]
    if seen.lost:
        parts.append(f"\n[red]lost:[/] {escape(', '.join(seen.lost[-LOST_SHOWN:]))}")
    return Group(*parts)


def _headline(seen: Overview) -> str:
    if not seen.workers:
        return "no worker has been heard yet"
    workers = "1 worker" if seen.counted == 1 else f"{seen.counted} workers"
    rates = ", ".join(f"{name} {_rate(seen.rates, name)}/s" for name in RATES)
    return f"[bold]{workers}[/], {seen.running} of {seen.prefetch} tasks running; {rates}"


def _agent_types(lines: Mapping[str, AgentTypeLine]) -> Table:
    table = Table("agent type", box=None, pad_edge=False, header_style="dim")
    for heading in ("workers", "waiting", "running", *_SHORT.values()):
        table.add_column(heading, justify="right")
    table.add_column("breakers")
    table.add_column("agents")
    for name, line in lines.items():
        waiting = "?" if line.waiting is None else str(line.waiting)
        table.add_row(
            f"{escape(name)} [yellow](paused)[/]" if line.is_paused else escape(name),
            str(line.workers),
            waiting,
            str(line.running),
            *(_rate(line.rates, name) for name in _SHORT),
            _counts(line.breakers),
            _counts(line.agents),
        )
    return table


def _workers(lines: list[WorkerLine]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("worker", min_width=max(len(line.worker_id) for line in lines))  # a cut name is none
    table.add_column("state")
    for heading in ("running", *_SHORT.values(), "lag", "memory", "heard"):
        table.add_column(heading, justify="right")
    for line in lines:
        table.add_row(
            escape(line.worker_id),
            f"[{_COLOURS[line.state]}]{line.state}[/]",
            f"{line.running}/{line.prefetch}",
            *(_rate(line.rates, name) for name in _SHORT),
            f"{line.loop_lag_s:.3f} s",
            f"{line.memory_bytes / MIB:.0f} MiB",
            f"{line.heard_s_ago:.0f} s ago",
        )
    return table


def _rate(rates: Mapping[str, float] | None, name: str) -> str:
    return "?" if rates is None else f"{rates[name]:.1f}"


def _counts(counts: Mapping[str, int]) -> str:
    """`open 1, closed 2`, in the colours of the states."""
    return ", ".join(
        f"[{_COLOURS.get(state, 'default')}]{escape(state)}[/] {count}" for state, count in counts.items()
    )
